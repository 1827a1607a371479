"""Budgets of an episode, with the two named sets of the sources.

Invariant: a budget bounds every episode (``max_turns`` is finite). Whoever spends every turn on a call has none left to
answer: under ``paper`` that is the sixteenth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .errors import UserError, unknown_name

_LIMITS = ("max_tool_calls", "max_turns", "queries_per_call", "memory_tokens")


@dataclass(frozen=True)
class Budget:
    """Limits of one episode.

    Attributes:
        name: How reports call it.
        max_tool_calls: Tool calls an episode may make; a call beyond is a format error.
        max_turns: Turns after which the episode is truncated, format errors included.
        queries_per_call: Queries one search call may carry.
        memory_tokens: Longest memory that is stored; a longer one is cut and flagged.
    """

    name: str = "brief"
    max_tool_calls: int = 5
    max_turns: int = 8
    queries_per_call: int = 5
    memory_tokens: int = 256

    def __post_init__(self) -> None:
        for field in _LIMITS:
            if getattr(self, field) < 1:
                raise ValueError(f"budget {self.name}: {field} must be at least 1, not {getattr(self, field)}")
        if self.max_turns < 2:
            raise ValueError(f"budget {self.name}: max_turns must be at least 2, one to ask and one to answer")


# Source of `brief`: the article on the paper (at most 5 tool calls, 256 memory tokens). Ours, since it is silent: five
# queries a call, so that ten two-hop goals (20 queries) fit into 25, and 2 turns beside the calls and the answer for
# format errors.
BRIEF = Budget("brief", max_tool_calls=5, max_turns=8, queries_per_call=5, memory_tokens=256)
# Source of `paper`: arXiv 2603.00680 (at most 16 turns); one query a call; the cap on the memory is
# ours, since the paper reports none.
PAPER = Budget("paper", max_tool_calls=16, max_turns=16, queries_per_call=1, memory_tokens=256)
BUDGETS = {budget.name: budget for budget in (BRIEF, PAPER)}


def get_budget(budget: str | Budget | Mapping[str, str | int], **changes: int) -> Budget:
    """Looks a budget up by name.

    Args:
        budget: A name (``"brief"``, ``"paper"``), a budget of your own, or a mapping of the fields to change, with the
            ``name`` of the set to start from (default ``"brief"``): plain data, so that it fits into an ``EnvSpec``.
        **changes: Fields to change.

    Returns:
        The budget; one with changed fields is called by what it was made from, with a ``*``.

    Raises:
        UserError: A name or field is unknown, or a value is out of range.

    >>> get_budget("paper").max_turns
    16
    >>> get_budget({"name": "paper", "max_turns": 20})
    Budget(name='paper*', max_tool_calls=16, max_turns=20, queries_per_call=1, memory_tokens=256)
    """
    fields: dict[str, str | int] = {}
    if isinstance(budget, Mapping):
        fields = dict(budget)
        budget = str(fields.pop("name", "brief"))
    if isinstance(budget, str):
        if budget not in BUDGETS:
            raise unknown_name("budget", budget, BUDGETS)
        budget = BUDGETS[budget]
    fields |= changes
    for field, value in fields.items():
        if field not in _LIMITS:
            raise unknown_name("budget field", field, _LIMITS)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"budget {budget.name}: {field} must be a whole number, not {value!r}")
    if not fields:
        return budget
    try:
        return replace(budget, name=f"{budget.name}*", **fields)  # type: ignore[arg-type]
    except ValueError as problem:
        raise UserError(str(problem)) from None
