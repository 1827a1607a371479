"""The expert's part of the conformance kit: ours pass, and each way in which an expert is unfit is named."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from mempo_env import Evidence, Goal, MemoryEnv, Task, Tool, ToolArgumentError, ToolSpec, UserError
from mempo_env.agents.base import TurnRequest
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.scripted_expert import make_expert
from mempo_env.agents.testing import PROMISES, check_expert

OURS = sorted(name for name in gym.registry if re.match(r"MemPO-", name))


@pytest.mark.parametrize("name", OURS)
def test_the_experts_of_all_registered_environments_are_fit(name: str) -> None:
    for arguments in ({"goals": (1, 4)}, {"goals": 6, "split": "dev"}):
        env: Any = gym.make(name, **arguments).unwrapped
        assert not env.expert or check_expert(env, seed=3) == list(PROMISES)


def test_a_budget_that_is_too_small_is_told_or_expected() -> None:
    env: Any = gym.make("MemPO-MultiGoal-v0", goals=8, budget={"max_tool_calls": 1}).unwrapped
    with pytest.raises(AssertionError, match=r"fails on \d of 8 tasks, such as seed 0: .*Mend: .*success=False"):
        check_expert(env)
    assert check_expert(env, success=False) == [promise for promise in PROMISES if "solves" not in promise]


def test_nobody_is_asked_to_succeed_without_a_memory() -> None:
    env: Any = gym.make("MemPO-MultiGoal-v0", goals=8, memory="off").unwrapped
    assert "expert: solves every task it was given" not in check_expert(env, episodes=3)


class Look:
    """A tool that takes one word."""

    schema = {"type": "object", "properties": {"word": {"type": "string"}}}  # noqa: RUF012
    spec = ToolSpec("look", "Looks a word up.", schema)

    def call(self, arguments: dict[str, Any]) -> str:
        word = arguments.get("word")
        if not isinstance(word, str) or not word.isdigit():
            raise ToolArgumentError("look takes a number as text.")
        return f"{word} is {int(word) % 7}"


class Numbers(MemoryEnv):
    """One word a call, and an expert that is three class attributes."""

    expert = "numbers_experts:Fit"
    look = Look()

    @property
    def tools(self) -> Sequence[Tool]:
        return (self.look,)

    def sample_task(self, rng: np.random.Generator) -> Task:
        words = [int(word) for word in 10 + rng.permutation(90)[: self.draw_goals(rng)]]
        note = [Evidence(f"{word}", f"{word} is {word % 7}") for word in words]
        return Task(tuple(Goal(f"{e.query}?", (e.note[-1],), evidence=(e,)) for e in note))


class Fit(ExpertAgent):
    tool, argument, several = "look", "word", False


class Mumbling(Fit):
    def write(self, request: TurnRequest) -> str:
        return super().write(request).replace("tool_call", "tool")


class Overdoing(Fit):
    """Goes on asking when no call is left."""

    def decide(self, request: TurnRequest, notes: list[str]) -> tuple[str, str]:
        return "", '<tool_call>{"name": "look", "arguments": {"word": "1"}}</tool_call>'


class Silent(Fit):
    def decide(self, request: TurnRequest, notes: list[str]) -> tuple[str, str]:
        plan, action = super().decide(request, notes)
        calls = sum(not turn.format_error for turn in request.history)
        return (plan, action) if calls < 5 else ("", "")


class Wordy(Fit):
    def write(self, request: TurnRequest) -> str:
        return super().write(request).replace("<mem>", "<mem>" + "and " * 300)


class Moody(Fit):
    """Keeps something for itself."""

    mood = 0

    def decide(self, request: TurnRequest, notes: list[str]) -> tuple[str, str]:
        self.mood += 1
        return "", f"<think>{self.mood}</think>{super().decide(request, notes)[1]}"

    def write(self, request: TurnRequest) -> str:
        plan, action = self.decide(request, self.remember(request))
        return f"<mem>{'; '.join(self.remember(request))}</mem>{plan}{action}"


class Lazy(Fit):
    def answers(self, task: Task, memory: str) -> str:
        return "one"


class Wrong(Fit):
    def decide(self, request: TurnRequest, notes: list[str]) -> tuple[str, str]:
        return "", f"<answer>{'; '.join('x' for _ in request.task.goals)}</answer>"


class Knowing(Fit):
    def decide(self, request: TurnRequest, notes: list[str]) -> tuple[str, str]:
        return "", f"<answer>{'; '.join(goal.answers[0] for goal in request.task.goals)}</answer>"


class Flawless(Fit):
    def remember(self, request: TurnRequest) -> list[str]:
        perfect = Fit(self.budget, memory_counter=self.memory_counter)
        return super().remember(request) if self.name == "expert" else perfect.remember(request)


class Crashing(Fit):
    def remember(self, request: TurnRequest) -> list[str]:
        raise KeyError("red")


@pytest.fixture(autouse=True)
def _experts() -> Iterator[None]:
    """The experts under a module name that `expert` can say, whatever this file is called."""
    sys.modules["numbers_experts"] = sys.modules[__name__]
    yield
    del sys.modules["numbers_experts"]


def env_with(expert: type[ExpertAgent] | None, goals: int = 3) -> Numbers:
    env = Numbers(goals=goals)
    env.expert = "" if expert is None else f"numbers_experts:{expert.__name__}"  # type: ignore[misc]
    return env


def test_an_expert_of_another_tool_is_three_class_attributes() -> None:
    assert check_expert(env_with(Fit)) == list(PROMISES)
    assert check_expert(env_with(Fit, goals=5)) == list(PROMISES)
    with pytest.raises(AssertionError, match="fails on 8 of 8"):
        check_expert(env_with(Fit, goals=6))  # one word a call, five calls


@pytest.mark.parametrize(
    ("expert", "seen", "mend"),
    [
        (Mumbling, "turn 0 of the expert is a format error, no_action", "write the action last"),
        (Overdoing, "turn 5 of the expert is a format error, budget_spent", "within the budget"),
        (Silent, "format error, no_action", "write the action last"),
        (Wordy, "turn 0: the expert's memory was cut", "fit_notes"),
        (Moody, "asked again, the expert writes", "keep nothing in the expert"),
        (Lazy, "1 answers to 3 goals", "one answer per goal"),
        (Wrong, "the expert fails on 8 of 8 tasks", "compare its notes"),
        (Knowing, "although its tools tell it nothing", "the gold answers are no source"),
        (Flawless, r"demonstrator\(forget=1\) writes the memories of the perfect expert", "self.flaws"),
        (Crashing, "the expert raised KeyError", "every task"),
    ],
)
def test_an_unfit_expert_is_named(expert: type[ExpertAgent], seen: str, mend: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_expert(env_with(expert, goals=5 if expert is Silent else 3))
    what, _, cure = str(caught.value).partition(". Mend: ")
    assert re.search(seen, what), what
    assert re.search(mend, cure), cure


def test_an_environment_without_an_expert_has_none_to_check() -> None:
    with pytest.raises(UserError, match="has no scripted expert"):
        check_expert(env_with(None))


def test_calls_of_one_query_are_read_back_from_the_history() -> None:
    """Nothing is asked twice, though the argument is one word and no list."""
    from mempo_env.agents.rollout import group_specs, rollout

    make: Callable[[], MemoryEnv] = lambda: env_with(Fit, goals=5)  # noqa: E731
    episode = rollout(make_expert(make()), make, group_specs([0], 1), seed=0, step=0)[0]
    asked = [turn.action.arguments["word"] for turn in episode.turns[:-1]]  # type: ignore[union-attr]
    assert asked == list(dict.fromkeys(goal.evidence[0].query for goal in episode.task.goals))
    assert episode.scores["success"] == 1.0
