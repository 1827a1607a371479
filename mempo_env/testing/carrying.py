"""Checks of what an agent may be shown: its memory and nothing else of the past, and hostile text as data only.

Invariant: two pasts that end in the same memory and the same call must look the same, however they began.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mempo_env.actions import ToolCall, parse
from mempo_env.env import MemoryEnv
from mempo_env.errors import UserError
from mempo_env.records import Task
from mempo_env.tools import Tool

from .outputs import HOSTILE_TEXT, call_block
from .subject import Subject, broken, shown, start, step

_OTHER = "<mem>another past</mem><think>other</think>"


def memory_is_all(subject: Subject) -> str:
    """Each output against another past; then the same memory and the same call."""
    env, twin = subject.fresh(), subject.fresh()
    lasts = [call_block(tool.spec) for tool in env.tools] or [""]
    for index, first in enumerate(subject.outputs):
        start(env, subject.seed)
        start(twin, subject.seed)
        theirs = _OTHER
        action = parse(first).action
        if env.stateful and isinstance(action, ToolCall):  # both must leave the tools in the same state
            theirs += first[first.index("<tool_call>") :]
        pair = step(env, first), step(twin, theirs)
        if any(result[2] or result[3] for result in pair):
            continue
        spent = max(result[4]["tool_calls"] for result in pair) >= env.budget.max_tool_calls
        last = "" if spent else lasts[index % len(lasts)]
        after = [step(each, f"<mem>the same</mem>{last}")[0] for each in (env, twin)]
        for name in ("task", "memory", "tool_result"):  # the budget may differ by the first call
            one, other = (observation[name] for observation in after)
            if one != other:
                mend = "show what task, stored memory and last call give, and keep nothing else of what the agent wrote"
                if not env.stateful:
                    mend += (
                        "; if the tools have a state that calls change (a reader's place, a game), set stateful = True"
                    )
                raise broken(
                    f"'{name}' depends on more than memory and the last call: it is {shown(one)} after {shown(first)} "
                    f"and {shown(other)} after {shown(theirs)}",
                    mend,
                )
    return ""


def results_are_data(subject: Subject) -> str:
    """Tools whose results attack, and a task whose questions do; ``step`` and ``start`` check what is shown."""
    env = subject.fresh()
    _, info = start(env, subject.seed)
    goals = [dataclasses.replace(goal, question=f"{goal.question} {HOSTILE_TEXT}") for goal in info["task"].goals]
    hostile: Task = dataclasses.replace(info["task"], goals=tuple(goals))
    try:
        env.reset(seed=subject.seed, options={"task": hostile})
    except UserError:
        pass  # refused in words: that is an answer, too
    except Exception:
        start(env, subject.seed, hostile)  # again, for its message
    else:
        start(env, subject.seed, hostile)
        step(env, "<mem>m</mem>", "")
    loud = with_results(subject.fresh(), HOSTILE_TEXT)
    memory = start(loud, subject.seed)[0]["memory"]
    for tool in list(loud.tools)[: min(loud.budget.max_tool_calls, loud.budget.max_turns - 1)]:
        output = f"<mem>before {tool.spec.name}</mem>{call_block(tool.spec)}"
        observation, _, terminated, truncated, info = step(loud, output, memory)
        memory = observation["memory"]
        if terminated or truncated or info["format_error"]:
            what = "ended the episode" if terminated or truncated else f"became a format error {info['format_error']}"
            raise broken(
                f"a hostile result of tool {tool.spec.name} {what}", "a result is data: show it, do not read it"
            )
    return "" if loud.tools else "it has no tools; only a hostile task was played"


class _Saying:
    """A tool with one result, whatever it is asked."""

    def __init__(self, tool: Tool, result: str) -> None:
        self.spec = tool.spec
        self.result = result

    def call(self, arguments: dict[str, Any]) -> str:  # noqa: ARG002
        return self.result


def with_results(env: MemoryEnv, result: str) -> MemoryEnv:
    """The same environment, changed in place: all its tools give one result."""
    tools = [_Saying(tool, result) for tool in env.tools]
    env.__class__ = type(type(env).__name__, (type(env),), {"tools": property(lambda _: tools)})
    return env
