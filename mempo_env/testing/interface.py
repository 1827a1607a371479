"""Checks of what an environment is made of: class, spaces, tools, tasks, words, and Gymnasium's own checker.

Invariant: these checks play no episode beyond what Gymnasium's checker plays.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import check_env

from mempo_env.records import Task
from mempo_env.tools import Tool, ToolSpec

from .outputs import example
from .subject import Subject, broken, shown, start

_FIELDS = ("task", "memory", "tool_result", "budget")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


def interface_is_kept(subject: Subject) -> str:
    """Spaces, tools with their specs, and the tasks that are drawn."""
    env = subject.fresh()
    fields = getattr(env.observation_space, "spaces", {})
    if set(fields) != set(_FIELDS):
        raise broken(
            f"the fields of observation_space are {tuple(fields)}",
            f"keep the space of MemoryEnv, a Dict of {', '.join(_FIELDS)}: contexts and records know these",
        )
    if "any text" not in env.action_space:
        raise broken("action_space does not take any text", "keep the space of MemoryEnv, or another spaces.Unicode")
    tools = _listed(env, "tools")
    for tool in tools:
        if isinstance(tool, type):
            raise broken(f"tools has the class {tool.__name__}", f"give an object: {tool.__name__}(..)")
        if not isinstance(tool, Tool):
            raise broken(
                f"{shown(tool)} is no tool", "a tool has an attribute `spec`, a ToolSpec, and `call(arguments)`"
            )
        _check_spec(tool)
    names = [tool.spec.name for tool in tools]
    if len(set(names)) < len(names):
        raise broken(f"two tools have one name: {names}", "a call names its tool; give each its own")
    told = env.instructions
    for seed in range(4):
        _, info = start(env, subject.seed + seed)
        _check_task(info["task"], env.min_goals, env.max_goals)
        if [tool.spec for tool in env.tools] != [tool.spec for tool in tools] or env.instructions != told:
            raise broken(
                "the tools or the instructions change with the episode",
                "offer the same tools in every episode; what differs belongs into the task or into first_result",
            )
    rng = np.random.default_rng(subject.seed)
    task = env.sample_task(rng)
    if not isinstance(task, Task):
        raise broken(f"sample_task returned {shown(task)}", "return a mempo_env.Task")
    return ""


def words_are_words(subject: Subject) -> str:
    """``vocabulary`` and ``phrases``, from which a model built in place takes its tokens."""
    env = subject.fresh()
    words, phrases = list(_listed(env, "vocabulary")), list(_listed(env, "phrases"))
    for word in words:
        sign = isinstance(word, str) and len(word) == 1 and word.isascii() and not word.isspace()
        if not (isinstance(word, str) and (sign or _WORD.fullmatch(word))):
            raise broken(
                f"vocabulary has {shown(word)}, which is no single word",
                "give single words without spaces; pieces of text go into phrases",
            )
    if bad := [phrase for phrase in phrases if not (isinstance(phrase, str) and phrase)]:
        raise broken(f"phrases has {shown(bad[0])}", "give pieces of text that are not empty")
    for seed in range(2):
        start(env, subject.seed + seed)
        if (list(env.vocabulary), list(env.phrases)) != (words, phrases):
            raise broken(
                "vocabulary or phrases change with the episode",
                "a model's tokens are fixed when it is built: give the words of all tasks",
            )
    return ""


def gymnasium_agrees(subject: Subject) -> str:
    """Gymnasium's ``check_env``, without warnings."""
    env = subject.fresh()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_env(env, skip_render_check=env.spec is None)
        except Exception as error:
            raise broken(
                f"gymnasium's check_env fails: {error}", "see the message; it is about Gymnasium's API"
            ) from error
    if found := [str(warning.message) for warning in caught]:
        raise broken(f"gymnasium's check_env warns: {found}", "see the message; it is about Gymnasium's API")
    return ""


def _listed(env: Any, name: str) -> Sequence[Any]:
    """A property of the environment that holds several things, as it is read before the first reset."""
    try:
        value = getattr(env, name)
    except Exception as error:
        raise broken(
            f"reading {name} raised {type(error).__name__}: {error}",
            "it is read before the first reset: make in __init__ what it needs, and set that up in prepare",
        ) from error
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise broken(
            f"{name} is {shown(value)}, no list or tuple",
            f"make {name} a @property that returns a list or a tuple, of a single one, too: (one,)",
        )
    return value


def _check_spec(tool: Tool) -> None:
    spec: object = tool.spec
    if not isinstance(spec, ToolSpec):
        raise broken(
            f"the spec of tool {type(tool).__name__} is of type {type(spec).__name__}: {shown(spec)}",
            "make it a mempo_env.ToolSpec(name, description, parameters), with the JSON schema of the arguments as "
            "parameters",
        )
    if not (spec.name and isinstance(spec.name, str) and spec.description):
        raise broken(f"a tool's spec is {shown(spec)}", "give it a name and a description: the agent is shown both")
    try:
        json.dumps(spec.parameters)
        arguments = example(spec.parameters | {"type": "object"})
        unknown = set(spec.parameters.get("required", ())) - set(arguments)
    except Exception as error:
        raise broken(
            f"the parameters of tool {spec.name} are no JSON schema: {type(error).__name__}: {error}",
            'give {"type": "object", "properties": {..}, "required": [..]}',
        ) from error
    if unknown:
        raise broken(f"tool {spec.name} requires {sorted(unknown)}, which it does not describe", "add it to properties")


def _check_task(task: Task, low: int, high: int) -> None:
    if not low <= len(task.goals) <= high:
        raise broken(
            f"sample_task drew {len(task.goals)} goals; goals={low if low == high else (low, high)} was asked for",
            "draw as many as self.draw_goals(rng) says",
        )
