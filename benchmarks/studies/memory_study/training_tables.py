"""How training went: estimators of the memory advantage, signs of collapse, candidates of the tuning.

Invariant: as in ``tables``, every row of an arm says how many seeds it is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .estimates import over_seeds
from .measures import AT_EQUAL_TURN, CIRCUMSTANCES, GIVEN, ends, estimators, mean, mean_f1, signs
from .study import Study
from .tables import Evaluations, Table

ESTIMATORS = (
    *("reference", "leave_one_out", "empty_memory", "frozen_reference", "same_turn", "old_memory"),
    *("old_memory, pooled", "old_memory, per_turn"),
)
"""As the probes name them."""
CORRELATED = (*CIRCUMSTANCES, AT_EQUAL_TURN, *GIVEN)


def estimator_table(study: Study, regime: str) -> Table:
    """Variance of A^M per estimator, and what it goes with, over the memories that a policy wrote."""
    rows = []
    for label, probes in _probes(study, regime).items():
        per_seed = [estimators(probe, ESTIMATORS) for probe in probes.values()]
        for name in ESTIMATORS:
            found = [one[name] for one in per_seed if name in one]
            if found:
                cells = (over_seeds([one[c] for one in found]).text(2, sign=True) for c in CORRELATED)
                rows.append((label, name, str(len(found)), over_seeds([o["variance"] for o in found]).text(4), *cells))
    words = tuple(f"r with {name.replace('_', ' ')}" for name in CORRELATED)
    title = (
        f"{regime}: the memory advantage by baseline (weight 1), over memories of a training step's groups: variance, "
        "and correlations within groups"
    )
    return Table(f"estimators-{regime}", title, ("policy", "baseline", "seeds", "variance", *words), rows)


def _probes(study: Study, regime: str) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Probes in a regime by policy: the warm start, GRPO and MemPO."""
    starts = study.warm.get("memory", {}).items()
    found = {"warm start": {seed: one["probes"][regime] for seed, one in starts if regime in one["probes"]}}
    for label in ("grpo", "mempo", "mempo-paper"):
        cells = study.arms.get(regime, {}).get(label, {})
        found[label] = {seed: one["probes"][regime] for seed, one in cells.items()}
    return {label: probes for label, probes in found.items() if probes}


def collapse(study: Study, regime: str) -> Table:
    """Signs of collapse in the evaluation, and entropy and KL at the end of training."""
    goals, rows = study.scale.test_goals, []
    names: tuple[str, ...] = ()

    def add(label: str, found: Evaluations, training: list[Mapping[str, Any]]) -> None:
        nonlocal names
        some = [signs(one, goals) for one in found.values()]
        names = tuple(some[0])
        cells = [over_seeds([one[name] for one in some]).text(3) for name in names]
        for metric in ("train/entropy", "train/kl"):
            moved = [ends(one[metric]) for one in training if metric in one]
            cells.append(f"{mean([a for a, _ in moved]):.3f} -> {mean([b for _, b in moved]):.3f}" if moved else "-")
        rows.append((label, str(len(found)), *cells))

    for suffix, arm in study.contexts(regime).items():
        if start := study.start(arm):
            add(f"warm start{suffix}", start, [])
    for label, cells in study.arms.get(regime, {}).items():
        add(label, study.after(regime, label), [cell["training"] for cell in cells.values()])
    title = f"{regime}: signs of collapse over all numbers of goals (shares, or counts an episode), mean over seeds"
    return Table(f"collapse-{regime}", title, ("policy", "seeds", *names, "entropy", "KL"), rows)


def tuning(study: Study) -> Table:
    """Every candidate of the tuning with its score."""
    rows = [
        (
            regime,
            arm,
            f"{found['cell']['lr']:g}",
            f"{found['cell']['weight']:g}",
            f"{mean_f1(found['evaluations']['after']):.1f}",
        )
        for (regime, arm), candidates in study.tuning.items()
        for found in candidates.values()
    ]
    title = "tuning: F1 in % on the dev split of the dev seed, mean over the regime's numbers of goals"
    return Table("tuning", title, ("regime", "arm", "learning rate", "weight", "F1"), rows)
