"""The picture of a run, from its files.

Invariant: legible at the width of a README, in light and dark: an opaque light background, colours that differ in
lightness, and different line styles.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .logs import read_metrics

if TYPE_CHECKING:
    from .stored import StoredEvaluation

BEFORE, AFTER = "#9a6b00", "#0b5fa5"
CURVES = (  # evaluation, label, colour, line style
    ("before", "warm start", BEFORE, "--"),
    ("after", "trained", AFTER, "-"),
    ("imitation", "imitation of the expert", "#777777", ":"),
    ("expert", "expert", "#bbbbbb", "-."),
)


def plot_run(run: Path, stored: Mapping[str, StoredEvaluation | None]) -> None:
    """Writes ``plot.png``: F1 over training, F1 by goals, Q(m) by turn, tokens by turn.

    Args:
        run: The run folder.
        stored: Evaluations by name: ``before`` (the warm start), ``after`` (the trained policy), and the ceilings
            ``imitation`` and ``expert``; any may be missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), dpi=110, facecolor="white", layout="constrained")
    axes: Any = figure.subplots(2, 2)
    _training_curve(axes[0, 0], read_metrics(run, "train"))
    for name, label, colour, style in CURVES:
        found = stored.get(name)
        if found is None:
            continue
        goals = [row.goals for row in found.rows]
        f1 = [row.f1 for row in found.rows]
        # Rounding can put a bound a hair beyond the mean, which matplotlib refuses.
        low = [max(row.f1 - row.f1_interval[0], 0.0) for row in found.rows]
        high = [max(row.f1_interval[1] - row.f1, 0.0) for row in found.rows]
        axes[0, 1].errorbar(
            goals, f1, yerr=[low, high], label=label, color=colour, linestyle=style, marker="o", capsize=3
        )
        if name not in ("before", "after"):
            continue
        most = max(found.quality.by_turn, default=0)
        for axis, by_turn in ((axes[1, 0], found.quality.by_turn), (axes[1, 1], found.tokens_by_turn)):
            values = by_turn.get(most, [])
            axis.plot(
                range(1, len(values) + 1),
                values,
                label=f"{label}, {most} goals",
                color=colour,
                linestyle=style,
                marker="o",
            )
    for axis, title, x, y in (
        (axes[0, 1], "Tasks never trained on", "goals per task", "F1, %"),
        (axes[1, 0], "Memory quality", "turn", "Q(m)"),
        (axes[1, 1], "Cost of a turn", "turn", "input + output tokens"),
    ):
        axis.set(title=title, xlabel=x, ylabel=y)
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)  # no half turns
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(frameon=False)
    figure.savefig(run / "plot.png")


def _training_curve(axis: Any, lines: list[dict[str, Any]]) -> None:
    steps = [line["step"] + 1 for line in lines if "rollout/f1" in line]
    f1 = [100 * line["rollout/f1"] for line in lines if "rollout/f1" in line]
    error = [100 * 1.96 * line.get("rollout/f1_standard_error", 0.0) for line in lines if "rollout/f1" in line]
    axis.plot(steps, f1, color=AFTER, label="F1 of sampled episodes")
    axis.fill_between(
        steps,
        [a - b for a, b in zip(f1, error, strict=True)],
        [a + b for a, b in zip(f1, error, strict=True)],
        color=AFTER,
        alpha=0.2,
        linewidth=0,
        label="95 % interval over tasks",
    )
    axis.set(title="Training", xlabel="step", ylabel="F1, %")
    axis.grid(alpha=0.3)
    if steps:
        axis.legend(frameon=False)
