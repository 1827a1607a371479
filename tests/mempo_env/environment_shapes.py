"""Proper environments of other shapes than ours: no tools, a tool with a place of its own, a tool with two arguments.

What the conformance kit is tried on, and what environments that break a promise are made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mempo_env import Goal, MemoryEnv, Task, Tool, ToolArgumentError, ToolSpec


class Sums(MemoryEnv):
    """No tools at all."""

    def sample_task(self, rng: np.random.Generator) -> Task:
        numbers = [rng.integers(10, size=2).tolist() for _ in range(self.draw_goals(rng))]
        return Task(tuple(Goal(f"{a} + {b}?", (str(a + b),)) for a, b in numbers))


class Counter:
    """A tool with a place of its own."""

    spec = ToolSpec("next", "Counts on.", {"type": "object", "properties": {}})

    def __init__(self) -> None:
        self.at = 0

    def call(self, arguments: dict[str, Any]) -> str:
        if arguments:
            raise ToolArgumentError("next takes no arguments.")
        self.at += 1
        return str(self.at)


class Counting(Sums):
    stateful = True

    def __init__(self, **memory_env: Any) -> None:
        super().__init__(**memory_env)
        self.counter = Counter()

    @property
    def tools(self) -> Sequence[Tool]:
        return (self.counter,)

    def prepare(self, task: Task) -> None:
        self.counter.at = 0


class Shelf:
    """A tool with two arguments, neither of them a list of queries."""

    spec = ToolSpec(
        "take",
        "Takes from a shelf.",
        {
            "type": "object",
            "properties": {"shelf": {"type": "integer", "minimum": 1}, "side": {"enum": ["left", "right"]}},
            "required": ["shelf", "side"],
        },
    )

    def call(self, arguments: dict[str, Any]) -> str:
        shelf, side = arguments.get("shelf"), arguments.get("side")
        if type(shelf) is not int or not 1 <= shelf <= 9 or str(side).strip() not in ("left", "right"):
            raise ToolArgumentError("take takes a shelf from 1 to 9 and a side, left or right.")
        return f"{side} {shelf}: a book"


class Shelves(Sums):
    shelf: Tool = Shelf()

    @property
    def tools(self) -> Sequence[Tool]:
        return (self.shelf,)
