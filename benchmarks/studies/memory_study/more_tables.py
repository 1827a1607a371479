"""The further tables: tokens, estimators of the advantage, signs of collapse, learning curves, costs, tuning.

Invariant: as in ``tables``, every row of an arm says how many seeds it is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .estimates import over_seeds
from .measures import (
    AT_EQUAL_TURN,
    CIRCUMSTANCES,
    GIVEN,
    at_budget,
    costs,
    ends,
    estimators,
    mean,
    mean_f1,
    saving,
    signs,
)
from .study import Study
from .tables import Evaluations, Table

ESTIMATORS = (
    *("reference", "leave_one_out", "empty_memory", "frozen_reference", "same_turn", "old_memory"),
    *("old_memory, pooled", "old_memory, per_turn"),
)
"""As the probes name them."""
CORRELATED = (*CIRCUMSTANCES, AT_EQUAL_TURN, *GIVEN)


def tokens(study: Study, regime: str) -> Table:
    """TT and PT, and what full history would have cost for the same episodes."""
    goals, rows = study.scale.test_goals, []

    def add(label: str, found: Evaluations) -> None:
        cells = []
        for n in goals:
            some = [saving(one, n) for one in found.values()]
            values = {name: mean([one[name] for one in some]) for name in some[0]}
            cost = f"{values['total']:,.0f} / {values['peak']:,.0f}"
            if values["bound"] == values["bound"]:
                cost += f"; {values['saved_total']:.0%} (bound {values['bound']:.0%}) / {values['saved_peak']:.0%}"
            cells.append(cost)
        rows.append((label, str(len(found)), *cells))

    if start := study.start(""):
        add("warm start", start)
    for label in study.arms.get(regime, {}):
        add(label, study.after(regime, label))
    title = (
        f"{regime}: tokens of an episode, TT / PT; share saved of TT (the bound for as many calls) and of PT against "
        "full history of the same episodes"
    )
    return Table(f"tokens-{regime}", title, ("policy", "seeds", *(f"{n} goals" for n in goals)), rows)


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

    if start := study.start(""):
        add("warm start", start, [])
    for label, cells in study.arms.get(regime, {}).items():
        add(label, study.after(regime, label), [cell["training"] for cell in cells.values()])
    title = f"{regime}: signs of collapse over all numbers of goals (shares, or counts an episode), mean over seeds"
    return Table(f"collapse-{regime}", title, ("policy", "seeds", *names, "entropy", "KL"), rows)


def curves(study: Study, regime: str) -> Table:
    """F1 of sampled training episodes after equal steps, equal sampled tokens and equal processor time."""
    arms, rows = study.arms.get(regime, {}), []
    seeds = sorted({seed for cells in arms.values() for seed in cells})
    reached: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        spent = {label: costs(cells[seed]["training"]) for label, cells in arms.items() if seed in cells}
        least = {unit: min(one[unit][-1] for one in spent.values()) for unit in ("steps", "tokens", "cpu")}
        for label, one in spent.items():
            f1 = arms[label][seed]["training"]["rollout/f1"]
            for unit, budget in least.items():
                value = 100 * at_budget(f1, one[unit], budget)
                reached.setdefault(label, {}).setdefault(unit, []).append(value)
    for label, values in reached.items():
        rows.append((label, str(len(values["steps"])), *(over_seeds(some).text() for some in values.values())))
    title = (
        f"{regime}: F1 in % of the training episodes, mean of five updates, when the cheapest arm of the seed ended: "
        "at equal updates, equal sampled tokens, equal CPU seconds"
    )
    return Table(f"curves-{regime}", title, ("arm", "seeds", "equal steps", "equal tokens", "equal CPU seconds"), rows)


def costs_of(study: Study, regime: str) -> Table:
    """What training cost."""
    rows = []
    for label, cells in study.arms.get(regime, {}).items():
        spent = [costs(cell["training"]) for cell in cells.values()]
        scoring = [sum(v or 0.0 for v in cell["training"].get("time/scoring_s", ())) for cell in cells.values()]
        wall = [sum(cell["training"]["time/step_s"]) for cell in cells.values()]
        rows.append(
            (
                *(label, str(len(spent)), f"{mean([one['steps'][-1] for one in spent]):.0f}"),
                *(
                    f"{mean([one['tokens'][-1] for one in spent]):,.0f}",
                    f"{mean([one['cpu'][-1] for one in spent]):.0f}",
                ),
                *(f"{mean(wall):.0f}", f"{mean(scoring) / mean(wall):.0%}"),
            )
        )
    header = ("arm", "seeds", "updates", "sampled tokens", "CPU s", "wall s", "of it scoring memories or values")
    return Table(f"costs-{regime}", f"{regime}: what training cost, mean over seeds", header, rows)


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
