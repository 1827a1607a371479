"""Tables of the study, from the JSON files of its cells.

Intervals: over seeds a t interval of the mean; differences between arms are taken seed by seed, on the same warm start
and test tasks, and then over seeds. Within a seed, over tasks, the bootstrap.

Invariant: how many seeds are in stands in every row, and cells that are missing or diverged are named.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .cells import ARMS, REGIMES, SEEDS, STUDY, Cell, Scale
from .runner import read_cell

T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t at 97.5 %, by degrees of freedom."""


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over seeds; (nan, nan) for fewer than two.

    >>> [round(bound, 3) for bound in t_interval([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    """
    if len(values) < 2:
        return math.nan, math.nan
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    return mean - T_975[len(values) - 1] * error, mean + T_975[len(values) - 1] * error


def f1_at(evaluation: Mapping[str, Any], goals: int) -> float:
    """Mean F1 (%) over the tasks of one number of goals that ended without a fault."""
    values = [value for value in evaluation[str(goals)]["episodes"]["f1"] if value is not None]
    return statistics.mean(values) if values else math.nan


def mean_f1(evaluation: Mapping[str, Any]) -> float:
    """Mean over the numbers of goals of the mean F1 (%)."""
    return statistics.mean(f1_at(evaluation, int(goals)) for goals in evaluation)


def pooled_share(evaluation: Mapping[str, Any], goals: int, above: str, below: str) -> float:
    """Sum of one count over the sum of another, such as facts kept of facts had; nan where there is nothing."""
    episodes = evaluation[str(goals)]["episodes"]
    top, bottom = (sum(value for value in episodes[name] if value is not None) for name in (above, below))
    return top / bottom if bottom else math.nan


def show(
    cells: Sequence[Cell],
    out: Path,
    scale: Scale,
    console: Console,
    settled: Callable[[Cell], Cell | None],
) -> None:
    """Prints F1 by arm and number of goals, with differences from the warm start and from GRPO, and what is missing."""
    seeds = [seed for seed in SEEDS if any(cell.seed == seed for cell in cells)]
    warm = {seed: read_cell(out, Cell("warm", seed), scale) for seed in seeds}
    missing = [f"warm-{seed}" for seed, found in warm.items() if found is None]
    goals = scale.test_goals
    header = "| policy | seeds | " + " | ".join(f"{n} goals" for n in goals) + " | kept | Q(m) |"
    for regime in REGIMES:
        results: dict[str, dict[int, dict[str, Any]]] = {}
        for cell in cells:
            if cell.regime != regime or cell.kind not in ("train", "tuned"):
                continue
            ready = settled(cell)
            found = read_cell(out, ready, scale) if ready is not None else None
            label = cell.arm + (" (tuned)" if cell.kind == "tuned" else "")
            if found is not None:
                results.setdefault(label, {})[cell.seed] = found["evaluations"]["after"]
                missing += [f"{cell.name} (diverged)"] if found["diverged"] else []
            elif cell.kind == "train":
                missing.append(cell.name)
        console.print(f"\n{regime}: F1 in %, mean over seeds (95 % t interval)\n", markup=False)
        console.print(header + "\n" + "|---" * (len(goals) + 4) + "|", markup=False)
        for name in ("before", "imitation", "expert"):
            rows = {seed: found["evaluations"][name] for seed, found in warm.items() if found is not None}
            if rows:
                console.print(_row({"before": "warm start"}.get(name, name), rows, goals), markup=False)
        start = {seed: found["evaluations"]["before"] for seed, found in warm.items() if found is not None}
        for label, rows in results.items():
            console.print(_row(label, rows, goals), markup=False)
        for label, rows in results.items():
            for other, theirs in (("warm start", start), ("grpo", results.get("grpo", {}))):
                both = sorted(set(rows) & set(theirs))
                if both and label != other:
                    console.print(_difference(f"{label} - {other}", rows, theirs, both, goals), markup=False)
    console.print(f"\nmissing or diverged: {', '.join(missing) or 'none'}", markup=False)


def _row(label: str, rows: Mapping[int, Any], goals: Sequence[int]) -> str:
    cells = []
    for n in goals:
        values = [f1_at(row, n) for row in rows.values()]
        low, high = t_interval(values)
        cells.append(f"{statistics.mean(values):.1f} ({low:.1f} to {high:.1f})")
    kept = [pooled_share(row, n, "kept", "had") for row in rows.values() for n in goals]
    quality = [_quality(row) for row in rows.values()]
    cells += [f"{_mean(kept):.3f}", f"{_mean(quality):.3f}"]
    return f"| {label} | {len(rows)} | " + " | ".join(cells) + " |"


def _difference(
    label: str, ours: Mapping[int, Any], theirs: Mapping[int, Any], seeds: Sequence[int], goals: Sequence[int]
) -> str:
    cells = []
    for n in goals:
        values = [f1_at(ours[seed], n) - f1_at(theirs[seed], n) for seed in seeds]
        low, high = t_interval(values)
        cells.append(f"{statistics.mean(values):+.1f} ({low:+.1f} to {high:+.1f})")
    return f"| {label} | {len(seeds)} | " + " | ".join(cells) + " | | |"


def _quality(evaluation: Mapping[str, Any]) -> float:
    """Mean Q(m) over all memories of an evaluation; nan where none was scored."""
    some = [part["episodes"].get("quality", []) for part in evaluation.values()]
    return _mean([value for column in some for episode in column if episode is not None for value in episode])


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.mean(known) if known else math.nan


__all__ = ["ARMS", "STUDY", "f1_at", "mean_f1", "pooled_share", "show", "t_interval"]
