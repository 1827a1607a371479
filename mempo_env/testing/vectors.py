"""Checks that vector environments play as single ones: the thread pool, Gymnasium's own, and what ``make_vec`` makes.

Invariant: all are made by ``gym.make`` from the same id and arguments, and given the same seeds and outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import SyncVectorEnv, VectorEnv

from mempo_env.vector import ThreadPoolVectorEnv

from .subject import Subject, broken, difference

_WIDTH, _STEPS = 3, 8


def vectors_agree(subject: Subject) -> str:
    """Equal seeds give equal transcripts, slot by slot, over the ends of episodes."""
    spec = subject.env.spec
    if spec is None or spec.id not in gym.registry:
        return "it was not made by gym.make from a registered id"
    env_id, arguments = spec.id, dict(spec.kwargs)

    def make() -> gym.Env[Any, Any]:
        return gym.make(env_id, disable_env_checker=True, **arguments)

    outputs = ["<mem>m</mem><answer>x</answer>", *subject.outputs]
    rows = [[outputs[(slot + 7 * at) % len(outputs)] for slot in range(_WIDTH)] for at in range(_STEPS)]
    rows[_STEPS // 2] = outputs[:1] * _WIDTH  # all end at once
    made: list[tuple[str, Callable[[], VectorEnv[Any, Any, Any]]]] = [
        ("SyncVectorEnv", lambda: SyncVectorEnv([make] * _WIDTH)),
        ("ThreadPoolVectorEnv", lambda: ThreadPoolVectorEnv(_WIDTH, env_id, **arguments)),
        ("gym.make_vec", lambda: gym.make_vec(env_id, num_envs=_WIDTH, **arguments)),
    ]
    expected = _single(make, rows, subject.seed)
    for name, build in made:
        vector = build()
        try:
            kinds = {type(env.unwrapped) for env in getattr(vector, "envs", [])}
            if kinds - {type(subject.env)}:
                raise broken(
                    f"{name} makes {', '.join(sorted(kind.__name__ for kind in kinds))}",
                    f"register with vector_entry_point=functools.partial(ThreadPoolVectorEnv, env_id={env_id!r}), or "
                    "leave vector_entry_point out",
                )
            if where := difference(expected, _vector(vector, rows, subject.seed), name):
                raise broken(
                    f"in a vector environment an episode goes differently, single against {where}",
                    "share nothing that changes between instances: no class attribute, module variable or file",
                )
        finally:
            vector.close()
    return ""


def _single(make: Callable[[], gym.Env[Any, Any]], rows: Sequence[Sequence[str]], seed: int) -> list[Any]:
    """Slot by slot what single environments give, with Gymnasium's next-step autoreset."""
    slots = []
    for slot in range(_WIDTH):
        env = make()
        record: list[Any] = [env.reset(seed=seed + slot)[0]]
        ended = False
        for row in rows:
            if ended:
                record.append((env.reset()[0], 0.0, False, False))
                ended = False
                continue
            observation, reward, terminated, truncated, _ = env.step(row[slot])
            record.append((observation, float(reward), bool(terminated), bool(truncated)))
            ended = bool(terminated or truncated)
        env.close()
        slots.append(record)
    return slots


def _vector(vector: VectorEnv[Any, Any, Any], rows: Sequence[Sequence[str]], seed: int) -> list[Any]:
    """The same from a vector environment."""
    observations, _ = vector.reset(seed=seed)
    slots: list[list[Any]] = [[_slot(observations, slot)] for slot in range(_WIDTH)]
    for row in rows:
        observations, rewards, terminated, truncated, _ = vector.step(tuple(row))
        for slot in range(_WIDTH):
            ends = bool(terminated[slot]), bool(truncated[slot])
            slots[slot].append((_slot(observations, slot), float(rewards[slot]), *ends))
    return slots


def _slot(observations: dict[str, Sequence[str]], slot: int) -> dict[str, str]:
    return {name: texts[slot] for name, texts in observations.items()}
