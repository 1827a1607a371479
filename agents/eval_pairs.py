"""Two rows over the same tasks: paired differences in scores and costs, and what was saved in tokens.

Invariants:
    * only one and the same task is ever paired, and what has no partner is counted: a reset seed names a task only
      within one environment, so the task itself is compared;
    * a task with a fault on either side is left out of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mempo_env.metrics import bootstrap_interval, bootstrap_ratio_interval
from mempo_env.records import Episode

from .eval_rows import HISTORY_TOKENS, RowKey, episode_metrics, finite
from .history_cost import saving_bound

COMPARED = ("f1", "em", "success", "total_tokens", "peak_tokens", "turns")
"""Metrics whose differences are shown."""
HISTORY = "history"
"""The context strategy that keeps everything: what savings are measured against."""


@dataclass(frozen=True)
class Paired:
    """One row against another, over the tasks that both played.

    Attributes:
        row: Whose difference it is.
        reference: From what.
        tasks: Tasks that both played without a fault.
        left_out: Tasks that only one of them played, or on which one had a fault.
        other_tasks: Reset seeds that both played, but which gave them different tasks.
        differences: By metric the mean of row - reference: points for scores in %, tokens for costs.
        intervals: Their 95 % bootstrap intervals over tasks.
    """

    row: RowKey
    reference: RowKey
    tasks: int
    left_out: int
    other_tasks: int
    differences: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]

    def flat(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "row": vars(self.row),
            "reference": vars(self.reference),
            "tasks": self.tasks,
            "left_out": self.left_out,
            "other_tasks": self.other_tasks,
            **{name: finite(value) for name, value in self.differences.items()},
            **{f"{name}_interval": finite(interval) for name, interval in self.intervals.items()},
        }


@dataclass(frozen=True)
class Saving:
    """Tokens saved against full history, beside the bound on what can be.

    Attributes:
        row: Who saved.
        measured: Whether history was played, too; otherwise the row's own episodes were priced as if every earlier turn
            had stayed in the chat.
        tasks: Tasks compared.
        calls: Mean number C of calls whose result was shown later.
        total: Share of TT saved, from the sums over tasks; negative where it cost more.
        total_interval: Its 95 % bootstrap interval over tasks.
        peak: Share of PT saved.
        peak_interval: Its interval.
        bound: Largest share of TT that can be saved where equally long tool results are all that costs; equals
            1 - 2 / (C + 1) where every episode has C calls.
        f1: Paired difference in F1, in points; 0 where the same episodes were priced.
        f1_interval: Its interval.
    """

    row: RowKey
    measured: bool
    tasks: int
    calls: float
    total: float
    total_interval: tuple[float, float]
    peak: float
    peak_interval: tuple[float, float]
    bound: float
    f1: float
    f1_interval: tuple[float, float]

    def flat(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: finite(value) for name, value in vars(self).items() if name != "row"} | {"row": vars(self.row)}


Pairs = list[tuple[Episode, Episode]]


def same_tasks(ours: Sequence[Episode], theirs: Sequence[Episode]) -> tuple[Pairs, int, int]:
    """Pairs episodes by number of goals and reset seed.

    Args:
        ours: Episodes of one row; no two of one seed.
        theirs: Episodes of the other.

    Returns:
        The pairs without a fault, in our order; how many tasks were left out; how many seeds gave different tasks.
    """
    places = {(len(episode.task.goals), episode.seed): episode for episode in theirs}
    pairs, left_out, other = [], 0, 0
    for episode in ours:
        partner = places.pop((len(episode.task.goals), episode.seed), None)
        if partner is not None and _question(partner) != _question(episode):
            other += 1
        elif partner is None or episode.error is not None or partner.error is not None:
            left_out += 1
        else:
            pairs.append((episode, partner))
    return pairs, left_out + len(places), other


def paired(row: RowKey, ours: Sequence[Episode], reference: RowKey, theirs: Sequence[Episode]) -> Paired:
    """The differences of one row from another; NaN where no task is left."""
    pairs, left_out, other = same_tasks(ours, theirs)
    measured = [(episode_metrics(one), episode_metrics(two)) for one, two in pairs]
    values = {name: [one[name] - two[name] for one, two in measured] for name in COMPARED}
    return Paired(
        row,
        reference,
        len(pairs),
        left_out,
        other,
        {name: _mean(some) for name, some in values.items()},
        {name: bootstrap_interval(some) for name, some in values.items()},
    )


def row_pairs(rows: Mapping[RowKey, Sequence[Episode]]) -> list[Paired]:
    """The pairs of an evaluation's own table.

    Within one agent, budget and number of goals every context is set against full history, or, where that was not
    played, against the context that comes first; and every agent against the one that comes first, under the same
    context, budget and number of goals.

    Args:
        rows: Episodes by row, in the order of the table.
    """
    found = []
    for key, episodes in rows.items():
        others = [other for other in rows if (other.goals, other.budget) == (key.goals, key.budget)]
        contexts = [other for other in others if other.agent == key.agent]
        agents = [other for other in others if other.context == key.context]
        full = [other for other in contexts if other.context == HISTORY]
        for reference in dict.fromkeys(((full or contexts)[0], agents[0])):
            if reference != key:
                found.append(paired(key, episodes, reference, rows[reference]))
    return found


def savings(rows: Mapping[RowKey, Sequence[Episode]]) -> list[Saving]:
    """What each row saved against full history: as it was played where it was, else as its own episodes are priced.

    Args:
        rows: Episodes by row.

    Returns:
        One entry per row with something to compare, in order; ``history`` itself has none.
    """
    found = []
    for key, episodes in rows.items():
        if key.context == HISTORY:
            continue
        against = RowKey(key.agent, HISTORY, key.budget, key.goals)
        saving = _saving_measured(key, episodes, rows[against]) if against in rows else _saving_priced(key, episodes)
        if saving is not None:
            found.append(saving)
    return found


def _saving_measured(key: RowKey, ours: Sequence[Episode], theirs: Sequence[Episode]) -> Saving | None:
    pairs, _, _ = same_tasks(ours, theirs)
    if not pairs:
        return None
    one, two = ([episode_metrics(pair[side]) for pair in pairs] for side in (0, 1))
    f1 = [mine["f1"] - other["f1"] for mine, other in zip(one, two, strict=True)]
    totals, peaks = (
        [(mine[name], other[name]) for mine, other in zip(one, two, strict=True)]
        for name in ("total_tokens", "peak_tokens")
    )
    return _saving(key, True, [episode for episode, _ in pairs], totals, peaks, f1)


def _saving_priced(key: RowKey, ours: Sequence[Episode]) -> Saving | None:
    valid = [episode for episode in ours if episode.error is None and _history_tokens(episode)]
    if not valid:
        return None
    metrics, prices = [episode_metrics(episode) for episode in valid], [_history_tokens(episode) for episode in valid]
    totals = [(mine["total_tokens"], float(sum(price))) for mine, price in zip(metrics, prices, strict=True)]
    peaks = [(mine["peak_tokens"], float(max(price))) for mine, price in zip(metrics, prices, strict=True)]
    return _saving(key, False, valid, totals, peaks, [0.0] * len(valid))


def _saving(
    key: RowKey,
    measured: bool,
    episodes: Sequence[Episode],
    totals: Sequence[tuple[float, float]],
    peaks: Sequence[tuple[float, float]],
    f1: Sequence[float],
) -> Saving:
    """From (ours, history's) costs per task."""
    # The last turn's result is shown to nobody.
    calls = [sum(bool(turn.observation["tool_result"]) for turn in episode.turns) for episode in episodes]
    shares = [_share(costs) for costs in (totals, peaks)]
    return Saving(
        key,
        measured,
        len(episodes),
        _mean(calls),
        *shares[0],
        *shares[1],
        bound=saving_bound(calls),
        f1=_mean(f1),
        f1_interval=bootstrap_interval(f1),
    )


def _share(costs: Sequence[tuple[float, float]]) -> tuple[float, tuple[float, float]]:
    """1 - ours / history's, of the sums, with its interval."""
    ours, theirs = [one for one, _ in costs], [two for _, two in costs]
    if not sum(theirs) > 0:  # a server that counts no tokens
        return math.nan, (math.nan, math.nan)
    low, high = bootstrap_ratio_interval(ours, theirs)
    return 1 - sum(ours) / sum(theirs), (1 - high, 1 - low)


def _history_tokens(episode: Episode) -> list[int]:
    """The noted price of each call under full history; empty where it was not noted."""
    found = [turn.info.get(HISTORY_TOKENS) for turn in episode.turns]
    return [value for value in found if isinstance(value, int)] if None not in found else []


def _question(episode: Episode) -> tuple[object, ...]:
    return tuple((goal.question, goal.answers) for goal in episode.task.goals)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
