"""Pictures of an evaluation: scores and tokens by number of goals, tokens by turn, and the histogram of Q(m).

Invariant: legible in print and in light and dark pages: an opaque light background, and context strategies that differ
in lightness, line style and marker. Whiskers and bands are 95 % intervals over episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mempo_env.metrics import bootstrap_interval
from mempo_env.records import Episode

from ..agents.eval_rows import HISTORY_TOKENS, QUALITY, EvaluationRow, RowKey, memory_metric

LOOKS = (  # colour, line style, marker
    ("#0b5fa5", "-", "o"),
    ("#9a6b00", "--", "s"),
    ("#3f8f4f", "-.", "^"),
    ("#a23b72", ":", "D"),
    ("#555555", (0, (5, 1)), "v"),
    ("#c0504d", (0, (3, 1, 1, 1)), "P"),
)
_FIXED = {"memory": 0, "history": 1}
_METRICS = (("f1", "F1, %"), ("total_tokens", "total tokens (TT)"), ("peak_tokens", "peak tokens (PT)"))


def look(name: str, names: Sequence[str]) -> tuple[Any, Any, str]:
    """Colour, line style and marker of a context strategy; ``memory`` and ``history`` always have the same."""
    others = [other for other in names if other not in _FIXED]
    place = _FIXED[name] if name in _FIXED else len(_FIXED) + others.index(name)
    return LOOKS[place % len(LOOKS)]


def plot_evaluation(
    folder: Path, episodes: Mapping[RowKey, Sequence[Episode]], rows: Sequence[EvaluationRow]
) -> list[Path]:
    """Draws what there is to draw; a picture per budget.

    Args:
        folder: Where to; made if it is missing.
        episodes: By row.
        rows: Their rows.

    Returns:
        The pictures' paths.
    """
    folder.mkdir(exist_ok=True)
    made = []
    for budget in dict.fromkeys(row.budget for row in rows):
        safe = "".join(sign if sign.isalnum() else "-" for sign in budget)
        some = [row for row in rows if row.budget == budget]
        made.append(_by_goals(folder / f"goals-{safe}.png", budget, some))
        chosen = {key: played for key, played in episodes.items() if key.budget == budget}
        made.append(_by_turn(folder / f"turns-{safe}.png", budget, chosen))
    values: dict[str, list[float]] = {}
    for key, played in episodes.items():
        if some_values := quality_values(played):
            values.setdefault(f"{key.agent}, {key.context}", []).extend(some_values)
    if values:
        made.append(plot_quality(folder / "memory_quality.png", values))
    return made


def quality_values(episodes: Iterable[Episode]) -> list[float]:
    """Q(m) of every memory whose quality was noted."""
    return [value for episode in episodes if episode.error is None for value in memory_metric(episode, QUALITY)]


def plot_quality(path: Path, values: Mapping[str, Sequence[float]]) -> Path:
    """Histogram of Q(m) in bins of a tenth: a curve of steps for each name, as shares of its memories."""
    figure = _figure(7.5, 4.2)
    axis: Any = figure.subplots()
    edges = [tenth / 10 for tenth in range(11)]
    for place, (name, some) in enumerate(values.items()):
        colour, style, _ = LOOKS[place % len(LOOKS)]
        counts = [0] * 10
        for value in some:
            counts[min(int(value * 10), 9)] += 1
        shares = [100 * count / len(some) for count in counts]
        axis.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.8, label=f"{name} (n = {len(some)})")
    axis.set(title="Memory quality", xlabel="Q(m)", ylabel="memories, %", xlim=(0, 1))
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path)
    return path


def _by_goals(path: Path, budget: str, rows: Sequence[EvaluationRow]) -> Path:
    agents = list(dict.fromkeys(row.agent for row in rows))
    contexts = list(dict.fromkeys(row.context for row in rows))
    figure = _figure(4.2 * len(agents) + 0.8, 8.4)
    axes: Any = figure.subplots(len(_METRICS), len(agents), squeeze=False, sharex=True, sharey="row")
    for column, agent in enumerate(agents):
        for line, (metric, label) in enumerate(_METRICS):
            axis = axes[line, column]
            for context in contexts:
                some = sorted(
                    (row for row in rows if (row.agent, row.context) == (agent, context) and row.episodes),
                    key=lambda row: row.goals,
                )
                _whiskers(axis, some, metric, context, contexts)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
        axes[0, column].set_title(agent)
        axes[-1, column].set_xlabel("goals per task")
    for axis in axes[:, 0]:  # shared by a row, and after all is drawn: a limit that is set is no longer fitted
        axis.set_ylim(bottom=0)
    axes[0, 0].set_ylim(top=103)  # F1, %
    if axes[0, 0].has_data():
        axes[0, 0].legend(frameon=False)
    figure.suptitle(f"Budget {budget}, means with 95 % intervals")
    figure.savefig(path)
    return path


def _whiskers(axis: Any, rows: Sequence[EvaluationRow], metric: str, context: str, contexts: Sequence[str]) -> None:
    if not rows:
        return
    colour, style, marker = look(context, contexts)
    means = [getattr(row, metric) for row in rows]
    intervals = [row.interval(metric) for row in rows]
    # Rounding can put a bound a hair beyond the mean, which matplotlib refuses.
    low = [max(mean - interval[0], 0.0) for mean, interval in zip(means, intervals, strict=True)]
    high = [max(interval[1] - mean, 0.0) for mean, interval in zip(means, intervals, strict=True)]
    goals = [row.goals for row in rows]
    axis.errorbar(
        goals, means, yerr=[low, high], label=context or "-", color=colour, linestyle=style, marker=marker, capsize=3
    )


def _by_turn(path: Path, budget: str, episodes: Mapping[RowKey, Sequence[Episode]]) -> Path:
    """Tokens of each call at the largest number of goals, means over the episodes still running."""
    agents = list(dict.fromkeys(key.agent for key in episodes))
    contexts = list(dict.fromkeys(key.context for key in episodes))
    most = max(key.goals for key in episodes)
    figure = _figure(4.6 * len(agents) + 0.8, 4.2)
    axes: Any = figure.subplots(1, len(agents), squeeze=False, sharey=True)
    for axis, agent in zip(axes[0], agents, strict=True):
        chosen = {key.context: played for key, played in episodes.items() if (key.agent, key.goals) == (agent, most)}
        for context, played in chosen.items():
            calls = [[turn.n_prompt + turn.n_output for turn in episode.turns] for episode in _valid(played)]
            _band(axis, calls, context or "-", look(context, contexts))
        if "history" not in chosen and "memory" in chosen:
            priced = [[turn.info.get(HISTORY_TOKENS) for turn in episode.turns] for episode in _valid(chosen["memory"])]
            known = [[value for value in some if isinstance(value, int)] for some in priced if None not in some]
            _band(axis, known, "the same with history", look("history", contexts))
        axis.set(title=agent, xlabel="turn")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(frameon=False, fontsize=8)
    axes[0, 0].set_ylabel("input + output tokens")
    axes[0, 0].set_ylim(bottom=0)  # after all is drawn: see above
    figure.suptitle(f"Tokens of a call, {most} goals, budget {budget}")
    figure.savefig(path)
    return path


def _band(axis: Any, calls: Sequence[Sequence[float]], label: str, looks: tuple[Any, Any, str]) -> None:
    """A line with its band over episodes of different lengths."""
    longest = max(map(len, calls), default=0)
    by_turn = [[some[t] for some in calls if t < len(some)] for t in range(longest)]
    if not by_turn:
        return
    colour, style, marker = looks
    turns = range(1, longest + 1)
    bounds = [bootstrap_interval(values) for values in by_turn]
    axis.plot(
        turns, [sum(v) / len(v) for v in by_turn], color=colour, linestyle=style, marker=marker, label=label, ms=4
    )
    axis.fill_between(turns, [low for low, _ in bounds], [high for _, high in bounds], color=colour, alpha=0.2, lw=0)


def _valid(episodes: Iterable[Episode]) -> list[Episode]:
    return [episode for episode in episodes if episode.error is None]


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, facecolor="white", layout="constrained")
