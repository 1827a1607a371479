"""What a run leaves for its reader: the tables, ``summary.json``, the picture.

Invariant: everything shown is read from files in the run folder, so that it can be rendered again without running
again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mempo_env import MULTI_GOAL_ID
from mempo_env.metrics import bootstrap_interval

from ..agents.episodes_io import iterate_episodes
from ..agents.eval_rows import EvaluationRow
from .config import RunConfig
from .logs import TIME, read_metrics
from .stored import StoredEvaluation, load_evaluation

EVALUATIONS = ("before", "after", "imitation", "expert")
"""Names of a run's evaluations: the warm start, the trained policy, and the two ceilings."""
_STEP_PARTS = ("sampling", "scoring", "update")


def write_report(config: RunConfig, run: Path, console: Console) -> None:
    """Prints the tables, writes ``summary.json`` and ``plot.png``, says where everything is."""
    from .plots import plot_curves, plot_run

    stored = {name: load_evaluation(run / "eval" / f"{name}.json") for name in EVALUATIONS}
    seconds = run_seconds(run)
    before, after = stored["before"], stored["after"]
    if before is not None and after is not None:
        console.print(comparison_table(config, stored))
        if after.history:
            console.print(history_table(after))
    if "update" in seconds:
        parts = ", ".join(f"{name} {seconds[name]:.2f}" for name in _STEP_PARTS)
        console.print(f"seconds a step: {parts}")
    if "imitation_s" in seconds:
        phases = ", ".join(f"{name[:-2]} {value:.0f}" for name, value in seconds.items() if name.endswith("_s"))
        console.print(f"seconds in all: {phases}")
    summary: dict[str, Any] = {
        "algo": config.algo,
        "preset": config.preset,
        "seed": config.seed,
        "trained_goals": list(config.goal_range),
        "seconds": seconds,
        **{name: None if found is None else _summary(found) for name, found in stored.items()},
    }
    if before is not None and after is not None:
        low, high = config.goal_range
        trained = [row.goals for row in before.rows if low <= row.goals <= high]
        gains = [gain(before, after, [row.goals]) for row in before.rows]
        closed = [
            gap_closed(old, row, _row(stored["imitation"], row.goals))
            for old, row in zip(before.rows, after.rows, strict=True)
        ]
        summary["gains"] = [
            _gain(one) | {"gap_closed": _number(share)} for one, share in zip(gains, closed, strict=True)
        ]
        if trained:
            together = gain(before, after, trained)
            summary["gain"] = _gain(together)
            console.print(
                f"F1 over {', '.join(map(str, trained))} goals: {together.f1:+.1f} points (95 % interval "
                f"{together.interval[0]:+.1f} to {together.interval[1]:+.1f}, paired by task)"
            )
    (run / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False), encoding="utf-8")
    plot_run(run, stored)
    plots = [run / "plot.png", plot_curves(run), plot_run_quality(run)]
    shown = "".join(f"plot        {path}\n" for path in plots if path is not None)
    console.print(f"run folder  {run}\n{shown}checkpoint  {run / 'checkpoints'}", soft_wrap=True)


def plot_run_quality(run: Path) -> Path | None:
    """Writes ``memory_quality.png``, the histogram of Q(m) before and after training.

    Args:
        run: The run folder.

    Returns:
        The picture; None where the stored episodes hold no Q(m): an older run, or one without an evaluation.
    """
    from .eval_plots import plot_quality, quality_values

    values = {}
    for name, label in (("before", "warm start"), ("after", "trained")):
        path = run / "eval" / f"{name}.episodes.jsonl.gz"
        if path.exists() and (found := quality_values(iterate_episodes(path))):
            values[label] = found
    return plot_quality(run / "memory_quality.png", values) if values else None


def comparison_table(config: RunConfig, stored: Mapping[str, StoredEvaluation | None]) -> Table:
    """The table a run ends with: per number of goals the warm start, the trained policy and the ceilings."""
    before, after = stored["before"], stored["after"]
    assert before is not None
    assert after is not None
    imitation = stored.get("imitation")
    asked = config.dataset if config.env.rpartition(":")[2] == MULTI_GOAL_ID else config.env
    table = Table(
        title=f"{config.algo} on {asked}, {config.eval.split} tasks never trained on "
        f"({'greedy' if config.eval.greedy else 'sampled'})",
        caption="F1, success (every goal right) in %, F1 with 95 % interval; imitation: of the perfect expert, with as "
        "many steps as the warm start; gap: share of the distance from warm start to imitation that was closed; TT, "
        "PT: total and peak tokens, means over n episodes.\n"
        f"Q(m) {before.quality.mean:.3f} -> {after.quality.mean:.3f}",
        box=box.SIMPLE_HEAD,
    )
    table.padding, table.collapse_padding, table.pad_edge = (0, 1), True, False  # it must fit 80 columns
    for name in ("goals", "policy", "F1", "EM", "success", "gap", "TT", "PT", "n"):
        table.add_column(name, justify="left" if name == "policy" else "right", no_wrap=name in ("policy", "F1"))
    labels = {"before": "warm start", "after": config.algo, "imitation": "imitation", "expert": "expert"}
    for place, old in enumerate(before.rows):
        for name, label in labels.items():
            found = stored.get(name)
            if found is None:
                continue
            row = found.rows[place]
            closed = gap_closed(old, row, _row(imitation, row.goals)) if name == "after" else math.nan
            table.add_row(
                str(row.goals) if name == "before" else "",
                label,
                f"{row.f1:.1f} ({row.f1_interval[0]:.3g}-{row.f1_interval[1]:.3g})",
                f"{row.em:.1f}",
                f"{row.success:.0f}",
                "" if math.isnan(closed) else f"{closed:.0%}",
                f"{row.total_tokens:.0f}",
                f"{row.peak_tokens:.0f}",
                f"{row.episodes}" + (f" + {row.errors} errors" if row.errors else ""),
            )
        table.add_section()
    return table


def history_table(after: StoredEvaluation) -> Table:
    """What full history would have cost for the trained policy's episodes, beside the bound on what can be saved."""
    table = Table(
        title="The same episodes with full history",
        caption="bound: most of TT that could be saved if tool results were all that costs, 1 - 2 / (C + 1) for C "
        "calls",
        box=box.SIMPLE_HEAD,
    )
    for name in ("goals", "C", "TT memory", "history", "saved", "bound", "PT memory", "history", "saved"):
        table.add_column(name, justify="right")
    for goals, cost in sorted(after.history.items()):
        n = cost.episodes
        table.add_row(
            str(goals),
            f"{cost.calls:.1f}",
            f"{cost.memory_total / n:.0f}",
            f"{cost.history_total / n:.0f}",
            f"{cost.saving_total:.0%}",
            f"{cost.bound:.0%}",
            f"{cost.memory_peak / n:.0f}",
            f"{cost.history_peak / n:.0f}",
            f"{cost.saving_peak:.0%}",
        )
    return table


def gap_closed(before: EvaluationRow, after: EvaluationRow, ceiling: EvaluationRow | None) -> float:
    """Share of the distance from the warm start's F1 to a ceiling's that training closed; NaN where there is none."""
    if ceiling is None or not ceiling.f1 > before.f1:
        return math.nan
    return (after.f1 - before.f1) / (ceiling.f1 - before.f1)


@dataclass(frozen=True)
class Gain:
    """What training gained in F1 over the same tasks, paired by task; tasks with a fault on either side are left out.

    Attributes:
        goals: Numbers of goals that are taken together.
        f1: Mean difference, in points.
        interval: Its 95 % bootstrap interval.
    """

    goals: tuple[int, ...]
    f1: float
    interval: tuple[float, float]


def gain(before: StoredEvaluation, after: StoredEvaluation, goals: Sequence[int]) -> Gain:
    """The gain in F1 at some numbers of goals, taken together; NaN where no task is left."""
    pairs = [pair for n in goals for pair in zip(before.f1[n], after.f1[n], strict=True)]
    differences = [new - old for old, new in pairs if not math.isnan(new - old)]
    mean = sum(differences) / len(differences) if differences else math.nan
    return Gain(tuple(goals), mean, bootstrap_interval(differences))


def run_seconds(run: Path) -> dict[str, float]:
    """Where a run's time went: mean seconds of each part of a step, and the sum over its phases (``.._s``)."""
    steps = read_metrics(run, "train")
    seconds: dict[str, float] = {}
    for name in _STEP_PARTS:
        values = [step[f"time/{name}_s"] for step in steps if f"time/{name}_s" in step]
        if values:
            seconds[name] = sum(values) / len(values)
    for line in read_metrics(run, TIME):
        for name, value in line.items():
            if name.endswith("_s"):
                seconds[name] = seconds.get(name, 0.0) + value
    return seconds


def _gain(found: Gain) -> dict[str, Any]:
    return {
        "goals": list(found.goals),
        "f1": _number(found.f1),
        "interval": [_number(bound) for bound in found.interval],
    }


def _summary(stored: StoredEvaluation) -> dict[str, Any]:
    scores, costs = ("f1", "em", "success"), ("total_tokens", "peak_tokens", "turns", "tool_calls")
    fields = ("goals", *scores, *costs, "episodes", "errors")
    return {
        "quality": _number(stored.quality.mean),
        "quality_above_0.8": _number(stored.quality.above),
        "rows": [
            {name: _number(getattr(row, name)) for name in fields}
            | {"f1_interval": [_number(bound) for bound in row.f1_interval]}
            for row in stored.rows
        ],
        "history": [
            {
                "goals": goals,
                "saving_total": c.saving_total,
                "saving_peak": c.saving_peak,
                "bound": c.bound,
                "calls": c.calls,
            }
            for goals, c in sorted(stored.history.items())
        ],
    }


def _row(stored: StoredEvaluation | None, goals: int) -> EvaluationRow | None:
    return None if stored is None else next((row for row in stored.rows if row.goals == goals), None)


def _number(value: float) -> float | None:
    """NaN, a mean over nothing, has no JSON form."""
    return None if math.isnan(value) else value
