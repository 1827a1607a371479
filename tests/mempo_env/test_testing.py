"""The conformance check accepts our environments and refuses one that cheats in each of the ways it looks for."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import mempo_env
from mempo_env.actions import parse
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.testing import check_memory_env

OURS = sorted(name for name in gym.registry if name.startswith("MemPO-"))


def test_ours_are_registered() -> None:
    assert sorted(mempo_env.ENVIRONMENTS) == OURS


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"goals": (1, 5), "budget": "paper", "memory": "optional", "outcome": "f1", "format_penalty": 0.1},
        {"goals": 16, "memory": "off", "instructions": "terse", "topk": 3, "split": "dev"},
    ],
)
def test_our_environments_conform(name: str, arguments: dict[str, Any]) -> None:
    if name != mempo_env.MULTI_GOAL_ID:  # where nothing is searched, the questions come first instead
        arguments = {key: value for key, value in arguments.items() if key != "topk"} | (
            {"questions": "start"} if "topk" in arguments else {}
        )
    check_memory_env(gym.make(name, **arguments).unwrapped)  # type: ignore[arg-type]


def test_the_environment_conforms_on_real_data(shared_data: Path) -> None:
    check_memory_env(gym.make("MemPO-MultiGoal-v0", dataset="qa", data=str(shared_data / "nq")).unwrapped)  # type: ignore[arg-type]


class GlobalRandom(MultiGoalEnv):
    def first_result(self, task: mempo_env.Task) -> str:
        return str(random.random())


class Unpicklable(MultiGoalEnv):
    def __init__(self) -> None:
        super().__init__()
        self.hole = lambda: None


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


class Dishonest(MultiGoalEnv):
    def step(self, action: str) -> Any:
        observation, reward, *rest = super().step(action)
        return (observation, reward + 1.0, *rest)


class Raising(MultiGoalEnv):
    def step(self, action: str) -> Any:
        action.encode()
        return super().step(action)


class BothEnds(MultiGoalEnv):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, truncated, info


class Accepting(MultiGoalEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed, options={k: v for k, v in (options or {}).items() if k == "task"})


@pytest.mark.parametrize(
    ("cheat", "message"),
    [
        (GlobalRandom, "seed"),
        (Unpicklable, "pickle"),
        (Forgetful, "pickled copy"),
        (Diary, "depends on more than memory"),
        (Dishonest, "sum of its parts"),
        (Raising, "surrogates"),
        (BothEnds, "both terminated and truncated"),
        (Accepting, "unknown reset option"),
    ],
)
def test_a_cheating_environment_is_refused(cheat: type[MultiGoalEnv], message: str) -> None:
    with pytest.raises(Exception, match=message):
        check_memory_env(cheat())


def test_wrapped_environments_are_refused() -> None:
    with pytest.raises(AssertionError, match="without wrappers"):
        check_memory_env(gym.make(mempo_env.MULTI_GOAL_ID))  # type: ignore[arg-type]
