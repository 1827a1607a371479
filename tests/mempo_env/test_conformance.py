"""The conformance kit accepts our environments and proper ones of other shapes, and plays what fits their tools."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import mempo_env
from mempo_env import Task, ToolSpec
from mempo_env.testing import PROMISES, Check, check_memory_env
from mempo_env.testing.outputs import example, hostile_arguments

from .environment_shapes import Counter, Counting, Shelves, Sums

OURS = sorted(name for name in gym.registry if re.match(r"MemPO-", name))


def test_ours_are_registered() -> None:
    assert sorted(mempo_env.ENVIRONMENTS) == OURS


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"goals": (1, 5), "memory": "optional", "outcome": "f1", "format_penalty": 0.1},
        {"goals": 4, "memory": "off", "instructions": "terse", "split": "dev"},
    ],
)
def test_every_registered_environment_conforms(name: str, arguments: dict[str, Any]) -> None:
    checks = check_memory_env(gym.make(name, **arguments).unwrapped)  # type: ignore[arg-type]
    assert [check.promise for check in checks] == [promise for promise, _ in PROMISES]
    assert not any(check.skipped for check in checks)


@pytest.mark.parametrize(
    "arguments", [{"budget": "paper"}, {"goals": 16, "topk": 3}, {"budget": {"max_tool_calls": 1}}]
)
def test_the_search_environment_conforms_with_arguments_of_its_own(arguments: dict[str, Any]) -> None:
    check_memory_env(gym.make("MemPO-MultiGoal-v0", **arguments).unwrapped)  # type: ignore[arg-type]


def test_the_environment_conforms_on_real_data(shared_data: Path) -> None:
    check_memory_env(gym.make("MemPO-MultiGoal-v0", dataset="qa", data=str(shared_data / "nq")).unwrapped)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [Sums, Counting, Shelves])
@pytest.mark.parametrize("memory", ["required", "off"])
def test_environments_of_other_shapes_conform(shape: type[Sums], memory: Any) -> None:
    checks = check_memory_env(shape(goals=(1, 3), memory=memory))
    skipped = [check for check in checks if check.skipped]
    assert Check("another instance with the same arguments plays alike", "it was not made by gym.make") in skipped


# What is played -------------------------------------------------------------------------------------------------------


def test_arguments_are_made_from_the_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "text": {"type": "string", "minLength": 3},
            "many": {"type": "array", "items": {"type": "integer", "minimum": 4}, "minItems": 2},
            "one_of": {"enum": ["red", "blue"]},
            "nested": {"type": "object", "properties": {"flag": {"type": "boolean"}}},
            "either": {"anyOf": [{"type": "number", "minimum": 2}, {"type": "string"}]},
        },
    }
    expected = {"text": "aaa", "many": [4, 4], "one_of": "red", "nested": {"flag": True}, "either": 2}
    assert example(schema) == expected
    found = hostile_arguments(ToolSpec("t", "T.", schema))
    for name in expected:
        assert {other: value for other, value in expected.items() if other != name} in found
        assert expected | {name: None} in found
        assert any(isinstance(arguments.get(name), list) and len(arguments[name]) == 1000 for arguments in found)
    assert not any(arguments == expected for arguments in found)


def test_phrases_are_the_json_around_arguments() -> None:
    spec = ToolSpec("t", "T.", {"type": "object", "properties": {"a": {"type": "array"}, "b": {"type": "string"}}})
    assert spec.phrases() == ['{"name": "t", "arguments": {"a": ["', '", "', '"], "b": "', '"}}']
    assert Counter.spec.phrases() == ['{"name": "next", "arguments": {}}']
    assert Counting().phrases == Counter.spec.phrases()


def test_an_environment_without_tools_says_so() -> None:
    env = Sums()
    env.reset(seed=0)
    assert "tool_call" not in env.instructions
    assert "<answer>" in env.instructions
    observation = env.step('<mem>m</mem><tool_call>{"name": "x", "arguments": {}}</tool_call>')[0]
    assert observation["tool_result"] == "Format error (unknown_tool): There is no tool; answer."


class Picky(Sums):
    def prepare(self, task: Task) -> None:
        if "planted" in task.text:
            raise mempo_env.UserError("no")


def test_a_hostile_task_may_be_refused_in_words() -> None:
    check_memory_env(Picky())
