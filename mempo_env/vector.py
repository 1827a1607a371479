"""The vector environment that ``gym.make_vec`` uses for the environments of this package.

Text cannot live in the shared memory of ``AsyncVectorEnv``, and the environments wait for indexes and servers rather
than compute, so they are stepped in threads.

Invariant: what ``reset`` and ``step`` return equals what Gymnasium's ``SyncVectorEnv`` returns for the same
environments, next-step autoreset included; results are ordered by slot, never by completion.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, cast

import gymnasium as gym
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.utils import iterate

from .wrappers import TextObservation


class ThreadPoolVectorEnv(SyncVectorEnv[Any, Any]):
    """Environments of one id, stepped side by side in threads.

    Args:
        num_envs: How many.
        env_id: Which, as for ``gym.make``. For an id of your own, register a function with that id bound:
            ``functools.partial(ThreadPoolVectorEnv, env_id="mine:Mine-v0")``.
        text: Whether observations are single strings (``TextObservation``).
        env_wrappers: Applied to each environment, innermost first, before ``text``; ``make_vec`` itself refuses
            ``wrappers`` where an id brings a vector environment of its own. ``functools.partial`` gives them arguments.
        max_workers: Threads; by default one per environment, at most four per core.
        **env_kwargs: Arguments of each environment.

    Raises:
        ValueError: ``num_envs`` or ``max_workers`` is below 1.
    """

    def __init__(
        self,
        num_envs: int = 1,
        env_id: str = "mempo_env:MemPO-MultiGoal-v0",
        *,
        text: bool = False,
        env_wrappers: Sequence[Callable[[gym.Env[Any, str]], gym.Env[Any, str]]] = (),
        max_workers: int | None = None,
        **env_kwargs: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}")

        def make() -> gym.Env[Any, str]:
            env: gym.Env[Any, str] = gym.make(env_id, **env_kwargs)
            for wrap in env_wrappers:
                env = wrap(env)
            return TextObservation(env) if text else env

        super().__init__([make] * num_envs)
        self._executor = ThreadPoolExecutor(
            max_workers if max_workers is not None else min(num_envs, 4 * (os.cpu_count() or 1)),
            thread_name_prefix="mempo-env",
        )

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Resets the environments side by side; arguments as for ``SyncVectorEnv.reset``."""
        if isinstance(seed, int) or seed is None:
            seeds: list[int | None] = [None if seed is None else seed + slot for slot in range(self.num_envs)]
        else:
            seeds = seed
        if (options and "reset_mask" in options) or not isinstance(seeds, list) or len(seeds) != self.num_envs:
            return super().reset(seed=seed, options=options)  # a few environments only, or Gymnasium's own complaint
        futures = [
            self._executor.submit(env.reset, seed=own, options=options)
            for env, own in zip(self.envs, seeds, strict=True)
        ]
        with self._answering(futures):
            return super().reset(seed=seeds, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps the environments side by side; one that ended at the last step is reset instead."""
        calls: list[Callable[[], Any]] = [
            env.reset if ended else functools.partial(env.step, action)
            for env, ended, action in zip(
                self.envs, self._autoreset_envs, iterate(self.action_space, actions), strict=True
            )
        ]
        with self._answering([self._executor.submit(call) for call in calls]):
            return super().step(actions)

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the environments and the threads."""
        super().close_extras(**kwargs)
        self._executor.shutdown()

    @contextlib.contextmanager
    def _answering(self, futures: Sequence[Future[Any]]) -> Iterator[None]:
        """Puts finished calls in the place of the environments, so that all batching stays Gymnasium's own code."""
        environments = self.envs
        wait(futures)
        self.envs = [cast("gym.Env[Any, Any]", _Finished(future)) for future in futures]
        try:
            yield
        finally:
            self.envs = environments


class _Finished:
    """Answers the one call that ``SyncVectorEnv`` makes of an environment with a result computed before."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def reset(self, **_: Any) -> Any:
        return self._future.result()

    def step(self, _: str) -> Any:
        return self._future.result()
