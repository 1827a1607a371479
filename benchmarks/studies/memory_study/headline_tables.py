"""The tables that come first: every arm in one line, and what training itself showed.

Invariant: differences are of arms that were tuned alike, seed by seed over the seeds that both have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .estimates import Estimate, over_seeds
from .measures import at, f1_at, mean, pooled_share
from .study import OTHERS, TUNED, Study, alike, context_of
from .tables import Evaluations, Table, difference, in_range

CONTROL = "shuffled"
STOPPED = 0.5
"""Share of the warm start's calls below which a run counts as having stopped to search."""


def overview(study: Study) -> Table:
    """One line per regime and arm, over the numbers of goals trained on."""
    rows = []
    for regime in (one.name for one in study.regimes):
        goals = in_range(study, regime)
        for label in study.arms.get(regime, {}):
            ours, start = study.after(regime, label), study.start(label)
            grpo, control = (_partner(study, regime, label, name) for name in ("grpo", CONTROL))
            few = [s for s in ours if s in start and _calls(ours[s], goals) < STOPPED * _calls(start[s], goals)]
            rows.append(
                (
                    *(f"{regime}, {label}", str(len(ours))),
                    over_seeds([mean([f1_at(one, n) for n in goals]) for one in ours.values()]).text(),
                    *(difference(ours, theirs, *goals).text(sign=True) for theirs in (grpo, control)),
                    sampled(study, regime, label, "grpo").text(sign=True),
                    over_seeds([100 * held(one, goals) for one in ours.values()]).text(),
                    over_seeds([100 * (held(ours[s], goals) - held(grpo[s], goals)) for s in ours if s in grpo]).text(
                        sign=True
                    ),
                    f"{len(few)} of {len(ours)}" + (f" (seed {', '.join(map(str, few))})" if few else ""),
                )
            )
    header = (
        *("regime, arm", "seeds", "F1", "F1 - grpo's", f"F1 - {CONTROL}'s", "F1 in training - grpo's"),
        *("facts held at the end", "facts held - grpo's"),
        "runs that stopped searching (under half of the warm start's calls)",
    )
    title = (
        "Every arm over the numbers of goals that its regime trains on: F1 of the tests (greedy, after the last "
        "update) and of the training episodes (sampled, all updates), facts held by the last memory; % and points, "
        "means over seeds"
    )
    return Table("overview", title, header, rows)


def training_differences(study: Study, regime: str, others: Sequence[str] = OTHERS) -> Table:
    """F1 of the sampled training episodes less that of some others and of the control, which saw the same tasks."""
    rows = []
    for label in study.arms.get(regime, {}):
        known = [CONTROL] * (label != alike("grpo", label) and context_of(label) == "memory")
        for other in dict.fromkeys((*others, *known)):
            whole, half = (sampled(study, regime, label, other, part) for part in (_all, _last_half))
            if whole.n:
                words = f"{label} - {alike(other, label)}"
                rows.append((words, str(whole.n), whole.text(sign=True), half.text(sign=True)))
    title = f"{regime}: differences in F1 of the training episodes (sampled), points, mean over seeds (95 % t interval)"
    header = ("difference", "seeds", "mean of all updates", "mean of the last half")
    return Table(f"training-{regime}", title, header, rows)


def _all(values: Sequence[float]) -> float:
    return mean(values)


def _last_half(values: Sequence[float]) -> float:
    return mean(values[len(values) // 2 :])


def sampled(
    study: Study, regime: str, label: str, other: str, part: Callable[[Sequence[float]], float] = _all
) -> Estimate:
    """F1 of an arm's training episodes less another's, in points; of no seed where it is the arm itself.

    Args:
        study: What there is.
        regime: Which regime.
        label: The arm.
        other: The other's name, then it is the one that was tuned alike; or its label, as ``grpo (tuned)``.
        part: Of the updates' values, to one.
    """
    arms = study.arms.get(regime, {})
    ours, theirs = arms[label], arms.get(other if other.endswith(TUNED) else alike(other, label), {})
    both = [seed for seed in ours if seed in theirs and theirs is not ours]
    return over_seeds([part(_f1(ours[seed])) - part(_f1(theirs[seed])) for seed in both])


def _f1(cell: Any) -> list[float]:
    return [100 * value for value in cell["training"]["rollout/f1"] if value is not None]


def _partner(study: Study, regime: str, label: str, name: str) -> Evaluations:
    """The evaluations to compare an arm with: none where it is that arm; the control's in its own context alone."""
    partner = alike(name, label)
    foreign = name == CONTROL and context_of(label) != "memory"
    return {} if label == partner or foreign else study.after(regime, partner)


def _calls(evaluation: Any, goals: Sequence[int]) -> float:
    return mean([at(evaluation, n, "tool_calls") for n in goals])


def held(evaluation: Any, goals: Sequence[int]) -> float:
    """Share of the facts that the last memory holds."""
    return pooled_share(evaluation, goals, "facts_final", "facts")
