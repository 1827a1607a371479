"""What all checks share: the environment under test with fresh copies of it, a checked ``reset`` and ``step``.

Invariant: ``step`` holds every promise that a single step can be seen to break, so that whatever is played is checked.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from gymnasium.utils.env_checker import data_equivalence

from mempo_env.actions import parse
from mempo_env.env import MemoryEnv
from mempo_env.records import Observation, Task
from mempo_env.tools import ToolResultError, escape_tags

from .outputs import outputs_for

StepResult = tuple[Observation, float, bool, bool, dict[str, Any]]
_INFO = ("action", "memory_written", "memory_truncated", "format_error", "reward_components", "outcome", "tool_calls")
_SCORES = ("em", "f1", "success")
_SHOWN = 100  # characters of a value in a message


def broken(what: str, mend: str) -> AssertionError:
    """The error of a broken promise: what was seen, and what the author does about it."""
    return AssertionError(f"{what}. Mend: {mend}")


def shown(value: object) -> str:
    """A value in a message, cut."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}.."


@dataclass
class Subject:
    """The environment under test.

    Attributes:
        env: As it was given; checks play on copies.
        seed: Seed of the episodes played.
    """

    env: MemoryEnv
    seed: int

    def __post_init__(self) -> None:
        env: object = self.env
        if not isinstance(env, MemoryEnv):
            raise AssertionError(f"{type(env).__name__} must be a MemoryEnv without wrappers; give env.unwrapped")
        if "budget" not in vars(env):
            raise broken(
                f"{type(env).__name__} has no budget",
                "call super().__init__(**memory_env) in its __init__, before anything else",
            )
        try:
            self._pickled = pickle.dumps(env)
            pickle.loads(self._pickled)
        except Exception as error:
            raise broken(
                f"{type(env).__name__} cannot be pickled: {error}",
                "define it and its hook at the top of a module, keep no lambda, lock or open file in it; what "
                "prepare() makes again can be left out in __getstate__ and made again in __setstate__",
            ) from error

    def fresh(self) -> MemoryEnv:
        """A copy of the environment as it was given."""
        return cast(MemoryEnv, pickle.loads(self._pickled))

    @property
    def outputs(self) -> list[str]:
        """What is played."""
        return outputs_for(self.env.tools)


def start(env: MemoryEnv, seed: int | None = None, task: Task | None = None) -> tuple[Observation, dict[str, Any]]:
    """Resets and checks what comes back."""
    try:
        result: Any = env.reset(seed=seed, options=None if task is None else {"task": task})
    except Exception as error:
        raise broken(
            f"reset(seed={seed}) raised {type(error).__name__}: {error}",
            "sample_task and prepare must work for every generator state and for every task they are given",
        ) from error
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise broken(f"reset returned {shown(result)}", "return (observation, info), as super().reset does")
    observation, info = result
    if not isinstance(info.get("task"), Task):
        raise broken("reset's info has no 'task'", "leave reset to MemoryEnv, or hand on the info of super().reset")
    _check_observation(env, observation, "reset")
    if observation["memory"]:
        raise broken(
            f"a new episode begins with the memory {shown(observation['memory'])}", "leave the memory to MemoryEnv"
        )
    return observation, info


def step(env: MemoryEnv, output: str, memory: str | None = None) -> StepResult:
    """Steps and checks the result.

    Args:
        env: The environment.
        output: What is played.
        memory: The memory before the step; None: not known.

    Returns:
        The result.

    Raises:
        AssertionError: A promise is broken.
    """
    after = f"after {shown(output)}"
    try:
        result: Any = env.step(output)
    except ToolResultError as error:
        raise broken(
            f"{after} {error}",
            "return the text that the agent is to read, such as str(result) or json.dumps(result); also where there is "
            "nothing to tell",
        ) from error
    except Exception as error:
        raise broken(
            f"{after} step raised {type(error).__name__}: {error}",
            "step takes any string: a tool raises ToolArgumentError for arguments it cannot use, whatever their types, "
            "and score takes any strings",
        ) from error
    if not (isinstance(result, tuple) and len(result) == 5):
        raise broken(
            f"{after} step returned {shown(result)}", "return (observation, reward, terminated, truncated, info)"
        )
    observation, reward, terminated, truncated, info = cast(StepResult, result)
    _check_observation(env, observation, after)
    if terminated and truncated:
        raise broken(
            f"{after} the episode is both terminated and truncated",
            "an answer terminates, a limit or a fault truncates; where both come at once, it is terminated",
        )
    if missing := [name for name in _INFO if name not in info]:
        raise broken(f"{after} info has no {missing}", "add to the info of super().step, and take nothing out")
    if missing := [name for name in _SCORES if terminated and name not in info]:
        raise broken(f"{after} info has no {missing}", "score returns AnswerScores; leave the rest to MemoryEnv")
    parts = info["reward_components"]
    if not all(isinstance(part, int | float) and math.isfinite(part) for part in parts.values()):
        raise broken(f"{after} the reward parts are {parts}", "every part is a finite number")
    if reward != sum(parts.values()):
        raise broken(
            f"{after} the reward {reward} is not the sum of its parts {parts}",
            "give a reward of your own as reward_hook, or add it to info['reward_components'] too",
        )
    if info["tool_calls"] > env.budget.max_tool_calls:
        raise broken(
            f"{after} {info['tool_calls']} calls were made, the budget is {env.budget.max_tool_calls}",
            "leave the calls to MemoryEnv: they are counted before a tool runs",
        )
    if memory is not None:
        _check_memory(env, output, memory, observation["memory"], after)
    return observation, reward, terminated, truncated, info


def play(env: MemoryEnv, outputs: Sequence[str], seed: int) -> list[Any]:
    """Plays outputs from a seed, starting new episodes as they end; returns all that came back."""
    observation, info = start(env, seed)
    record: list[Any] = [(observation, info)]
    running = True
    for output in outputs:
        if not running:
            observation, info = start(env)
            record.append((observation, info))
        result = step(env, output, observation["memory"])
        observation = result[0]
        record.append(result)
        running = not (result[2] or result[3])
    return record


def difference(ours: Any, theirs: Any, path: str = "") -> str:
    """Where two results differ, with both values; empty if they are equal."""
    if type(ours) is not type(theirs):
        return f"{path}: {shown(ours)} against {shown(theirs)}"
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return f"{path}: the keys {sorted(map(str, ours))} against {sorted(map(str, theirs))}"
        found = (difference(ours[name], theirs[name], f"{path}[{name!r}]") for name in ours)
        return next((text for text in found if text), "")
    if isinstance(ours, list | tuple) and len(ours) == len(theirs):
        rows = (difference(one, other, f"{path}[{i}]") for i, (one, other) in enumerate(zip(ours, theirs, strict=True)))
        return next((text for text in rows if text), "")
    same = data_equivalence(ours, theirs, exact=True) if isinstance(ours, np.ndarray) else bool(ours == theirs)
    return "" if same else f"{path}: {shown(ours)} against {shown(theirs)}"


def first_difference(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    """The first place where two records of ``play`` differ, in words of an episode; empty if there is none."""
    names = ("observation", "reward", "terminated", "truncated", "info")
    for at, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        fields = names if len(one) == len(names) else ("observation", "info")
        for name, left, right in zip(fields, one, other, strict=True):
            if text := difference(left, right, name):
                return f"{'step' if len(one) == len(names) else 'reset'} at place {at} of the record, {text}"
    return ""


def _check_observation(env: MemoryEnv, observation: Any, after: str) -> None:
    if observation not in env.observation_space:
        raise broken(
            f"{after} the observation {shown(observation)} is not in observation_space",
            "it is a dict of four texts, task, memory, tool_result and budget: leave it to MemoryEnv",
        )
    for name, text in observation.items():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise broken(
                f"{after} '{name}' holds lone surrogates, which no tokenizer takes: {shown(text)}",
                "pass text that did not come through MemoryEnv through mempo_env.tools.escape_tags",
            ) from error
        if name != "memory" and escape_tags(text) != text:  # the memory is the agent's own writing
            raise broken(
                f"{after} '{name}' shows tags of the protocol as they came: {shown(text)}",
                "pass text that did not come through MemoryEnv through mempo_env.tools.escape_tags",
            )
    if env.token_counter.count(observation["memory"]) > env.budget.memory_tokens:
        raise broken(
            f"{after} the memory is over its cap of {env.budget.memory_tokens} tokens",
            "leave the memory to MemoryEnv, and the counter's truncate must cut to at most n tokens by its own count",
        )


def _check_memory(env: MemoryEnv, output: str, before: str, stored: str, after: str) -> None:
    written = parse(output).memory
    if written is None or env.memory_mode == "off":
        expected = before
    else:
        expected = env.token_counter.truncate(written, env.budget.memory_tokens)
    if stored != expected:
        raise broken(
            f"{after} the memory is {shown(stored)}, but the agent wrote {shown(expected)}",
            "the memory is what the agent wrote and nothing else; leave it to MemoryEnv",
        )
