"""The pictures of the study: F1 by number of goals, learning curves, and where Q(m) lies before and after.

Invariant: as in ``mempo_env.algos.plots``: an opaque light background, colours that differ in lightness, and different
line styles; every line says how many seeds it is of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arms import ARMS
from .estimates import over_seeds
from .measures import costs, f1_at, mean, qualities
from .study import TUNED, Study

STYLES = {
    "warm start": ("#9a6b00", "--"),
    "imitation of the expert": ("#777777", ":"),
    "grpo": ("#3f8f4f", "-."),
    "mempo": ("#0b5fa5", "-"),
    f"mempo{TUNED}": ("#08306b", (0, (6, 1, 1, 1, 1, 1))),
    "mempo-paper": ("#7fb2de", "-"),
    "shuffled": ("#b03060", "--"),
}
BINS = 20


def by_goals(study: Study, path: Path) -> None:
    """F1 by number of goals, one panel per regime, with t intervals over seeds from three seeds on."""
    figure, axes = _figure(1, len(study.regimes), height=4.4)
    for axis, regime in zip(axes[0], study.regimes, strict=True):
        lines = {"warm start": study.start(""), "imitation of the expert": study.start("", "imitation")}
        lines |= {label: study.after(regime.name, label) for label in _shown(study, regime.name)}
        for place, (label, found) in enumerate(lines.items()):
            if not found:
                continue
            points = [over_seeds([f1_at(one, n) for one in found.values()]) for n in study.scale.test_goals]
            colour, style = STYLES[label]
            low = [0.0 if math.isnan(p.low) else max(p.mean - p.low, 0.0) for p in points]
            high = [0.0 if math.isnan(p.high) else max(p.high - p.mean, 0.0) for p in points]
            axis.errorbar(
                [n + 0.08 * (place - len(lines) / 2) for n in study.scale.test_goals],  # bars side by side
                [p.mean for p in points],
                yerr=[low, high],
                label=f"{label}, {len(found)} seeds",
                color=colour,
                linestyle=style,
                marker="o",
                markersize=4,
                capsize=3,
            )
        axis.axvspan(*regime.goals, color="#000000", alpha=0.06, linewidth=0, label="trained on")
        axis.set(title=f"{regime.name}: {regime.goals[0]} to {regime.goals[1]} goals, {regime.outcome}")
        axis.set(xlabel="goals of a test task", ylabel="F1, %", ylim=(0, 100), xticks=study.scale.test_goals)
        _finish(axis)
    figure.savefig(path)


def learning(study: Study, path: Path) -> None:
    """F1 of training episodes by update, sampled token and CPU second: running means over five, mean over seeds."""
    figure, axes = _figure(len(study.regimes), 3)
    for row, regime in zip(axes, [one.name for one in study.regimes], strict=True):
        for label in _shown(study, regime):
            cells = list(study.arms[regime][label].values())
            spent = [costs(cell["training"]) for cell in cells]
            length = min(len(one["steps"]) for one in spent)
            f1 = [_running([100 * (v or 0.0) for v in cell["training"]["rollout/f1"]]) for cell in cells]
            y = [mean([one[i] for one in f1]) for i in range(length)]
            for axis, unit in zip(row, ("steps", "tokens", "cpu"), strict=True):
                x = [mean([one[unit][i] for one in spent]) for i in range(length)]
                colour, style = STYLES[label]
                axis.plot(x, y, label=f"{label}, {len(cells)} seeds", color=colour, linestyle=style)
        for axis, words in zip(row, ("updates", "sampled tokens", "CPU seconds"), strict=True):
            axis.set(title=regime, xlabel=words, ylabel="F1 of training episodes, %")
            _finish(axis)
    figure.savefig(path)


def quality_bins(study: Study, path: Path) -> None:
    """Share of memories by Q(m), before and after, over all numbers of goals and seeds."""
    figure, axes = _figure(1, len(study.regimes))
    edges = [i / BINS for i in range(BINS + 1)]
    for axis, regime in zip(axes[0], [one.name for one in study.regimes], strict=True):
        lines = {"warm start": study.start("")}
        lines |= {label: study.after(regime, label) for label in _shown(study, regime)}
        for label, found in lines.items():
            values = [q for one in found.values() for q in qualities(one, study.scale.test_goals)]
            if values:
                weights = [1 / len(values)] * len(values)
                colour, style = STYLES[label]
                words = f"{label}, {len(found)} seeds"
                axis.hist(values, edges, weights=weights, histtype="step", color=colour, linestyle=style, label=words)
        axis.set(title=regime, xlabel="Q(m)", ylabel="share of memories")
        _finish(axis)
    figure.savefig(path)


def _shown(study: Study, regime: str) -> list[str]:
    """The default arms before tuning, and MemPO after it: all of them twice could not be told apart."""
    names = [name for name, arm in ARMS.items() if arm.default]
    names.insert(names.index("mempo") + 1, f"mempo{TUNED}")
    return [name for name in names if study.arms.get(regime, {}).get(name)]


def _running(values: Sequence[float], window: int = 5) -> list[float]:
    """Mean of each value and the ones before it, at most ``window`` in all.

    >>> _running([0.0, 2.0, 4.0], window=2)
    [0.0, 1.0, 3.0]
    """
    return [mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]


def _figure(rows: int, columns: int, height: float = 3.6) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, height * rows), dpi=90, facecolor="white", layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _finish(axis: Any) -> None:
    axis.grid(alpha=0.3)
    if axis.has_data():
        axis.legend(frameon=False, fontsize=6.5)
