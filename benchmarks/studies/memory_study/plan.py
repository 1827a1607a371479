"""How long cells take, and how they are shared out.

The minutes were measured on the default arms, on ``history`` and on the language model. Further arms are taken to be as
long as the default ones: of seed 0 those of ``easy`` took 4 to 5 minutes and those of ``hard`` 7 to 11, but for
``unguarded-paper``, whose collapsed policy played to the last turn for 23.

Invariant: the shards of a matrix are disjoint, together they are the matrix, and they depend on nothing that was run.
"""

from __future__ import annotations

from collections.abc import Sequence

from .cells import STUDY, Cell, Scale
from .real import REGIME

WARM_MINUTES = {"tiny": 14.0, "smollm2": 45.0}
"""By preset."""
STEP_SECONDS = {"easy": 4.0, "sparse": 4.0, "hard": 10.0, "long": 10.0, REGIME: 420.0}
"""By regime."""
EVALUATION_MINUTES = {"tiny": 1.5, "smollm2": 6.0}
TUNE_EVALUATION_MINUTES = 0.4
HISTORY_WARM, HISTORY = 1.3, 1.9
"""How many times as long a warm start and any other cell take where the full history is kept."""


def minutes(cell: Cell, scale: Scale = STUDY) -> float:
    """About how many minutes of one core a cell takes, its warm start not included."""
    preset = scale.base.preset
    if cell.kind == "warm":
        return WARM_MINUTES[preset] * (HISTORY_WARM if cell.context == "history" else 1)
    steps = scale.tune_steps if cell.kind == "tune" else scale.steps
    evaluation = TUNE_EVALUATION_MINUTES if cell.kind == "tune" else EVALUATION_MINUTES[preset]
    usual = steps[cell.regime] * STEP_SECONDS[cell.regime] / 60 + evaluation
    return usual * (HISTORY if cell.context == "history" else 1)


def warm_starts(cells: Sequence[Cell]) -> list[Cell]:
    """The warm starts that cells begin from, or are, each once."""
    return list(dict.fromkeys(cell.warm for cell in cells))


def shard(cells: Sequence[Cell], part: int, parts: int, scale: Scale = STUDY) -> list[Cell]:
    """The cells of one shard: a stretch of the list, all about equally long, so that few warm starts are shared.

    Args:
        cells: The matrix.
        part: Which shard, from 1.
        parts: How many there are.
        scale: How much is run.

    Returns:
        Its cells, in order.
    """
    total, passed, chosen = sum(minutes(cell, scale) for cell in cells), 0.0, []
    for cell in cells:
        middle = passed + minutes(cell, scale) / 2
        if min(int(middle / total * parts), parts - 1) == part - 1:
            chosen.append(cell)
        passed += minutes(cell, scale)
    return chosen
