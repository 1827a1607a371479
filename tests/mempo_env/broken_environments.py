"""Environments that break the promises of the conformance kit, for ``test_broken_promises.py``.

Every class here is a proper environment but for the one promise it breaks.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from mempo_env import Goal, Task, Tool, ToolArgumentError, ToolSpec
from mempo_env.actions import parse
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.metrics import AnswerScores

from .environment_shapes import Counter, Counting, Shelf, Shelves, Sums


class GlobalRandom(MultiGoalEnv):
    def first_result(self, task: Task) -> str:
        return str(random.random())


class GlobalDraw(MultiGoalEnv):
    """Replays, since it seeds the global generator itself."""

    def prepare(self, task: Task) -> None:
        random.seed(1)
        super().prepare(task)


class GlobalNumpy(Sums):
    """Reads the global generator without moving it."""

    def first_result(self, task: Task) -> str:
        return str(np.random.get_state()[1][0])  # type: ignore[index]  # noqa: NPY002


class Clock(MultiGoalEnv):
    def step(self, action: str) -> Any:
        *rest, info = super().step(action)
        return (*rest, info | {"time": time.perf_counter()})


class Unpicklable(MultiGoalEnv):
    def __init__(self) -> None:
        super().__init__()
        self.hole = lambda: None


class Open(MultiGoalEnv):
    """Cannot be pickled while an episode runs."""

    def prepare(self, task: Task) -> None:
        super().prepare(task)
        self.lines = (line for line in ())  # type: ignore[var-annotated]


class Forgetful(MultiGoalEnv):
    """Loses what it knew of the episode when copied."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memory": "", "_tool_result": "", "_turn": 0}


class Diary(MultiGoalEnv):
    """Shows what was written before the last memory."""

    def step(self, action: str) -> Any:
        first = getattr(self, "first", None) or parse(action).memory or ""
        self.first = first
        observation, *rest = super().step(action)
        return (observation | {"tool_result": f"{observation['tool_result']} {first[:5]}"}, *rest)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.first = None
        return super().reset(seed=seed, options=options)


class Undeclared(Counting):
    stateful = False


class Remembering(Counting):
    """A stateful one that also shows what the agent thought."""

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        self.thoughts += "other" if "other" in action else ""
        return (observation | {"tool_result": observation["tool_result"] + self.thoughts}, *rest)

    def prepare(self, task: Task) -> None:
        super().prepare(task)
        self.thoughts = ""


class Dishonest(MultiGoalEnv):
    def step(self, action: str) -> Any:
        observation, reward, *rest = super().step(action)
        return (observation, reward + 1.0, *rest)


class Infinite(MultiGoalEnv):
    def step(self, action: str) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        parts = info["reward_components"] | {"own": float("nan")}
        return observation, sum(parts.values()), terminated, truncated, info | {"reward_components": parts}


class Raising(MultiGoalEnv):
    def step(self, action: str) -> Any:
        action.encode()
        return super().step(action)


class Trusting(Shelves):
    """Its tool believes the schema."""

    class _Shelf(Shelf):
        def call(self, arguments: dict[str, Any]) -> str:
            return f"{arguments['side']} {arguments['shelf'] + 1}"

    shelf = _Shelf()


class Exact(Shelves):
    """Its tool takes a text to the letter."""

    class _Shelf(Shelf):
        spec = ToolSpec("take", "Takes.", {"type": "object", "properties": {"side": {"enum": ["left", "right"]}}})

        def call(self, arguments: dict[str, Any]) -> str:
            if arguments.get("side") not in ("left", "right"):
                raise ToolArgumentError("take takes a side, left or right.")
            return "a book"

    shelf = _Shelf()


class BothEnds(MultiGoalEnv):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, truncated, info


class Accepting(MultiGoalEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed, options={k: v for k, v in (options or {}).items() if k == "task"})


class Deaf(MultiGoalEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed, options={k: v for k, v in (options or {}).items() if k != "task"})


class SetUpWhenDrawn(Sums):
    """Sets up what it shows when it draws the task, so that a task it is given looks otherwise."""

    hint = ""

    def sample_task(self, rng: np.random.Generator) -> Task:
        task = super().sample_task(rng)
        self.hint = task.text
        return task

    def first_result(self, task: Task) -> str:
        return self.hint

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        return (observation | {"tool_result": self.hint}, *rest)


class LeftOver(Counting):
    """Never goes back to the beginning."""

    def prepare(self, task: Task) -> None:
        pass

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"counter": Counter()}


class Endless(Sums):
    def step(self, action: str) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        self._done = terminated
        return observation, reward, terminated, False, info


class Uncounted(Counting):
    """Lets calls pass that are over the budget."""

    def step(self, action: str) -> Any:
        self._calls = 0
        return super().step(action)


class LongMemory(Sums):
    """Keeps the memory whole."""

    def _commit(self, memory: str | None) -> tuple[bool, bool]:
        self._memory = self._memory if memory is None else memory
        return memory is not None, False


class OwnMemory(Sums):
    """Writes into the agent's memory."""

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        return (observation | {"memory": observation["memory"] + " (noted)"}, *rest)


class Unescaped(Counting):
    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        return (observation | {"tool_result": observation["tool_result"].replace("&lt;", "<")}, *rest)


class Surrogates(Sums):
    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        return (observation | {"tool_result": "\ud800"}, *rest)


class Listening(Counting):
    """Takes what a tool says for an answer of the agent."""

    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        if "planted" in observation["tool_result"] and not truncated:
            terminated, info = True, info | {"em": 0.0, "f1": 0.0, "success": 0.0}
        return observation, reward, terminated, truncated, info


class Painting(MultiGoalEnv):
    """Takes a turn whenever it is looked at."""

    def render(self) -> Any:
        self._turn += 1
        return super().render()


class Blank(Sums):
    def render(self) -> Any:
        return None


class Loud(Sums):
    def render(self) -> Any:
        return "here I am"


class Brittle(Sums):
    def score(self, answers: Sequence[str], task: Task) -> AnswerScores:
        hits = tuple(float(int(answer) == 0) for answer in answers)
        return AnswerScores(hits, hits)


class Sentences(Sums):
    vocabulary = ("two words",)


class Growing(Sums):
    @property
    def vocabulary(self) -> Sequence[str]:
        return [] if self._task is None else ["more"]


class TwoTools(Shelves):
    @property
    def tools(self) -> Sequence[Tool]:
        return (self.shelf, self.shelf)


class NoSchema(Shelves):
    class _Shelf(Shelf):
        spec = ToolSpec("take", "Takes.", {"type": "object", "properties": {}, "required": ["shelf"]})

    shelf = _Shelf()


class Changing(Counting):
    @property
    def tools(self) -> Sequence[Tool]:
        return (self.counter,) if self._task is None or len(self.task.text) % 2 else ()


class TooMany(Sums):
    def sample_task(self, rng: np.random.Generator) -> Task:
        return Task((Goal("?", ("x",)),) * 7)


class Impossible(Sums):
    def sample_task(self, rng: np.random.Generator) -> Task:
        return Task((Goal("?", ()),))


class Careless(Sums):
    def __init__(self) -> None:
        pass


class OtherSpace(Sums):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Discrete(2)  # type: ignore[assignment]


class Warned(Sums):
    metadata = {"render_modes": []}  # noqa: RUF012

    def reset(self, *, seed: int | None = 3, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed, options=options)


SHARED: list[int] = []


class Sharing(Sums):
    """What one instance plays shows in another."""

    def first_result(self, task: Task) -> str:
        SHARED.append(1)
        return str(len(SHARED))
