"""Environments whose tools are not what the contract says, for ``test_broken_promises.py``.

Every class here is a proper environment but for its ``tools``, or for the words beside them.
"""

from __future__ import annotations

from typing import Any

from mempo_env import Task, ToolSpec

from .environment_shapes import Counter, Shelf, Sums


class DictSpec:
    """Describes itself as other libraries have it."""

    spec = {"name": "ask", "description": "Asks.", "parameters": {"type": "object", "properties": {}}}  # noqa: RUF012

    def call(self, arguments: dict[str, Any]) -> str:
        return "nothing"


class Returning:
    """Returns whatever it is told to."""

    spec = ToolSpec("give", "Gives.", {"type": "object", "properties": {}})

    def __init__(self, result: Any) -> None:
        self.result = result

    def call(self, arguments: dict[str, Any]) -> Any:
        return self.result


class Offering(Sums):
    offered: Any = ()

    @property
    def tools(self) -> Any:
        return self.offered


class DictSpecs(Offering):
    offered = (DictSpec(),)


class OneTool(Offering):
    offered = Shelf()


class NoTools(Offering):
    offered = None


class ToolClass(Offering):
    offered = (Counter,)


class Number(Offering):
    offered = (Returning(7),)


class Nothing(Offering):
    offered = (Returning(None),)


class Rows(Offering):
    offered = (Returning(["a row"] * 1000),)


class Method(Sums):
    """Forgets ``@property``."""

    def tools(self) -> Any:  # type: ignore[override]
        return (Shelf(),)


class Late(Sums):
    """Makes its tool when the episode begins."""

    shelf: Any

    def prepare(self, task: Task) -> None:
        self.shelf = Shelf()

    @property
    def tools(self) -> Any:
        return (self.shelf,)


class NoList(Offering):
    class _Shelf(Shelf):
        spec = ToolSpec("take", "Takes.", {"type": "object", "properties": {"shelf": {}}, "required": None})

    offered = (_Shelf(),)


class Wordless(Sums):
    vocabulary: Any = None
