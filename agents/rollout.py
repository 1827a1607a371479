"""The rollout loop: an agent and environments in, episodes out.

All running episodes are played in lock-step: their requests go to the agent in one batch, then each environment takes
its step. Invariants:
    * results are ordered by slot, never by completion, and depend on neither batch nor threads (the agent's noise is
      keyed by ``SlotKey``);
    * ids, log-probs and segments pass from the agent's output into the turn untouched;
    * a fault outside the agent ends its episode as an ``error``; any other exception is a bug and is raised;
    * a turn's observation is what the agent was shown, wrappers included, its memory what the environment stored; its
      reward is the sum of its parts, or the wrapper that broke this is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import gymnasium as gym

from mempo_env.env import MemoryEnv
from mempo_env.errors import InfrastructureError, UserError
from mempo_env.records import Episode, Group, Observation, Task, Turn
from mempo_env.rewards import check_reward

from .base import Agent, SlotKey, TurnOutput, TurnRequest

EnvFactory = Callable[[], gym.Env[Observation, str]]
OnTurn = Callable[["EpisodeSpec", Turn], None]

_IN_TURN = ("action", "reward_components", "memory_written", "task")  # a turn or its episode has a field of its own
_NEEDED = ("action", "reward_components", "memory_written", "error")


@dataclass(frozen=True)
class EpisodeSpec:
    """Which episode to play.

    Attributes:
        group_id: Episodes of one task share it.
        rollout_id: Which of the group this is.
        seed: Seed of the environment's reset; equal within a group.
        task: The task to play; None draws it from the seed, once for the whole group.
    """

    group_id: str
    rollout_id: int
    seed: int
    task: Task | None = None


def group_specs(tasks: Iterable[int | Task], group_size: int) -> list[EpisodeSpec]:
    """Specs of groups, all episodes of a group together.

    Args:
        tasks: A reset seed or a task per group.
        group_size: Episodes per group.

    Returns:
        Specs in order. A group is called ``INDEX/SEED`` or ``INDEX/TASK-ID``; tasks are played with the seed 0.

    Raises:
        ValueError: The group size is below 1.
    """
    if group_size < 1:
        raise ValueError(f"group_size={group_size}: a group needs at least one episode")
    specs = []
    for index, task in enumerate(tasks):
        seed, given = (0, task) if isinstance(task, Task) else (task, None)
        name = f"{index}/{given.id if given is not None else seed}"
        specs += [EpisodeSpec(name, rollout_id, seed, given) for rollout_id in range(group_size)]
    return specs


def as_groups(episodes: Iterable[Episode]) -> list[Group]:
    """Cuts episodes into groups, in the order in which the groups first occur, each ordered by ``rollout_id``."""
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.group_id, []).append(episode)
    return [tuple(sorted(group, key=lambda episode: episode.rollout_id)) for group in groups.values()]


class EnvPool:
    """Environments that are made once and reused by one rollout after another; a context manager.

    Args:
        env_fn: Makes one environment.
        threads: Threads that step environments side by side (for tools that wait on disk or network); 0: none.
    """

    def __init__(self, env_fn: EnvFactory, threads: int = 0) -> None:
        self._env_fn = env_fn
        self._envs: list[gym.Env[Observation, str]] = []
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="env") if threads else None

    def take(self, count: int) -> list[gym.Env[Observation, str]]:
        """The first ``count`` environments of the pool; missing ones are made."""
        while len(self._envs) < count:
            self._envs.append(self._env_fn())
        return self._envs[:count]

    @property
    def memory_env(self) -> MemoryEnv:
        """The first environment under all its wrappers: instructions, budget and so on.

        Raises:
            UserError: The environment is no ``MemoryEnv``.
        """
        return _memory_env(self.take(1)[0])

    def map(self, function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        """Calls ``function`` for each row of arguments, in threads if there are any; results in order."""
        if self._executor is None:
            return [function(*row) for row in zip(*arguments, strict=True)]
        return list(self._executor.map(function, *arguments))

    def close(self) -> None:
        """Closes the environments and the threads; may be called twice."""
        for env in self._envs:
            env.close()
        self._envs = []
        if self._executor is not None:
            self._executor.shutdown()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Slot:
    """An episode in the making."""

    def __init__(self, spec: EpisodeSpec, env: gym.Env[Observation, str]) -> None:
        self.spec = spec
        self.env = env
        self.inner = _memory_env(env)
        self.instructions = ""
        self.observation: Observation = {}
        self.task: Task | None = None
        self.turns: list[Turn] = []
        self.terminated = self.truncated = False
        self.error: str | None = None

    @property
    def running(self) -> bool:
        return not (self.terminated or self.truncated)

    def reset(self, task: Task | None) -> Task:
        observation, info = self.env.reset(seed=self.spec.seed, options=None if task is None else {"task": task})
        if not isinstance(observation, dict):
            raise UserError(
                "rollout needs the dict observation; leave out TextObservation: agents render the text themselves"
            )
        self.observation, self.task = observation, info["task"]
        self.instructions = self.inner.instructions  # after the reset: a wrapper may have changed the budget
        return self.task

    def request(self, seed: int, step: int) -> TurnRequest:
        assert self.task is not None
        key = SlotKey(seed, step, self.spec.group_id, self.spec.rollout_id, len(self.turns))
        return TurnRequest(key, self.observation, self.instructions, tuple(self.turns), self.task)

    def fail(self, error: str) -> None:
        self.error, self.truncated = error, True

    def step(self, output: TurnOutput) -> Turn:
        observation, reward, self.terminated, truncated, info = self.env.step(output.text)
        self.truncated = truncated and not self.terminated  # TimeLimit reports both for an answer at the last step
        if missing := [name for name in _NEEDED if name not in info]:
            raise UserError(f"a wrapper dropped info[{missing[0]!r}]; it must pass on what the environment put there")
        check_reward(float(reward), info)
        turn = Turn(
            observation=self.observation,
            text=output.text,
            action=info["action"],
            reward=float(reward),
            reward_components=dict(info["reward_components"]),
            memory=self.inner.stored_memory,
            memory_written=info["memory_written"],
            n_prompt=output.n_prompt,
            n_output=output.n_output,
            prompt_ids=output.prompt_ids,
            output_ids=output.output_ids,
            logprobs=output.logprobs,
            segments=output.segments,
            info={name: value for name, value in info.items() if name not in _IN_TURN}
            | {"stop_reason": output.stop_reason, "weights_version": output.weights_version}
            | ({} if output.raw_text is None else {"raw_text": output.raw_text}),
        )
        self.observation = observation
        self.turns.append(turn)
        if info["error"]:
            self.fail(info["error"])
        return turn

    def episode(self) -> Episode:
        assert self.task is not None
        last: dict[str, Any] = self.turns[-1].info if self.turns else {}
        return Episode(
            turns=tuple(self.turns),
            task=self.task,
            group_id=self.spec.group_id,
            rollout_id=self.spec.rollout_id,
            seed=self.spec.seed,
            outcome=float(last.get("outcome", 0.0)),
            terminated=self.terminated,
            truncated=self.truncated,
            error=self.error,
            scores={name: float(last.get(name, 0.0)) for name in ("em", "f1", "success")},
        )


def rollout(
    agent: Agent,
    env_fn: EnvFactory | EnvPool,
    specs: Sequence[EpisodeSpec],
    *,
    seed: int,
    step: int,
    on_turn: OnTurn | None = None,
) -> list[Episode]:
    """Plays episodes.

    Args:
        agent: Plays; gets the requests of all running episodes at once.
        env_fn: Makes an environment per spec, closed at the end, or a pool, which stays open.
        specs: What to play.
        seed: Seed of the run, for the agent's noise.
        step: Training step, for the agent's noise.
        on_turn: Called after each turn, in the order of the slots.

    Returns:
        One episode per spec, in order. An episode whose agent or tools failed for good carries ``error``.

    Raises:
        UserError: The environment is no ``MemoryEnv`` with dict observations.
        ValueError: Two specs name one slot, specs of a group disagree, or the agent gave a wrong number of outputs.
        InfrastructureError: An environment could not be reset, so that there is no task.
    """
    _check(specs)
    if not isinstance(env_fn, EnvPool):
        with EnvPool(env_fn) as pool:
            return rollout(agent, pool, specs, seed=seed, step=step, on_turn=on_turn)
    pool = env_fn
    slots = [_Slot(spec, env) for spec, env in zip(specs, pool.take(len(specs)), strict=True)]
    tasks: dict[str, Task] = {}
    for slot in slots:
        name = slot.spec.group_id
        tasks[name] = slot.reset(slot.spec.task or tasks.get(name))
    while running := [slot for slot in slots if slot.running]:
        requests = [slot.request(seed, step) for slot in running]
        try:
            outputs = agent.act(requests)
        except InfrastructureError as fault:
            # Raised for the batch as a whole: no output of it can be trusted to exist. An agent that knows which
            # request failed returns ``TurnOutput(error=..)`` for that one instead.
            for slot in running:
                slot.fail(f"{type(fault).__name__}: {fault}")
            break
        if len(outputs) != len(requests):
            raise ValueError(f"agent {agent.name} gave {len(outputs)} outputs for {len(requests)} requests")
        stepped = []
        for slot, output in zip(running, outputs, strict=True):
            if output.error is None:
                stepped.append((slot, output))
            else:
                slot.fail(output.error)
        turns = pool.map(_Slot.step, [slot for slot, _ in stepped], [output for _, output in stepped])
        if on_turn is not None:
            for (slot, _), turn in zip(stepped, turns, strict=True):
                on_turn(slot.spec, turn)
    return [slot.episode() for slot in slots]


def _check(specs: Sequence[EpisodeSpec]) -> None:
    names = [(spec.group_id, spec.rollout_id) for spec in specs]
    if len(set(names)) < len(names):
        raise ValueError("two specs have the same (group_id, rollout_id); each slot needs a name of its own")
    first: dict[str, EpisodeSpec] = {}
    for spec in specs:
        other = first.setdefault(spec.group_id, spec)
        if spec.seed != other.seed or spec.task != other.task:
            raise ValueError(f"the specs of group {spec.group_id!r} differ in seed or task; a group shares both")


def _memory_env(env: gym.Env[Observation, str]) -> MemoryEnv:
    inner: object = env.unwrapped
    if not isinstance(inner, MemoryEnv):
        raise UserError(f"{type(inner).__name__} is no mempo_env.env.MemoryEnv; subclass it to play in this rollout")
    return inner
