"""The matrix of the study: seeds, the budget of tuning, and the configuration of every cell.

A cell is the smallest piece that is run, stored and skipped when it is there: the warm start of a seed, one candidate
of the tuning, or one arm in one regime with one seed. Importing this file imports no torch.

Invariants:
    * in a regime all arms have the same warm start, tasks and number of updates: only the algorithm's settings differ,
      and of ``clipped`` the norm that gradients are clipped to;
    * tuning sees its own seed and the ``dev`` split, everything reported the ``test`` split;
    * ``fingerprint`` changes whenever anything that a result depends on changes, places and threads apart; of data sets
      it knows the names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mempo_env.agents.settings import TinyConfig
from mempo_env.algos.algorithm_config import GRPOConfig
from mempo_env.algos.config import EvalConfig, OptimConfig, RunConfig
from mempo_env.algos.presets import get_preset

from .arms import ARMS, CROSSED, CROSSED_ARMS, REGIMES, Regime
from .settings import plain

VERSION = 1
"""Of what a cell stores; older results are run again."""
SEEDS = (0, 1, 2, 3, 4)
DEV_SEED = 100
"""Seed of the tuning: no result is reported on it."""
FRESH_SEEDS = (5, 6, 7, 8, 9)
"""Of the replication: fixed, with its arms, when every other seed had been seen and before any of these was run."""
REPLICATED = (("hard", "grpo"), ("hard", "mempo"))
"""Regime and arms whose tuned cells are run again with them: those of the one difference that had an interval without
0."""
FOLLOWED = ("hard", "clipped")
"""Regime and arm that are run with them, too: fixed after the replication had been seen, to find out why it failed."""
TEST_GOALS = (2, 4, 6, 8, 10, 16)
LEARNING_RATE, WEIGHT = 2e-3, 1.0
"""What an arm has before tuning: the preset's learning rate and the paper's weight."""


@dataclass(frozen=True)
class Scale:
    """What is run and how much of everything: ``STUDY`` is what is reported, ``SMOKE`` the same in about a minute.

    Attributes:
        base: What a cell's configuration is made from.
        regimes: By name.
        perfect_steps: Imitation of the expert.
        demonstrator_steps: Imitation of the demonstrator that forgets.
        curriculum: Of the warm start.
        warm_goals: Least and most goals of a demonstrated task.
        steps: Updates of an arm, by regime.
        tune_steps: Updates of a candidate of the tuning, by regime.
        groups: Tasks per update.
        group_size: Episodes per task.
        episodes: Test tasks per number of goals.
        test_goals: Numbers of goals that are tested.
        max_new_tokens: Longest output; the expert's longest at 16 goals has 134 tokens.
        tiny: Shape of the model.
        texts: Episodes per number of goals whose text is stored.
        save_every: Updates between checkpoints.
        split: What results are reported on.
        probes: Whether the estimators of the advantage are compared.
    """

    base: RunConfig = field(default_factory=lambda: get_preset("tiny"))
    regimes: Mapping[str, Regime] = field(default_factory=lambda: REGIMES | CROSSED)
    perfect_steps: int = 1200
    demonstrator_steps: int = 250
    curriculum: tuple[tuple[int, int], ...] = ((200, 2), (300, 5))
    warm_goals: tuple[int, int] = (1, 16)
    steps: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(REGIMES | CROSSED, 40))
    tune_steps: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(REGIMES, 20))
    groups: int = 8
    group_size: int = 8
    episodes: int = 100
    test_goals: tuple[int, ...] = TEST_GOALS
    max_new_tokens: int = 200
    tiny: TinyConfig = field(default_factory=TinyConfig)
    texts: int = 10
    save_every: int = 10
    split: Literal["dev", "test"] = "test"
    probes: bool = True


STUDY = Scale()
SMOKE = Scale(
    regimes={name: replace(regime, goals=(1, 2), dev_goals=()) for name, regime in (REGIMES | CROSSED).items()},
    perfect_steps=80,
    demonstrator_steps=20,
    curriculum=((60, 1),),
    warm_goals=(1, 2),
    steps=dict.fromkeys(REGIMES | CROSSED, 2),
    tune_steps=dict.fromkeys(REGIMES, 1),
    groups=2,
    group_size=4,
    episodes=6,
    test_goals=(1, 2),
    max_new_tokens=48,
    tiny=TinyConfig(layers=2, width=64, heads=4, feed_forward=128),
    texts=2,
)

Kind = Literal["warm", "tune", "train", "tuned"]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        kind: ``warm``: the warm start of a seed with its ceilings. ``tune``: a candidate on the dev seed. ``train``: an
            arm with the settings it has before tuning. ``tuned``: with those that tuning chose.
        seed: Of everything.
        regime: Name of the regime; empty for a warm start.
        arm: Name of the arm; of a warm start, the arm that has it for itself, or empty.
        lr: Learning rate.
        weight: Weight of the memory reward; without effect where the arm has none.
    """

    kind: Kind
    seed: int
    regime: str = ""
    arm: str = ""
    lr: float = LEARNING_RATE
    weight: float = WEIGHT

    @property
    def name(self) -> str:
        """Unique within the study, and the name of its files."""
        if self.kind == "warm":
            return f"warm-{self.arm}-{self.seed}" if self.arm else f"warm-{self.seed}"
        middle = {"train": "", "tuned": "-tuned", "tune": f"-tune-lr{self.lr:g}"}[self.kind]
        if self.kind == "tune" and ARMS[self.arm].weighted:
            middle += f"-w{self.weight:g}"
        return f"{self.regime}-{self.arm}{middle}-{self.seed}"

    @property
    def warm(self) -> Cell:
        """The warm start that it begins from."""
        return Cell("warm", self.seed, arm=self.arm if self.context != "memory" else "")

    @property
    def context(self) -> str:
        """The context strategy that it plays under."""
        return ARMS[self.arm].context if self.arm else "memory"


def candidates(regime: str, arm: str) -> list[Cell]:
    """The tuning of an arm in a regime: four candidates, whether or not it has a weight; the untuned settings first."""
    if ARMS[arm].weighted:
        tried = [(2e-3, 1.0), (1e-3, 1.0), (4e-3, 1.0), (2e-3, 0.3)]
    else:
        tried = [(2e-3, 1.0), (1e-3, 1.0), (4e-3, 1.0), (5e-4, 1.0)]
    return [Cell("tune", DEV_SEED, regime, arm, lr, weight) for lr, weight in tried]


def matrix(*, full: bool = False, seeds: Sequence[int] = SEEDS) -> list[Cell]:
    """All cells; those of a seed stand together, so that a part of the list needs few warm starts.

    A ``tuned`` cell has its settings only when the tuning is there: see ``with_choice``.
    """
    arms = [arm.name for arm in ARMS.values() if arm.default or full]
    pairs = [(regime, arm) for regime in REGIMES for arm in arms if regime in ARMS[arm].regimes]
    own = [arm for arm in arms if ARMS[arm].context != "memory"]  # arms with a warm start of their own

    def warm(seed: int) -> list[Cell]:
        return [Cell("warm", seed), *(Cell("warm", seed, arm=arm) for arm in own)]

    tuned = [(regime, arm) for regime, arm in pairs if ARMS[arm].tuned]
    cells = [*warm(DEV_SEED), *(cell for pair in tuned for cell in candidates(*pair))]
    for seed in seeds:
        cells += [*warm(seed), *(Cell("train", seed, *pair) for pair in pairs)]
        cells += [Cell("tuned", seed, *pair) for pair in tuned]
        if full:
            cells += [Cell("train", seed, regime, arm) for regime in CROSSED for arm in CROSSED_ARMS]
    for seed in FRESH_SEEDS * full:
        cells += [
            Cell("warm", seed),
            *(Cell("tuned", seed, *pair) for pair in REPLICATED),
            Cell("train", seed, *FOLLOWED),
        ]
    return cells


def same_as_untuned(cell: Cell) -> bool:
    """Whether tuning chose what an arm has anyway, so that its ``train`` cell is the result."""
    return cell.kind == "tuned" and (cell.lr, cell.weight) == (LEARNING_RATE, WEIGHT)


def with_choice(cell: Cell, scores: Mapping[str, float]) -> Cell | None:
    """A ``tuned`` cell with the settings that tuning chose: the best score on ``dev``, the earlier one if equal.

    Args:
        cell: The cell.
        scores: Mean F1 on ``dev`` of the candidates that are there, by name.

    Returns:
        The cell; None while a candidate is missing.
    """
    tried = candidates(cell.regime, cell.arm)
    if any(candidate.name not in scores for candidate in tried):
        return None
    best = max(tried, key=lambda candidate: scores[candidate.name])
    return replace(cell, lr=best.lr, weight=best.weight)


def run_config(cell: Cell, out: Path, scale: Scale = STUDY, threads: int = 1) -> RunConfig:
    """What ``mempo train`` would be given.

    Args:
        cell: The cell; a ``tuned`` one with its choice.
        out: Folder of the study; the run is ``out/runs/NAME``, a warm start's weights are in its ``base``.
        scale: How much.
        threads: CPU threads.

    Returns:
        The configuration. Evaluation is set up for ``warm`` cells alone, which evaluate within the run; see
        ``eval_config``.
    """
    base = scale.base
    run = replace(
        base,
        seed=cell.seed,
        threads=threads,
        out=str(out / "runs" / cell.name),
        tiny=scale.tiny,
        context=cell.context,
        sampling=replace(base.sampling, max_new_tokens=scale.max_new_tokens),
        train=replace(
            base.train, groups_per_step=scale.groups, group_size=scale.group_size, save_every=scale.save_every
        ),
    )
    if cell.kind == "warm":
        warm = replace(
            base.warm_start,
            perfect_steps=scale.perfect_steps,
            demonstrator_steps=scale.demonstrator_steps,
            curriculum=scale.curriculum,
            goals=scale.warm_goals,
        )
        return replace(
            run, algo="grpo", goals=scale.warm_goals, steps=0, warm_start=warm, eval=eval_config(cell, scale)
        )
    regime, clip = scale.regimes[cell.regime], ARMS[cell.arm].max_grad_norm
    optim = OptimConfig(lr=cell.lr) if clip is None else OptimConfig(lr=cell.lr, max_grad_norm=clip)
    steps = scale.tune_steps if cell.kind == "tune" else scale.steps
    return replace(
        run,
        algo=ARMS[cell.arm].algo,
        model=str(out / "runs" / cell.warm.name / "base"),
        goals=regime.goals,
        steps=steps[cell.regime],
        env_args=replace(run.env_args, outcome=regime.outcome),
        warm_start=replace(base.warm_start, target="none"),
        train=replace(run.train, optim=optim),
        eval=replace(base.eval, episodes=0, ceilings=False),
    )


def eval_config(cell: Cell, scale: Scale = STUDY) -> EvalConfig:
    """How a cell is evaluated: greedily, on ``dev`` for the tuning and its warm start."""
    goals = scale.regimes[cell.regime].dev_goals if cell.kind == "tune" else ()
    return EvalConfig(
        goals=goals or scale.test_goals,
        episodes=scale.episodes,
        split="dev" if cell.seed == DEV_SEED else scale.split,
        batch=scale.base.eval.batch,
        ceilings=cell.kind == "warm",
    )


def algorithm_config(cell: Cell) -> Any:
    """Settings of the cell's algorithm."""
    if cell.kind == "warm":
        return GRPOConfig()
    arm = ARMS[cell.arm]
    return replace(arm.settings, weight=cell.weight) if arm.weighted else arm.settings


def fingerprint(cell: Cell, scale: Scale = STUDY) -> str:
    """Names everything that the cell's result depends on, its warm start included."""
    config = run_config(cell, Path(), scale)
    config = replace(config, out="", model="", threads=0, data=tuple(Path(place).name for place in config.data))
    parts = [VERSION, config, algorithm_config(cell), eval_config(cell, scale), scale.texts]
    text = json.dumps([plain(part) for part in parts])
    if cell.kind != "warm":
        text += fingerprint(cell.warm, scale)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
