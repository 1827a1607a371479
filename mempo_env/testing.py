"""Conformance checks for environments, ours and other people's; needs no test framework.

Invariant: ``check_memory_env`` passes only if the environment keeps Gymnasium's interface and the promises of
``mempo_env.env``: replay from a seed, any string as an action, memory as the only thing carried over, and
honest reward parts.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Sequence
from typing import Any, cast

from gymnasium.utils.env_checker import check_env, data_equivalence

from .env import MemoryEnv
from .errors import UserError
from .records import Observation

StepResult = tuple[Observation, float, bool, bool, dict[str, Any]]

HOSTILE_OUTPUTS: tuple[str, ...] = (
    "",
    " \n\t",
    "\x00",
    "\ud800",
    "<mem>",
    "</mem><mem></mem>",
    "<mem><answer>x</answer></mem>",
    "<mem>m</mem><answer></answer>",
    "<mem>m</mem><answer>;;;</answer>",
    "<mem>m</mem><tool_call>null</tool_call>",
    "<mem>m</mem><tool_call>[]</tool_call>",
    '<mem>m</mem><tool_call>{"name": 1}</tool_call>',
    '<mem>m</mem><tool_call>{"name": "no_such_tool"}</tool_call>',
    '<mem>m</mem><tool_call>{"name": "\\ud800", "arguments": {"\\ud800": "\\udfff"}}</tool_call>',
    '<mem>m</mem><tool_call>{"name": "x", "arguments": [1]}</tool_call>',
    "<mem>m</mem><tool_call>" + "[" * 100_000 + "</tool_call>",
    '<mem>m</mem><tool_call>{"name": ' + "9" * 5000 + "}</tool_call>",
    "<mem>m</mem><tool_call>NaN</tool_call>",
    "<mem>" + "long " * 20_000 + "</mem><think>",
    "<mem>été 文 \u202e😀</mem><|im_end|><|endoftext|>",
    "<tool_call></mem></tool_call>",
)
"""Outputs that break careless environments."""
_HOSTILE_ARGUMENTS: tuple[Any, ...] = (
    {},
    {"queries": []},
    {"queries": "one string"},
    {"queries": [""]},
    {"queries": [1, None]},
    {"queries": ["\ud800 <answer>x</answer>"]},
    {"queries": ["a"] * 1000},
    {"expression": "9**9**9**9"},
    {"expression": "__import__('os')"},
    {"expression": None},
    {"\ud800": {}},
)


def check_memory_env(env: MemoryEnv, seed: int = 0) -> None:
    """Checks an environment.

    Args:
        env: The environment, without wrappers; it is used up by this.
        seed: Seed of the episodes played.

    Raises:
        AssertionError: A promise is broken; the message says which one.
    """
    assert isinstance(env, MemoryEnv), f"{type(env).__name__} must be a MemoryEnv without wrappers; give env.unwrapped"
    _check_gymnasium(env)
    outputs = [*HOSTILE_OUTPUTS, *_hostile_calls(env)]
    _check_replay(env, outputs, seed)
    _check_pickling(env, seed)
    _check_memory_is_all(env, outputs, seed)
    _check_options(env)
    env.close()
    env.close()


def _check_gymnasium(env: MemoryEnv) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env, skip_render_check=env.spec is None)
    found = [str(warning.message) for warning in caught]
    assert not found, f"gymnasium's check_env warns: {found}"


def _hostile_calls(env: MemoryEnv) -> list[str]:
    return [
        f"<mem>m</mem><tool_call>{json.dumps({'name': tool.spec.name, 'arguments': arguments})}</tool_call>"
        for tool in env.tools
        for arguments in _HOSTILE_ARGUMENTS
    ]


def _play(env: MemoryEnv, outputs: Sequence[str], seed: int) -> list[Any]:
    """Plays outputs, starting new episodes as they end, and checks every step."""
    record: list[Any] = [env.reset(seed=seed)]
    running = True
    for output in outputs:
        if not running:
            record.append(env.reset())
        result = _step(env, output)
        record.append(result)
        running = not (result[2] or result[3])
    return record


def _step(env: MemoryEnv, output: str) -> StepResult:
    shown = repr(output if len(output) < 80 else f"{output[:80]}..")
    result: StepResult = env.step(output)
    observation, reward, terminated, truncated, info = result
    assert observation in env.observation_space, f"after {shown} the observation is not in the space: {observation}"
    for name, text in observation.items():
        assert text.isascii() or text.encode("utf-8"), name  # raises for lone surrogates
    assert not (terminated and truncated), f"after {shown} the episode is both terminated and truncated"
    assert reward == sum(info["reward_components"].values()), f"after {shown} the reward is not the sum of its parts"
    assert env.token_counter.count(observation["memory"]) <= env.budget.memory_tokens, f"{shown}: memory over its cap"
    return result


def _check_replay(env: MemoryEnv, outputs: Sequence[str], seed: int) -> None:
    twin = cast(MemoryEnv, pickle.loads(pickle.dumps(env)))
    first, second = _play(env, outputs, seed), _play(twin, outputs, seed)
    for at, (ours, theirs) in enumerate(zip(first, second, strict=True)):
        assert data_equivalence(ours, theirs, exact=True), f"seed {seed} does not replay: step {at} differs"


def _check_pickling(env: MemoryEnv, seed: int) -> None:
    env.reset(seed=seed)
    call = f'<tool_call>{{"name": "{env.tools[0].spec.name}", "arguments": {{"queries": ["a"]}}}}</tool_call>'
    env.step(f"<mem>kept</mem>{call}")
    twin = cast(MemoryEnv, pickle.loads(pickle.dumps(env)))
    outputs = [f"<mem>kept</mem>{call}", "<mem>kept</mem><answer>x</answer>", ""]
    ours, theirs = ([_step(each, output) for output in outputs[:2]] for each in (env, twin))
    assert data_equivalence(ours, theirs, exact=True), "a pickled copy goes on differently in the middle of an episode"
    assert data_equivalence(env.reset(), twin.reset(), exact=True), "a pickled copy draws another next task"


def _check_memory_is_all(env: MemoryEnv, outputs: Sequence[str], seed: int) -> None:
    """Two pasts that end in the same memory and the same call must look the same, however they began."""
    twin = cast(MemoryEnv, pickle.loads(pickle.dumps(env)))
    call = f'<tool_call>{{"name": "{env.tools[0].spec.name}", "arguments": {{"queries": ["b"]}}}}</tool_call>'
    for first in outputs:
        for each in (env, twin):
            each.reset(seed=seed)
        ours, theirs = _step(env, first), _step(twin, "<mem>another past</mem><think>other</think>")
        if any((*ours[2:4], *theirs[2:4])):
            continue
        after = [_step(each, f"<mem>the same</mem>{call}")[0] for each in (env, twin)]
        for name in ("task", "memory", "tool_result"):  # the budget may differ by the first call
            assert after[0][name] == after[1][name], f"'{name}' depends on more than memory and the last call"


def _check_options(env: MemoryEnv) -> None:
    _, info = env.reset(seed=1)
    observation, again = env.reset(options={"task": info["task"]})
    assert again["task"] == info["task"], "options={'task': ..} is not played"
    assert observation["memory"] == "", "a new episode begins with a memory"
    try:
        env.reset(options={"no such option": 1})
    except UserError:
        return
    raise AssertionError("an unknown reset option is accepted silently")
