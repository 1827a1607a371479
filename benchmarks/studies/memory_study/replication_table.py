"""The replication: the one final difference between MemPO and GRPO that had an interval without 0, on fresh seeds.

Seeds, arms and settings were fixed before any of its cells was run, so that on the fresh seeds alone it is one
comparison; what is tested is the final F1.

Invariant: the fresh seeds count in this table alone.
"""

from __future__ import annotations

from .cells import REPLICATED
from .estimates import over_seeds
from .headline_tables import held, sampled
from .measures import f1_at, mean
from .memory_tables import moved
from .study import TUNED, Study
from .tables import Table, difference, in_range

(REGIME, _OTHER), (_, _OURS) = REPLICATED
OTHER, OURS = _OTHER + TUNED, _OURS + TUNED


def replication(study: Study) -> Table:
    """Tuned MemPO less tuned GRPO on the seeds it was found with, on the fresh ones, and on both."""
    goals, rows = in_range(study, REGIME), []
    studies = [] if study.fresh is None else [study, study.fresh, study.fresh.with_seeds_of(study)]
    for one in studies:
        ours, theirs = one.after(REGIME, OURS), one.after(REGIME, OTHER)
        both = sorted({*ours} & {*theirs})
        if not both:
            return Table("replication", "", (), [])
        by_seed = [difference({seed: ours[seed]}, theirs, *goals).text(sign=True) for seed in both]
        levels = [[mean([f1_at(some[seed], n) for n in goals]) for seed in both] for some in (ours, theirs)]
        facts = [100 * (held(ours[seed], goals) - held(theirs[seed], goals)) for seed in both]
        read, read_other = one.reading(REGIME, OURS), one.reading(REGIME, OTHER)
        rows.append(
            (
                ", ".join(map(str, both)),
                *(over_seeds(level).text() for level in levels),
                difference(ours, theirs, *goals).text(sign=True),
                ", ".join(by_seed),
                sampled(one, REGIME, OURS, _OTHER).text(sign=True),
                over_seeds(facts).text(sign=True),
                moved(read, read_other, "ours by start", "ours by start", [str(n) for n in goals]),
            )
        )
    header = (
        *("seeds", f"F1, {OURS}", f"F1, {OTHER}", "difference", "by seed", "F1 in training, difference"),
        *("facts held, difference", "Q of the last memory read by the warm start, difference"),
    )
    title = (
        f"Replication: {REGIME}, {OURS} less {OTHER} over {', '.join(map(str, goals))} goals, on the seeds it was "
        "found with, on fresh ones, and on both; % and points, mean over seeds (95 % t interval)"
    )
    return Table("replication", title, header, rows)
