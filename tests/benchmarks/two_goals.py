"""A task with a one-hop and a two-hop goal, whose facts are counted by hand in several test files."""

from __future__ import annotations

from typing import Any

from mempo_env.actions import ToolCall
from mempo_env.records import Episode, Evidence, Goal, Task, Turn

TASK = Task(
    goals=(
        Goal("Ada plays what?", ("chess",), evidence=(Evidence("Ada plays", "Ada plays chess", "Ada"),)),
        Goal(
            "Ben trusts someone who eats what?",
            ("rice",),
            kind="two-hop",
            evidence=(
                Evidence("Ben trusts", "Ben trusts Cy", "Ben"),
                Evidence("Cy eats", "Cy eats rice", "Cy", after=0),
            ),
        ),
    ),
    id="t",
)

CALL = ToolCall("search", {"queries": ["Ada plays"]})


def turn(result: str, memory: str, action: Any, written: bool = True, **info: object) -> Turn:
    """A turn of the task that saw this result and left this memory."""
    observation = {"task": TASK.text, "memory": "", "tool_result": result, "budget": ""}
    return Turn(observation, "", action, 0.0, {}, memory, written, 10, 5, info={"tool_calls": 1, **info})


def episode(*turns: Turn, **changes: Any) -> Episode:
    """An episode of the task with half of its goals right."""
    scores = {"em": 0.5, "f1": 0.5, "success": 0.0}
    return Episode(turns, TASK, "g", 0, 7, 0.5, True, False, scores=scores).replace(**changes)
