"""What an arm costs: tokens of its episodes beside full history, tokens and seconds of its training.

Invariant: as in ``tables``, every row of an arm says how many seeds it is over.
"""

from __future__ import annotations

from .estimates import over_seeds
from .measures import at_budget, costs, mean, saving
from .study import Study
from .tables import Evaluations, Table


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

    for suffix, arm in study.contexts(regime).items():
        if start := study.start(arm):
            add(f"warm start{suffix}", start)
    for label in study.arms.get(regime, {}):
        add(label, study.after(regime, label))
    title = (
        f"{regime}: tokens of an episode, TT / PT; share saved of TT (the bound for as many calls) and of PT against "
        "full history of the same episodes"
    )
    return Table(f"tokens-{regime}", title, ("policy", "seeds", *(f"{n} goals" for n in goals)), rows)


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
