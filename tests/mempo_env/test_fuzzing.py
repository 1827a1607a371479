"""A hundred thousand random and mutated outputs over all registered environments, and proof that checks can fail."""

from __future__ import annotations

import random
from typing import Any

import gymnasium as gym
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mempo_env
from mempo_env.actions import TAGS
from mempo_env.env import MemoryEnv
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.fuzzing import check_output, fuzz_env
from mempo_env.hostile import CONTROL_TOKENS, ODD_TEXT, TAG_LOOKALIKES, OutputFuzzer
from mempo_env.tools import Tool

OURS = sorted(name for name in gym.registry if name.startswith("MemPO"))
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"memory": "optional", "budget": "paper", "format_penalty": 0.1, "outcome": "f1"},
    {"memory": "off"},
)
ACTIONS = 102_000  # in all


def make(name: str, **arguments: Any) -> MemoryEnv:
    env = gym.make(name, **arguments).unwrapped
    assert isinstance(env, MemoryEnv)
    return env


@pytest.mark.parametrize("arguments", SETTINGS, ids=lambda arguments: str(arguments.get("memory", "required")))
@pytest.mark.parametrize("name", OURS)
def test_no_output_breaks_a_promise(name: str, arguments: dict[str, Any]) -> None:
    actions = ACTIONS // (len(OURS) * len(SETTINGS))
    report = fuzz_env(make(name, **arguments), actions, seed=len(arguments), long_share=1e-3)
    assert report.actions == actions
    assert report.episodes > actions / 20
    assert report.answered > actions / 100
    wanted = {"ToolCall", "Answer", "no_action", "unclosed_block", "bad_json", "unknown_tool", "bad_arguments"}
    assert wanted <= set(report.kinds), "the outputs must reach the tools and the errors, or little is tested"
    assert report.longest > 10_000


# Blocks and their contents, well formed or not, nested or crossing.
_TEXT = st.one_of(st.sampled_from((*CONTROL_TOKENS, *TAG_LOOKALIKES, *ODD_TEXT)), st.text(max_size=6))
_CALLS = st.sampled_from(
    [
        '{"name": "search", "arguments": {"queries": ["Mira plays"]}}',
        '{"name": "calculator", "arguments": {"expression": "1 + 1"}}',
        '{"name": "search", "arguments": "{\\"queries\\": [\\"<answer>x</answer>\\"]}"}',
    ]
)
_BLOCKS = st.recursive(
    st.one_of(_TEXT, _CALLS),
    lambda inner: st.one_of(
        st.builds("<{0}>{1}</{0}>".format, st.sampled_from(list(TAGS.values())), inner),
        st.builds("<{0}>{2}</{1}>".format, *[st.sampled_from(list(TAGS.values()))] * 2, inner),
        st.builds("{}{}".format, inner, inner),
        st.builds(lambda text, cut: text[:cut], inner, st.integers(0, 30)),
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=60)
@given(outputs=st.lists(_BLOCKS, min_size=1, max_size=6), seed=st.integers(0, 5))
def test_nested_and_crossing_blocks_break_no_promise(name: str, outputs: list[str], seed: int) -> None:
    env = _ENVS.setdefault(name, make(name))
    before, _ = env.reset(seed=seed)
    for output in outputs:
        before, ended = check_output(env, output, before)
        if ended:
            before, _ = env.reset()


_ENVS: dict[str, MemoryEnv] = {}


def test_play_is_a_function_of_the_seed() -> None:
    first, again, other = (fuzz_env(make(mempo_env.MULTI_GOAL_ID), 400, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    tools = [tool.spec for tool in make(mempo_env.MULTI_GOAL_ID).tools]
    one, two = (OutputFuzzer(tools, random.Random(5)) for _ in range(2))
    assert [one.output("x") for _ in range(200)] == [two.output("x") for _ in range(200)]


class _Raw(MultiGoalEnv):
    """Shows tool results as they are."""

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        return (observation | {"tool_result": observation["tool_result"].replace("&lt;", "<")}, *rest)


class _Leaky(MultiGoalEnv):
    """Shows what was written two turns ago."""

    last = ""

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        shown, self.last = f"{observation['tool_result']} {self.last}", action.encode(errors="replace").decode()
        return (observation | {"tool_result": mempo_env.tools.escape_tags(shown)}, *rest)


class _LastMemory(MultiGoalEnv):
    """Stores the last memory block, not the first."""

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        if action.count("</mem>") > 1:
            observation |= {"memory": action.split("</mem>")[-2].split("<mem>")[-1]}
        return (observation, *rest)


class _Uncut(MultiGoalEnv):
    """Does not cut memories."""

    def step(self, action: str) -> Any:
        self.token_counter.truncate = lambda text, n: text  # type: ignore[method-assign]
        return super().step(action)


class _Brittle(MultiGoalEnv):
    def step(self, action: str) -> Any:
        if "\x1b" in action:
            raise ValueError("an escape")
        return super().step(action)


class _Faulty(MultiGoalEnv):
    """Blames the infrastructure for what the agent wrote."""

    def _call(self, call: Any) -> str:
        if not isinstance(call.arguments.get("queries"), list):
            raise mempo_env.InfrastructureError("bad request")
        return super()._call(call)


@pytest.mark.parametrize(
    ("cheat", "message"),
    [
        (_Raw, "a tag of ours stands in 'tool_result'"),
        (_Leaky, "carries over what an earlier output said"),
        (_LastMemory, "the memory is not the one the agent wrote"),
        (_Uncut, "over its cap"),
        (_Brittle, "ValueError: an escape; after"),
        (_Faulty, "caused a fault"),
    ],
)
def test_a_planted_breach_is_found(cheat: type[MultiGoalEnv], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        fuzz_env(cheat(budget={"memory_tokens": 30}), 4000, long_share=0.001)


def test_the_tools_of_an_environment_are_called_by_their_schema() -> None:
    tools: list[Tool] = list(make(mempo_env.MULTI_GOAL_ID).tools)
    fuzzer = OutputFuzzer([tool.spec for tool in tools], random.Random(0))
    outputs = [fuzzer.output() for _ in range(400)]
    assert all(any(f'"name": "{tool.spec.name}"' in output for output in outputs) for tool in tools)
