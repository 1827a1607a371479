"""The study as far as it has been run: the cells that are there, by what they are, and those that are not.

Invariant: every cell that was asked for is either in or named in ``missing``; none is left out for what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .arms import ARMS, Regime
from .cells import DEV_SEED, FRESH_SEEDS, STUDY, Cell, Scale, same_as_untuned

Result = Mapping[str, Any]
"""What the JSON file of a cell holds."""

TUNED = " (tuned)"
OTHERS = ("grpo",)
"""Arms that every arm is compared with, where no others are asked for."""


@dataclass(frozen=True)
class Study:
    """Cells by what they are.

    Attributes:
        scale: How much was run.
        seeds: That were asked for.
        warm: Warm starts by context and seed.
        arms: Per regime and label of an arm its cells by seed, in the order of the matrix; a tuned one is
            ``<arm> (tuned)``.
        tuning: Candidates by regime, arm and name.
        missing: Names of the cells that are not there.
        diverged: Names of those whose training met numbers that are not finite.
        remade: Names of those that began from a warm start that was made again and came out otherwise.
        untuned_best: Regimes and arms where tuning chose what the untuned cells have.
        fresh: The replication, whose seeds count nowhere else.
    """

    scale: Scale
    seeds: tuple[int, ...]
    warm: dict[str, dict[int, Result]] = field(default_factory=dict)
    arms: dict[str, dict[str, dict[int, Result]]] = field(default_factory=dict)
    tuning: dict[tuple[str, str], dict[str, Result]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    remade: list[str] = field(default_factory=list)
    untuned_best: set[tuple[str, str]] = field(default_factory=set)
    fresh: Study | None = None

    @property
    def regimes(self) -> list[Regime]:
        """The default regimes, and of the others those that were run."""
        return [one for one in self.scale.regimes.values() if one.default or self.arms.get(one.name)]

    def contexts(self, regime: str) -> dict[str, str]:
        """What is written behind the warm starts of a regime's arms, and an arm that began there: ``memory`` first."""
        found = {"memory": ""} | {context_of(label): label for label in self.arms.get(regime, {})}
        return {"" if context == "memory" else f" ({context})": label for context, label in found.items()}

    def after(self, regime: str, label: str) -> dict[int, Any]:
        """Evaluations of an arm by seed."""
        return {seed: found["evaluations"]["after"] for seed, found in self.arms.get(regime, {}).get(label, {}).items()}

    def start(self, label: str, name: str = "before") -> dict[int, Any]:
        """Evaluations by seed of the warm start that an arm began from: ``before``, ``imitation`` or ``expert``."""
        evaluations = {seed: found["evaluations"] for seed, found in self.warm.get(context_of(label), {}).items()}
        return {seed: found[name] for seed, found in evaluations.items() if name in found}

    def failures(self, label: str, name: str, regime: str = "") -> dict[int, Any]:
        """Why goals failed in an evaluation, by seed: of an arm in a regime, or of its warm start without a regime.

        Cells that were not packed yet, or whose episodes were gone by then, are left out.
        """
        cells = self.arms.get(regime, {}).get(label, {}) if regime else self.warm.get(context_of(label), {})
        found = {seed: cell.get("failures", {}).get(name) for seed, cell in cells.items()}
        return {seed: counts for seed, counts in found.items() if counts}

    def reading(self, regime: str, label: str) -> dict[int, Any]:
        """Last memories of an arm and of its warm start, read by both, by seed (see ``reading``)."""
        return self._part(regime, label, "reading")

    def given(self, regime: str, label: str) -> dict[int, Any]:
        """Right answers at any place, by seed (see ``failures.given_anywhere``); of the replicated arms alone."""
        return self._part(regime, label, "given")

    def _part(self, regime: str, label: str, name: str) -> dict[int, Any]:
        """What was read off an arm's run folders when they were stored, by seed; those that lack it are left out."""
        found = {seed: cell.get(name) for seed, cell in self.arms.get(regime, {}).get(label, {}).items()}
        return {seed: part for seed, part in found.items() if part}

    def with_seeds_of(self, other: Study) -> Study:
        """Its arms, with the seeds that another study has of them, too."""
        arms = {
            regime: {label: other.arms.get(regime, {}).get(label, {}) | found for label, found in some.items()}
            for regime, some in self.arms.items()
        }
        return Study(self.scale, tuple(sorted({*self.seeds, *other.seeds})), arms=arms)

    def complete(self) -> list[int]:
        """Seeds whose warm start and untuned default cells are all there."""
        arms = [arm.name for arm in ARMS.values() if arm.default]
        needed = [(one.name, arm) for one in self.scale.regimes.values() if one.default for arm in arms]
        return [
            seed
            for seed in self.seeds
            if seed in self.warm.get("memory", {})
            and all(seed in self.arms.get(regime, {}).get(arm, {}) for regime, arm in needed)
        ]


def alike(name: str, label: str) -> str:
    """The label of the arm of a name that was tuned as another one was.

    >>> alike("grpo", "mempo (tuned)"), alike("grpo", "mempo")
    ('grpo (tuned)', 'grpo')
    """
    return name + TUNED * label.endswith(TUNED)


def context_of(label: str) -> str:
    """The context strategy of an arm, by its label."""
    name = label.removesuffix(TUNED)
    return ARMS[name].context if name in ARMS else "memory"


def gather(
    cells: Sequence[Cell],
    read: Callable[[Cell], Result | None],
    settled: Callable[[Cell], Cell | None],
    scale: Scale = STUDY,
) -> Study:
    """Reads all cells that are there.

    Args:
        cells: The matrix.
        read: What a cell found; None where it is not there.
        settled: A cell with its settings; None where they are not known yet.
        scale: How much was asked for.

    Returns:
        The study.
    """
    fresh = [cell for cell in cells if cell.seed in FRESH_SEEDS]
    study = _gather([cell for cell in cells if cell.seed not in FRESH_SEEDS], read, settled, scale)
    return replace(study, fresh=_gather(fresh, read, settled, scale)) if fresh else study


def _gather(
    cells: Sequence[Cell],
    read: Callable[[Cell], Result | None],
    settled: Callable[[Cell], Cell | None],
    scale: Scale,
) -> Study:
    study = Study(scale, tuple(sorted({cell.seed for cell in cells} - {DEV_SEED})))
    for cell in cells:
        ready = settled(cell)
        if ready is not None and same_as_untuned(ready):
            study.untuned_best.add((cell.regime, cell.arm))
            continue
        found = read(ready) if ready is not None else None
        if found is None:
            study.missing.append(cell.name)
            continue
        if found.get("diverged"):
            study.diverged.append(cell.name)
        if found.get("warm_start", {}).get("equal") is False:
            study.remade.append(cell.name)
        if cell.kind == "warm" and cell.seed != DEV_SEED:
            study.warm.setdefault(cell.context, {})[cell.seed] = found
        elif cell.kind == "tune":
            study.tuning.setdefault((cell.regime, cell.arm), {})[cell.name] = found
        elif cell.kind in ("train", "tuned"):
            label = cell.arm + (TUNED if cell.kind == "tuned" else "")
            study.arms.setdefault(cell.regime, {}).setdefault(label, {})[cell.seed] = found
    return study
