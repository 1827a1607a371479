"""Numbers of one cell, read off what its JSON file stores: means, shares, differences, correlations, budgets.

An evaluation is ``{"<goals>": {"episodes": {column: [one entry per task]}, "template_share": .., "history": ..}}``; an
entry is None where the episode ended on a fault.

Invariant: pure functions; what cannot be said is NaN, never 0.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

Evaluation = Mapping[str, Any]

HIGH_QUALITY = 0.8
"""A memory above it is in the highest bin of the paper's figure of P(answer | memory)."""
AT_EQUAL_TURN = "facts_held_at_equal_turn"
"""How an estimator goes with what a memory holds once its turn, and so how much had been shown, is taken out."""
GIVEN = {
    "turn, given facts shown and held": ("turn", ("facts_shown", "facts_held")),
    "facts held, given turn and facts shown": ("facts_held", ("turn", "facts_shown")),
}
"""Partial correlations of A^M: with what, and what is taken out of both."""
CIRCUMSTANCES = ("result_tokens", "calls", "turn", "memory_tokens", "facts_shown", "facts_held", "quality")
"""What A^M is correlated with: it should not follow the first four by itself, and should follow the last two."""
SIGNS = {
    "format_errors": ("format_errors", "turns"),
    "cut short": ("truncated", None),
    "answered early": ("early", None),
    "wrong number": ("wrong_number", None),
    "calls": ("tool_calls", None),
    "turns": ("turns", None),
    "same memory": ("memories_same", "memories"),
    "full memory": ("memories_full", "memories"),
    "repeated notes": ("notes_repeated", "notes"),
    "invented notes": ("notes_invented", "notes"),
}
"""Signs of collapse: a column summed, over another one or over the episodes."""


def mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN where there is none.

    >>> mean([1.0, math.nan, 3.0])
    2.0
    """
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def column(evaluation: Evaluation, goals: int, name: str) -> list[float]:
    """A column at one number of goals, without the episodes that have no entry."""
    episodes = evaluation[str(goals)]["episodes"]
    return [value for value in episodes.get(name, ()) if value is not None]


def at(evaluation: Evaluation, goals: int, name: str) -> float:
    """Mean of a column at one number of goals, such as ``f1`` in %."""
    return mean(column(evaluation, goals, name))


def f1_at(evaluation: Evaluation, goals: int) -> float:
    """Mean F1 (%) over the tasks of one number of goals that ended without a fault."""
    return at(evaluation, goals, "f1")


def at_right_number(evaluation: Evaluation, goals: int) -> float:
    """Mean F1 (%) over the tasks of one number of goals that were given as many answers; NaN where none was."""
    rows = evaluation[str(goals)]["episodes"]
    pairs = zip(rows["f1"], rows["wrong_number"], rows["truncated"], strict=True)
    return mean([f1 for f1, wrong, cut in pairs if f1 is not None and not wrong and not cut])


def mean_f1(evaluation: Evaluation) -> float:
    """Mean over the numbers of goals of the mean F1 (%)."""
    return statistics.mean(f1_at(evaluation, int(goals)) for goals in evaluation)


def pooled_share(evaluation: Evaluation, goals: Sequence[int], above: str, below: str) -> float:
    """Sum of one count over the sum of another, such as facts kept of facts had; NaN where there is nothing."""
    top, bottom = (sum(sum(column(evaluation, n, name)) for n in goals) for name in (above, below))
    return top / bottom if bottom else math.nan


def qualities(evaluation: Evaluation, goals: Sequence[int]) -> list[float]:
    """Q(m) of every memory that was written and scored."""
    return [
        q for n in goals for some in evaluation[str(n)]["episodes"].get("quality", ()) if some is not None for q in some
    ]


def quality(evaluation: Evaluation, goals: Sequence[int]) -> tuple[float, float]:
    """Mean Q(m), and the share of memories above ``HIGH_QUALITY``; NaN where none was scored."""
    found = qualities(evaluation, goals)
    return mean(found), mean([float(q > HIGH_QUALITY) for q in found])


def paired(ours: Evaluation, theirs: Evaluation, goals: int, name: str = "f1") -> list[float]:
    """Differences of a column, task by task, over the tasks that both ended without a fault.

    Args:
        ours: An evaluation.
        theirs: Another one of the same tasks.
        goals: Number of goals.
        name: Which column.

    Returns:
        ours - theirs, one per task that both have.
    """
    rows = [evaluation[str(goals)]["episodes"] for evaluation in (ours, theirs)]
    one, two = (dict(zip(row["seed"], row[name], strict=True)) for row in rows)
    return [value - two[seed] for seed, value in one.items() if value is not None and two.get(seed, None) is not None]


def gap_closed(before: float, after: float, ceiling: float) -> float:
    """Share of the distance from the start to a ceiling that was closed; NaN where the start is not below it.

    >>> gap_closed(20.0, 50.0, 80.0), gap_closed(90.0, 95.0, 80.0)
    (0.5, nan)
    """
    return (after - before) / (ceiling - before) if ceiling > before else math.nan


def saving(evaluation: Evaluation, goals: int) -> dict[str, float]:
    """What full history would have cost for the same episodes.

    Returns:
        ``total`` and ``peak``: TT and PT, means over episodes; ``history_total`` and ``history_peak``: the same had
        everything stayed in the chat; ``saved_total``, ``saved_peak``: shares; ``bound``: the most that can be saved of
        TT where equally long results are all that costs; NaN where nothing was priced.
    """
    names = ("total", "peak", "history_total", "history_peak", "saved_total", "saved_peak", "bound")
    found = evaluation[str(goals)].get("history")
    if not found:
        return dict.fromkeys(names, math.nan) | {
            "total": at(evaluation, goals, "total_tokens"),
            "peak": at(evaluation, goals, "peak_tokens"),
        }
    n = found["episodes"]
    return {
        "total": found["memory_total"] / n,
        "peak": found["memory_peak"] / n,
        "history_total": found["history_total"] / n,
        "history_peak": found["history_peak"] / n,
        "saved_total": 1 - found["memory_total"] / found["history_total"],
        "saved_peak": 1 - found["memory_peak"] / found["history_peak"],
        "bound": found["bound"],
    }


def signs(evaluation: Evaluation, goals: Sequence[int]) -> dict[str, float]:
    """Signs of collapse over some numbers of goals: ``SIGNS``, and ``template``, the commonest last memory's share."""
    found = {}
    for label, (above, below) in SIGNS.items():
        if below is not None:
            found[label] = pooled_share(evaluation, goals, above, below)
        else:
            values = [value for n in goals for value in column(evaluation, n, above)]
            found[label] = mean(values) / (100 if above == "truncated" else 1)
    templates = [evaluation[str(n)]["template_share"] for n in goals]
    found["template"] = mean([share for share in templates if share is not None])
    lengths = [
        n for g in goals for some in evaluation[str(g)]["episodes"].get("memory_tokens", ()) if some for n in some
    ]
    found["memory tokens"] = mean(lengths)
    return found


# Probes --------------------------------------------------------------------------------------------------------------


def within_groups(values: Sequence[float], groups: Sequence[Hashable]) -> list[float]:
    """Each value less its group's mean.

    >>> within_groups([1.0, 3.0, 5.0], [0, 0, 1])
    [-1.0, 1.0, 0.0]
    """
    members: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    means = {group: statistics.fmean(some) for group, some in members.items()}
    return [value - means[group] for value, group in zip(values, groups, strict=True)]


def correlation(one: Sequence[float], two: Sequence[float], groups: Sequence[Hashable]) -> float:
    """Pearson's correlation within groups; NaN where either does not vary there.

    A^M compares memories of one group, so that what differs between tasks is taken out first.
    """
    x, y = within_groups(one, groups), within_groups(two, groups)
    # Rounded means leave a little of a constant: what is that small is no variation.
    if len(x) < 2 or any(max(map(abs, values)) < 1e-9 for values in (x, y)):
        return math.nan
    return statistics.correlation(x, y)


def partial_correlation(
    one: Sequence[float], two: Sequence[float], given: Sequence[Sequence[float]], groups: Sequence[Hashable]
) -> float:
    """Pearson's correlation within groups of what is left of both once a line in ``given`` is taken out of each."""
    taken = np.array([within_groups(values, groups) for values in given]).T  # (M, K)

    def left(values: Sequence[float]) -> list[float]:
        y = np.array(within_groups(values, groups))  # (M,)
        return list(y - taken @ np.linalg.lstsq(taken, y, rcond=None)[0])

    return correlation(left(one), left(two), groups)


def same_turn(memories: Mapping[str, Sequence[Any]]) -> list[float]:
    """A^M of the baseline ``same_turn`` from what a probe stores of each memory; 0 where no other got that far.

    >>> same_turn({"group": [0] * 3, "turn": [0, 0, 1], "rollout": [0, 1, 0], "quality": [0.5, 0.25, 1.0]})
    [0.25, -0.25, 0.0]
    """
    rows = list(zip(*(memories[name] for name in ("group", "turn", "rollout", "quality")), strict=True))
    found = []
    for group, turn, rollout, quality in rows:
        others = [q for g, t, r, q in rows if (g, t) == (group, turn) and r != rollout]
        found.append(quality - statistics.fmean(others) if others else 0.0)
    return found


def estimators(probe: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Spread and correlations of every estimator's A^M over the memories of a probe.

    Returns:
        Per estimator ``variance`` of A^M over all memories, one correlation per entry of ``CIRCUMSTANCES``, and
        ``AT_EQUAL_TURN``: that with the facts held, among memories of one turn of a group; and those of ``GIVEN``.
    """
    memories = probe["memories"]
    if "quality" in memories and "same_turn" in names:  # not stored: it follows from what is
        memories = {**memories, "same_turn": same_turn(memories)}
    found: dict[str, dict[str, float]] = {}
    for name in names:
        values = memories.get(name, [])
        if len(values) < 2:
            continue
        groups = memories["group"]
        found[name] = {"variance": statistics.variance(values)} | {
            circumstance: correlation(values, memories[circumstance], groups) for circumstance in CIRCUMSTANCES
        }
        turns = [(group, turn) for group, turn in zip(groups, memories["turn"], strict=True)]
        found[name][AT_EQUAL_TURN] = correlation(values, memories["facts_held"], turns)
        for words, (what, out) in GIVEN.items():
            found[name][words] = partial_correlation(values, memories[what], [memories[k] for k in out], groups)
    return found


# Training ------------------------------------------------------------------------------------------------------------


def costs(training: Mapping[str, Sequence[Any]]) -> dict[str, list[float]]:
    """Cumulative cost after each update: ``steps``, ``tokens`` that were sampled, ``cpu`` seconds."""
    episodes, errors = training["rollout/episodes"], training["rollout/errors"]
    sampled = [
        (n - e) * (tokens or 0.0)
        for n, e, tokens in zip(episodes, errors, training["rollout/output_tokens"], strict=True)
    ]
    return {
        "steps": [float(step + 1) for step in training["step"]],
        "tokens": list(itertools.accumulate(sampled)),
        "cpu": list(itertools.accumulate(training["time/cpu_s"])),
    }


def at_budget(values: Sequence[float | None], spent: Sequence[float], budget: float, window: int = 5) -> float:
    """Mean of the last ``window`` values that had been paid for within a budget; NaN where nothing had.

    >>> at_budget([1.0, 2.0, 3.0, 4.0], [10, 20, 30, 40], 35, window=2)
    2.5
    """
    paid = [value for value, cost in zip(values, spent, strict=True) if cost <= budget and value is not None]
    return statistics.fmean(paid[-window:]) if paid else math.nan


def ends(values: Sequence[float | None], window: int = 5) -> tuple[float, float]:
    """Means of the first and of the last ``window`` values that there are.

    >>> ends([1.0, 3.0, None, 5.0], window=2)
    (2.0, 4.0)
    """
    known = [value for value in values if value is not None]
    return mean(known[:window]), mean(known[-window:])
