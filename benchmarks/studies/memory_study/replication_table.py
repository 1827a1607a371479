"""The replication: the one final difference between MemPO and GRPO that had an interval without 0, on fresh seeds.

Seeds, arms and settings were fixed before any of its cells was run, so that on the fresh seeds alone it is one
comparison; what is tested is the final F1. ``clipped`` was thought of when it had failed, and asks why.

Invariant: of the study's tables the fresh seeds count in these alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .cells import FOLLOWED, REPLICATED
from .estimates import over_seeds
from .headline_tables import held, sampled
from .measures import Evaluation, at, f1_at, mean
from .memory_tables import moved
from .study import TUNED, Study
from .tables import Table, difference, in_range

(REGIME, _OTHER), (_, _OURS) = REPLICATED
OTHER, OURS = _OTHER + TUNED, _OURS + TUNED
CLIPPED = FOLLOWED[1]
_BESIDE = ("F1 in training, difference", "facts held, difference")
_READ = "Q of the last memory read by the warm start, difference"
_GIVEN = "goals whose right answer stands at any place of the answer, difference"
_GIVEN_BY_SEED = "the same by seed"


def replication(study: Study) -> Table:
    """Tuned MemPO less tuned GRPO on the seeds it was found with, on the fresh ones, and on both."""
    goals, rows = in_range(study, REGIME), []
    for one in _seed_sets(study):
        ours, theirs = one.after(REGIME, OURS), one.after(REGIME, OTHER)
        both = sorted({*ours} & {*theirs})
        if not both:
            return Table("replication", "", (), [])
        levels = [[mean([f1_at(some[seed], n) for n in goals]) for seed in both] for some in (ours, theirs)]
        difference_cells = _differences(one, OURS, goals)
        rows.append((", ".join(map(str, both)), *(over_seeds(level).text() for level in levels), *difference_cells))
    header = ("seeds", f"F1, {OURS}", f"F1, {OTHER}", "difference", "by seed", *_BESIDE, _READ, _GIVEN, _GIVEN_BY_SEED)
    title = (
        f"Replication: {REGIME}, {OURS} less {OTHER} over {', '.join(map(str, goals))} goals, on the seeds it was "
        "found with, on fresh ones, and on both; right answers at any place are less what chance gives; % and points, "
        "mean over seeds (95 % t interval)"
    )
    return Table("replication", title, header, rows)


def clipped(study: Study) -> Table:
    """The same settings with updates that cannot weigh more than others, on the same seeds."""
    goals, rows = in_range(study, REGIME), []
    for one in _seed_sets(study):
        ours, unclipped = one.after(REGIME, CLIPPED), one.after(REGIME, OURS)
        both = sorted({*ours} & {*unclipped} & {*one.after(REGIME, OTHER)})
        if both:
            level = over_seeds([mean([f1_at(ours[seed], n) for n in goals]) for seed in both]).text()
            wrong = (", ".join(_wrong_number(some[seed], goals) for seed in both) for some in (ours, unclipped))
            less = difference(ours, unclipped, *goals).text(sign=True)
            rows.append((", ".join(map(str, both)), level, *wrong, less, *_differences(one, CLIPPED, goals)))
    header = (
        *("seeds", f"F1, {CLIPPED}", f"tests with a wrong number of answers, by seed, {CLIPPED}", f"the same, {OURS}"),
        *(f"F1 less {OURS}'s", f"F1 less {OTHER}'s", "by seed", *_BESIDE, _READ, _GIVEN, _GIVEN_BY_SEED),
    )
    title = (
        f"Gradients clipped: {REGIME}, {CLIPPED} less {OURS} and less {OTHER} over {', '.join(map(str, goals))} goals; "
        f"from *by seed* on all is less {OTHER}'s; % and points, mean over seeds (95 % t interval)"
    )
    return Table("clipped", title, header, rows)


def _seed_sets(study: Study) -> list[Study]:
    """The seeds it was found with, the fresh ones, both; none without fresh ones."""
    return [] if study.fresh is None else [study, study.fresh, study.fresh.with_seeds_of(study)]


def _differences(study: Study, label: str, goals: Sequence[int]) -> tuple[str, ...]:
    """An arm less tuned GRPO: final F1, by seed, in training, facts held, Q by one reader, right answers anywhere."""
    ours, theirs = study.after(REGIME, label), study.after(REGIME, OTHER)
    both = sorted({*ours} & {*theirs})
    facts = [100 * (held(ours[seed], goals) - held(theirs[seed], goals)) for seed in both]
    read, read_other = study.reading(REGIME, label), study.reading(REGIME, OTHER)
    given, given_other = study.given(REGIME, label), study.given(REGIME, OTHER)
    found = [
        _share(given[seed], goals) - _share(given_other[seed], goals)
        for seed in both
        if seed in given and seed in given_other
    ]
    return (
        difference(ours, theirs, *goals).text(sign=True),
        ", ".join(difference({seed: ours[seed]}, theirs, *goals).text(sign=True) for seed in both),
        sampled(study, REGIME, label, OTHER).text(sign=True),
        over_seeds(facts).text(sign=True),
        moved(read, read_other, "ours by start", "ours by start", [str(n) for n in goals]),
        over_seeds(found).text(sign=True),
        ", ".join(f"{one:+.1f}" for one in found),
    )


def _share(given: Mapping[str, Mapping[str, int]], goals: Sequence[int]) -> float:
    """Right answers at any place in % of the goals, less those that the answers to other tasks would give by chance."""
    return 100 * mean([(one["given"] - one["chance"]) / one["goals"] for one in (given[str(n)] for n in goals)])


def _wrong_number(evaluation: Evaluation, goals: Sequence[int]) -> str:
    """Of all tests, how many (%) were given another number of answers than was asked for."""
    return f"{100 * mean([at(evaluation, n, 'wrong_number') for n in goals]):.0f}"
