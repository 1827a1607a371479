"""What every table of the study is made of, and the tables of scores; which there are is said in ``sections``.

Invariant: how many seeds are in stands in every row of an arm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .estimates import Estimate, over_seeds, over_tasks
from .measures import at, at_right_number, f1_at, gap_closed, mean, paired
from .study import OTHERS, Study, alike

PAPER_GOALS = 10
"""The number of goals that the paper's claims are about."""
STARTS = {"before": "warm start", "imitation": "imitation of the expert", "expert": "expert"}
Evaluations = Mapping[int, Any]
"""By seed."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        key: Names it, for who picks one.
        title: What it shows, with units.
        header: Names of the columns.
        rows: Their cells.
    """

    key: str
    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def in_range(study: Study, regime: str) -> tuple[int, ...]:
    """The tested numbers of goals that a regime trains on: what its arms are compared by."""
    low, high = study.scale.regimes[regime].goals
    return tuple(n for n in study.scale.test_goals if low <= n <= high)


def scores(study: Study, regime: str, name: str = "f1", value: Callable[[Any, int, str], float] = at) -> Table:
    """A score of every arm and of the ceilings at every number of goals, over seeds.

    Args:
        study: What there is.
        regime: Which regime.
        name: Of the score.
        value: What an evaluation has at a number of goals.
    """
    goals, trained = study.scale.test_goals, in_range(study, regime)
    lines = [
        (words + suffix, study.start(arm, key))
        for suffix, arm in study.contexts(regime).items()
        for key, words in STARTS.items()
    ]
    lines += [(label, study.after(regime, label)) for label in study.arms.get(regime, {})]
    rows = [
        (
            *(words, str(len(found))),
            over_seeds([mean([value(one, n, name) for n in trained]) for one in found.values()]).text(),
            *(over_seeds([value(one, n, name) for one in found.values()]).text() for n in goals),
        )
        for words, found in lines
        if found
    ]
    return Table(
        f"{name}-{regime}",
        f"{regime}: {name.upper()} in %, mean over seeds (95 % t interval)",
        ("policy", "seeds", _trained(trained), *_goals(goals)),
        rows,
    )


def right_number(study: Study, regime: str) -> Table:
    """F1 of the episodes whose number of answers is that of the goals: what is left once the others, all 0, are out."""
    table = scores(study, regime, value=lambda one, n, _: at_right_number(one, n))
    title = f"{regime}: F1 in % of the episodes with the right number of answers alone (others have 0), mean over seeds"
    return replace(table, key=f"right-number-{regime}", title=title)


def difference(ours: Evaluations, theirs: Evaluations, *goals: int) -> Estimate:
    """F1 of one less that of the other, in points: seed by seed over the same tasks, then over seeds.

    Args:
        ours: Evaluations by seed.
        theirs: Others of the same tasks.
        *goals: Numbers of goals; of several the mean.
    """
    both = [seed for seed in ours if seed in theirs]
    return over_seeds([mean([mean(paired(ours[seed], theirs[seed], n)) for n in goals]) for seed in both])


def differences(study: Study, regime: str, others: Sequence[str] = OTHERS) -> Table:
    """Every arm less its warm start and less some others, and MemPO less its control.

    Args:
        study: What there is.
        regime: Which regime.
        others: Names of the arms that every arm is compared with; a tuned one with the tuned ones.
    """
    goals, trained, rows = study.scale.test_goals, in_range(study, regime), []
    arms = study.arms.get(regime, {})
    for label in arms:
        ours = study.after(regime, label)
        against = {"warm start": study.start(label)}
        partners = [alike(other, label) for other in others]
        partners += ["shuffled"] * (label == "mempo")
        against |= {name: study.after(regime, name) for name in partners if name != label and name in arms}
        for name, theirs in against.items():
            both = sum(seed in theirs for seed in ours)
            if both:
                cells = [difference(ours, theirs, *trained).text(sign=True)]
                cells += [difference(ours, theirs, n).text(sign=True) for n in goals]
                rows.append((f"{label} - {name}", str(both), *cells))
    title = f"{regime}: differences in F1, points, paired by task within each seed, mean over seeds (95 % t interval)"
    return Table(f"differences-{regime}", title, ("difference", "seeds", _trained(trained), *_goals(goals)), rows)


def within_seeds(study: Study, regime: str, others: Sequence[str] = OTHERS) -> Table:
    """F1 of each arm and seed, and its differences from some others, with bootstrap intervals over tasks."""
    goals, rows = study.scale.test_goals, []
    arms = study.arms.get(regime, {})
    for seed in study.seeds:
        for label in arms:
            ours = study.after(regime, label).get(seed)
            if ours is None:
                continue
            rows.append((f"{label}, seed {seed}", *(over_tasks(_column(ours, n)).text() for n in goals)))
            for other in others:
                partner = alike(other, label)
                theirs = study.after(regime, partner).get(seed)
                if theirs is not None and label != partner:
                    cells = (over_tasks(paired(ours, theirs, n)).text(sign=True) for n in goals)
                    rows.append((f"{label} - {partner}, seed {seed}", *cells))
    title = f"{regime}: F1 of each seed, %, and differences in points (95 % bootstrap interval over its test tasks)"
    return Table(f"seeds-{regime}", title, ("arm", *_goals(goals)), rows)


def gaps(study: Study, regime: str) -> Table:
    """Share of the distance from the warm start to either ceiling that an arm closed: of means over seeds.

    A mean of each seed's share would be ruled by a seed whose ceiling is near its start.
    """
    goals, rows = study.scale.test_goals, []
    for label in study.arms.get(regime, {}):
        ours, start = study.after(regime, label), study.start(label)
        for ceiling in ("imitation", "expert"):
            top = study.start(label, ceiling)
            seeds = [seed for seed in ours if seed in start and seed in top]
            means = [[mean([f1_at(some[s], n) for s in seeds]) for some in (start, ours, top)] for n in goals]
            if seeds:
                closed = (gap_closed(*three) for three in means)
                cells = ("-" if math.isnan(share) else f"{share:.2f}" for share in closed)
                rows.append((label, STARTS[ceiling], str(len(seeds)), *cells))
    title = f"{regime}: share of the F1 between warm start and ceiling that was closed, from means over seeds"
    return Table(f"gaps-{regime}", title, ("arm", "ceiling", "seeds", *_goals(goals)), rows)


def _column(evaluation: Any, goals: int) -> list[float]:
    return [value for value in evaluation[str(goals)]["episodes"]["f1"] if value is not None]


def _trained(goals: Sequence[int]) -> str:
    return f"mean of {', '.join(map(str, goals))}"


def _goals(goals: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{n} goals" for n in goals)


MOST_NAMED = 6
"""Missing cells that are named one by one."""
KINDS = {"warm": "warm starts", "train": "untuned cells", "tune": "candidates of the tuning", "tuned": "tuned cells"}


def state(study: Study, default: Mapping[str, str]) -> list[str]:
    """In words, which seeds are in, what is missing and what diverged.

    Args:
        study: What is there.
        default: Kinds of the cells of the default matrix by name; what else is missing is counted, not named.
    """
    done = study.complete()
    lines = [f"{len(done)} of {len(study.seeds)} seeds are in: warm start and all untuned cells of the default arms."]
    for kind, words in KINDS.items():
        every = [name for name, other in default.items() if other == kind]
        missing = [name for name in every if name in study.missing]
        line = f"Default matrix, {words}: {len(every) - len(missing)} of {len(every)} are in"
        named = f"missing: {', '.join(missing)}" if len(missing) <= MOST_NAMED else "the others are named by `--list`"
        lines.append(f"{line}; {named}." if 0 < len(missing) < len(every) else f"{line}.")
    if further := [name for name in study.missing if name not in default]:
        lines.append(f"Further arms: {len(further)} cells are missing.")
    if study.fresh is not None:
        missing = study.fresh.missing
        lines.append(f"Fresh seeds: {len(missing)} cells are missing." if missing else "Fresh seeds: all cells are in.")
    both = [study] if study.fresh is None else [study, study.fresh]
    if diverged := [name for one in both for name in one.diverged]:
        lines.append(f"Diverged, and counted with what their last checkpoint holds: {', '.join(diverged)}.")
    if remade := [name for one in both for name in one.remade]:
        lines.append(f"Began from a warm start that was made again and came out otherwise: {', '.join(remade)}.")
    if study.untuned_best:
        pairs = ", ".join(f"{regime}-{arm}" for regime, arm in sorted(study.untuned_best))
        lines.append(f"Tuning chose the untuned settings for {pairs}: their tuned cells are the untuned ones.")
    return lines
