"""Tables that put what was found beside what the paper claims, whichever sign it has.

Invariant: a distance is what was found less what is claimed, from means over seeds.
"""

from __future__ import annotations

import math
from typing import Any

from .estimates import Estimate, apart, over_seeds
from .measures import Evaluation, at, f1_at, mean, quality, saving
from .study import TUNED, Study, alike, context_of
from .tables import PAPER_GOALS, STARTS, Table, difference

PAPER_BASE, PAPER_BEST = 25.98, 7.1
"""F1 over the base model and over the best earlier method, in points."""
PAPER_SAVED = (67.58, 73.12)
"""Tokens saved, in %; its abstract does not say which tokens either number is of, or against what."""


def distances(study: Study) -> Table:
    """What the paper claims beside what was found, whichever sign it has."""
    rows = []
    if PAPER_GOALS not in study.scale.test_goals:
        return Table("distances", "Distances to the paper's claims", ("claim",), [])
    for regime in (one.name for one in study.regimes):
        for label in ("mempo", "mempo-paper", f"mempo{TUNED}", f"mempo-paper{TUNED}"):
            ours = study.after(regime, label)
            grpo = study.after(regime, alike("grpo", label))
            if not ours:
                continue
            base, best = (difference(ours, theirs, PAPER_GOALS) for theirs in (study.start(label), grpo))
            one, two = (over_seeds([f1_at(e, PAPER_GOALS) for e in found.values()]) for found in (ours, grpo))
            rows.append(
                (
                    *(f"{regime}, {label}", str(len(ours))),
                    *(base.text(sign=True), _less(base, PAPER_BASE)),
                    *(best.text(sign=True), _less(best, PAPER_BEST)),
                    _word(apart(one, two)),
                    _word(best.excludes_zero),
                )
            )
    header = (
        *("regime, arm", "seeds", "over warm start", f"less {PAPER_BASE}", "over GRPO", f"less {PAPER_BEST}"),
        *("intervals of arm and GRPO apart", "paired interval without 0"),
    )
    title = (
        f"F1 at {PAPER_GOALS} goals, points, beside the paper's largest claims: {PAPER_BASE} over its base model, "
        f"{PAPER_BEST} over the best earlier method, which is not GRPO"
    )
    return Table("distances", title, header, rows)


def _less(found: Estimate, claim: float) -> str:
    return "-" if math.isnan(found.mean) else f"{found.mean - claim:+.1f}"


def _word(value: bool | None) -> str:
    return {None: "too few seeds", True: "yes", False: "no"}[value]


def token_distances(study: Study) -> Table:
    """Tokens saved against full history, with the bound for as many calls, and the share of high Q(m)."""
    rows = []

    def add(label: str, found: dict[int, Any]) -> None:
        some = [saving(one, PAPER_GOALS) for one in found.values()]
        names = ("saved_total", "bound", "saved_peak")
        saved = [over_seeds([100 * one[name] for one in some]) for name in names]
        high = over_seeds([100 * quality(one, (PAPER_GOALS,))[1] for one in found.values()])
        if not math.isnan(saved[1].mean):
            rows.append((label, str(len(found)), *(one.text() for one in saved), high.text()))

    if PAPER_GOALS in study.scale.test_goals:
        add("warm start", study.start(""))
        for regime in (one.name for one in study.regimes):
            for label in study.arms.get(regime, {}):
                if context_of(label) == "memory":
                    add(f"{regime}, {label}", study.after(regime, label))
    header = ("policy", "seeds", "total saved", "bound for its calls", "peak saved", "memories with Q(m) > 0.8")
    title = (
        f"Tokens saved against full history of the same episodes at {PAPER_GOALS} goals, and Q(m) there, all in %; the "
        f"paper says {PAPER_SAVED[0]} and {PAPER_SAVED[1]}, not of what"
    )
    return Table("distances-tokens", title, header, rows)


def history_decline(study: Study) -> Table:
    """Policies that keep their full history beside those with a memory that were made alike: what goals cost either.

    Tokens are what each policy spent, not the same episodes priced twice.
    """
    least, most, rows = min(study.scale.test_goals), PAPER_GOALS, []
    if most not in study.scale.test_goals:
        return Table("distances-history", "Memory beside full history", ("policy",), [])
    pairs = [(words, study.start("", key), study.start("history", key)) for key, words in STARTS.items()]
    for regime in (one.name for one in study.regimes):
        pairs += [
            (f"{regime}, {alike('grpo', label)}", study.after(regime, alike("grpo", label)), study.after(regime, label))
            for label in ("history", f"history{TUNED}")
        ]
    for words, memory, history in pairs:
        seeds = [seed for seed in history if seed in memory]
        if not seeds:
            continue
        falls = [[f1_at(one[seed], most) - f1_at(one[seed], least) for seed in seeds] for one in (memory, history)]
        less = [theirs - ours for ours, theirs in zip(*falls, strict=True)]
        cells = [over_seeds(values).text(sign=True) for values in (*falls, less)]
        for spent in (_spent, _spent_without_blocks):
            tokens = [(_spent(memory[seed], most), spent(history[seed], most)) for seed in seeds]
            for part in (0, 1):  # total, peak
                cells.append(over_seeds([100 - 100 * ours[part] / theirs[part] for ours, theirs in tokens]).text())
        rows.append((words, str(len(seeds)), *cells))
    header = (
        *("policy", "seeds", "F1 with a memory", "with full history", "history less memory"),
        *("total tokens saved by the memory, %", "peak saved, %"),
        *("total saved, had the history no memory blocks", "peak saved, had it none"),
    )
    title = (
        f"Memory beside full history, each with a policy of its own, made alike: F1 at {most} goals less F1 at "
        f"{least}, points; tokens at {most} goals"
    )
    return Table("distances-history", title, header, rows)


def _spent(evaluation: Evaluation, goals: int) -> tuple[float, float]:
    """TT and PT, means over episodes."""
    return at(evaluation, goals, "total_tokens"), at(evaluation, goals, "peak_tokens")


def _spent_without_blocks(evaluation: Evaluation, goals: int) -> tuple[float, float]:
    """The same for episodes that kept their history, had they written no memories.

    A block costs its tokens in the call that writes it and again in each later one; the last call has them all, and is
    the largest. The tags around a block are not counted.
    """
    blocks = [some for some in evaluation[str(goals)]["episodes"]["memory_tokens"] if some is not None]
    total, peak = _spent(evaluation, goals)
    read = [sum(n * (len(some) - turn) for turn, n in enumerate(some)) for some in blocks]
    return total - mean(read), peak - mean([sum(some) for some in blocks])
