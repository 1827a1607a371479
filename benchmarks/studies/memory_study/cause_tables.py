"""Tables that say why: what the updates had to learn from, and what went wrong with the goals that failed.

Invariant: as in ``tables``, every row of an arm says how many seeds it is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .estimates import over_seeds
from .failures import CAUSES
from .measures import ends, mean
from .study import Study
from .tables import Evaluations, Table, in_range

SIGNALS = {
    "success": "rollout/success",
    "groups whose returns are all equal": "train/groups_without_variance",
    "groups that failed and are guarded": "memory/groups_guarded",
    "memories credited": "memory/credited",
    "mean \\|A^M\\|": "memory/advantage_abs",
    "gradient norm": "train/grad_norm",
}
"""What an update has to learn from: column and metric."""


def signal(study: Study, regime: str) -> Table:
    """What the updates had to learn from, at the beginning and at the end of training."""
    rows = []
    for label, cells in study.arms.get(regime, {}).items():
        found = []
        for metric in SIGNALS.values():
            moved = [ends(cell["training"][metric]) for cell in cells.values() if metric in cell["training"]]
            found.append(f"{mean([a for a, _ in moved]):.3f} -> {mean([b for _, b in moved]):.3f}" if moved else "-")
        rows.append((label, str(len(cells)), *found))
    title = (
        f"{regime}: what updates learn from, first five -> last five, mean over seeds (shares, but for the last two)"
    )
    return Table(f"signal-{regime}", title, ("arm", "seeds", *SIGNALS), rows)


def causes(study: Study, regime: str, *, pooled: bool = False) -> Table:
    """Of the goals that were answered wrongly, how many by which cause, as ``memories`` over trained or all numbers."""
    goals, rows = study.scale.test_goals if pooled else in_range(study, regime), []
    lines = {
        words + suffix: study.failures(arm, name)
        for suffix, arm in study.contexts(regime).items()
        for name, words in (("before", "warm start"), ("imitation", "imitation"))
    }
    lines |= {label: study.failures(label, "after", regime) for label in study.arms.get(regime, {})}
    for label, found in lines.items():
        if found:
            shares = [_shares(one, goals) for one in found.values()]
            rows.append((label, str(len(found)), *(over_seeds([s[n] for s in shares]).text() for n in shares[0])))
    which = "all numbers of" if pooled else f"{', '.join(map(str, goals))}"
    title = f"{regime}: goals answered wrongly, in %, and why, in % of these; {which} goals, mean over seeds"
    header = ("policy", "seeds", "wrong", *CAUSES, "episodes that copy a question, %")
    return Table(f"{'pooled-' * pooled}causes-{regime}", title, header, rows)


def causes_by_goals(study: Study, regime: str) -> Table:
    """The causes at each number of goals, in % of all goals, summed over seeds."""
    rows = []
    lines: dict[str, Evaluations] = {
        f"warm start{suffix}": study.failures(arm, "before") for suffix, arm in study.contexts(regime).items()
    }
    lines |= {label: study.failures(label, "after", regime) for label in study.arms.get(regime, {})}
    for label, found in lines.items():
        for n in study.scale.test_goals if found else ():
            some = [one[str(n)] for one in found.values() if str(n) in one]
            total = sum(one["goals"] for one in some)
            cells = (f"{100 * sum(one.get(name, 0) for one in some) / total:.1f}" for name in ("wrong", *CAUSES))
            rows.append((label, str(n), str(len(some)), *cells))
    title = f"{regime}: causes in % of all goals asked, by number of goals"
    return Table(f"goals-causes-{regime}", title, ("policy", "goals", "seeds", "wrong", *CAUSES), rows)


def _shares(found: Mapping[str, Mapping[str, Any]], goals: Sequence[int]) -> dict[str, float]:
    """In %: wrong goals of all, each cause of the wrong ones, copying episodes of all."""
    some = [found[str(n)] for n in goals if str(n) in found]
    total = {name: sum(one.get(name, 0) for one in some) for name in some[0]}
    shares = {"wrong": 100 * total["wrong"] / total["goals"]}
    shares |= {name: 100 * total[name] / total["wrong"] if total["wrong"] else float("nan") for name in CAUSES}
    return shares | {"copied": 100 * total["copied_question"] / total["episodes"]}
