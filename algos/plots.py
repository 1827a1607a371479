"""The pictures of a run, from its files: ``plot.png`` for its reader, ``curves.png`` for who trains the next one.

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


PANELS = (  # title, metrics of ``metrics.jsonl`` with their labels, label of the axis
    ("Return", (("rollout/return", "return"), ("rollout/outcome", "outcome")), "mean over episodes"),
    ("Answers", (("rollout/f1", "F1"), ("rollout/em", "EM"), ("rollout/success", "every goal right")), "share"),
    ("Memory quality", (("memory/quality", "Q(m)"), ("memory/baseline", "baseline")), "mean over memories"),
    ("Distance from the reference", (("train/kl", "KL(policy || reference)"),), "nats a token"),
    ("Entropy", (("train/entropy", "entropy"),), "nats a token"),
    ("Gradient", (("train/grad_norm", "norm before clipping"),), "norm"),
    ("Play", (("rollout/turns", "turns"), ("rollout/tool_calls", "tool calls")), "mean over episodes"),
    ("Trouble", (("rollout/format_errors", "format errors"), ("rollout/truncated", "truncated")), "mean over episodes"),
)


def plot_curves(run: Path) -> Path | None:
    """Writes ``curves.png``: what was logged at every step of reinforcement learning; None if nothing was.

    Args:
        run: The run folder.
    """
    from matplotlib.figure import Figure

    lines = read_metrics(run, "train")
    if not lines:
        return None
    figure = Figure(figsize=(11, 9.6), dpi=110, facecolor="white", layout="constrained")
    axes: Any = figure.subplots(4, 2)
    for axis, (title, metrics, label) in zip(axes.flat, PANELS, strict=True):
        for (name, words), (colour, style) in zip(
            metrics, ((AFTER, "-"), (BEFORE, "--"), ("#3f8f4f", "-.")), strict=False
        ):
            known = [(line["step"] + 1, line[name]) for line in lines if line.get(name) is not None]
            if known:
                axis.plot(*zip(*known, strict=True), label=words, color=colour, linestyle=style)
        axis.set(title=title, xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(frameon=False, fontsize=8)
        else:
            axis.text(0.5, 0.5, "not logged by this algorithm", ha="center", va="center", transform=axis.transAxes)
    figure.savefig(run / "curves.png")
    return run / "curves.png"


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
