"""How long cells take, and how they are shared out.

The minutes were measured on the default arms; further arms are taken to be as long, which was not measured.

Invariant: the shards of a matrix are disjoint, together they are the matrix, and they depend on nothing that was run.
"""

from __future__ import annotations

from collections.abc import Sequence

from .cells import STUDY, Cell

WARM_MINUTES = 14.0
STEP_SECONDS = {"easy": 2.6, "hard": 8.0}
EVALUATION_MINUTES = 1.5
TUNE_EVALUATION_MINUTES = 0.4


def minutes(cell: Cell) -> float:
    """About how many minutes of one core a cell takes, its warm start not included."""
    if cell.kind == "warm":
        return WARM_MINUTES
    steps = STUDY.tune_steps if cell.kind == "tune" else STUDY.steps
    evaluation = TUNE_EVALUATION_MINUTES if cell.kind == "tune" else EVALUATION_MINUTES
    return steps[cell.regime] * STEP_SECONDS[cell.regime] / 60 + evaluation


def shard(cells: Sequence[Cell], part: int, parts: int) -> list[Cell]:
    """The cells of one shard: a stretch of the list, all about equally long, so that few warm starts are shared.

    Args:
        cells: The matrix.
        part: Which shard, from 1.
        parts: How many there are.

    Returns:
        Its cells, in order.
    """
    total, passed, chosen = sum(map(minutes, cells)), 0.0, []
    for cell in cells:
        middle = passed + minutes(cell) / 2
        if min(int(middle / total * parts), parts - 1) == part - 1:
            chosen.append(cell)
        passed += minutes(cell)
    return chosen
