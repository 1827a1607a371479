"""Tables of the memories themselves: what they hold, how good they are, and to which reader.

Invariant: as in ``tables``, every row of an arm says how many seeds it is over.
"""

from __future__ import annotations

from collections.abc import Sequence

from .estimates import over_seeds
from .measures import mean, pooled_share, quality
from .study import Study, alike
from .tables import STARTS, Evaluations, Table, in_range


def memories(study: Study, regime: str, *, pooled: bool = False) -> Table:
    """Q(m) and what memories hold, over the numbers of goals trained on, or pooled over all."""
    goals, rows = study.scale.test_goals if pooled else in_range(study, regime), []

    def row(label: str, found: Evaluations) -> tuple[str, ...]:
        some = list(found.values())
        shares = (("kept", "had"), ("noted", "new"), ("notes_right", "notes"), ("facts_final", "facts"))
        cells = [over_seeds([quality(one, goals)[part] for one in some]).text(3) for part in (0, 1)]
        cells += [over_seeds([pooled_share(one, goals, *share) for one in some]).text(3) for share in shares]
        return label, str(len(some)), *cells

    for suffix, arm in study.contexts(regime).items():
        starts = [(words + suffix, study.start(arm, key)) for key, words in STARTS.items()]
        rows += [row(words, found) for words, found in starts if found]
    rows += [row(label, study.after(regime, label)) for label in study.arms.get(regime, {})]
    header = (
        *("policy", "seeds", "Q(m)", "Q(m) > 0.8"),
        *("kept per rewrite", "noted when shown", "notes that are facts", "held at the end"),
    )
    which = "all numbers of goals" if pooled else f"{', '.join(map(str, goals))} goals"
    title = f"{regime}: memories over {which}; shares, mean over seeds (95 % t interval)"
    return Table(f"{'pooled-' * pooled}memories-{regime}", title, header, rows)


def readings(study: Study, regime: str) -> Table:
    """Q of last memories with one reader for both writers, and with one writer for both readers."""
    goals, rows = [str(n) for n in in_range(study, regime)], []
    for label in study.arms.get(regime, {}):
        ours = study.reading(regime, label)
        if not ours:
            continue
        others = {
            name: study.reading(regime, alike(name, label))
            for name in ("grpo", "shuffled")
            if label != alike(name, label)
        }
        same, own, other = "ours by start", "ours by ours", "start by ours"
        cells = [
            over_seeds([mean([mean(_known(one[n][pair])) for n in goals]) for one in ours.values()]).text(3)
            for pair in ("start by start", own)
        ]
        cells += [moved(ours, ours, pair, "start by start", goals) for pair in (same, other)]
        cells += [moved(ours, others[n], same, same, goals) if n in others else "-" for n in ("grpo", "shuffled")]
        cells.append(moved(ours, others["grpo"], own, own, goals) if "grpo" in others else "-")
        rows.append((label, str(len(ours)), *cells))
    title = (
        f"{regime}: Q of the last memory, mean of {', '.join(goals)} goals, mean over seeds (95 % t interval); "
        "*memories*: all read by the warm start, *reader*: all read the warm start's memories, *own*: by its own policy"
    )
    changes = ("memories", "reader", "memories - grpo's", "memories - shuffled's", "own - grpo's own")
    return Table(f"reading-{regime}", title, ("arm", "seeds", "warm start", "own", *changes), rows)


def moved(ours: Evaluations, theirs: Evaluations, pair: str, other: str, goals: Sequence[str]) -> str:
    """Q of one pair of writer and reader less that of another, task by task, then over the seeds that have both."""
    both = [seed for seed in ours if seed in theirs]
    if not both:
        return "-"
    found = [mean([mean(_less(ours[seed][n][pair], theirs[seed][n][other])) for n in goals]) for seed in both]
    text = over_seeds(found).text(3, sign=True)
    return text if len(both) == len(ours) else f"{text}, {len(both)} seeds"


def _less(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
