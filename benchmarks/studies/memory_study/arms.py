"""What is compared: regimes, and arms that differ by their algorithm alone.

Arms that are not here, and why: ``reference``, ``leave_one_out``, ``empty_memory`` and ``frozen_reference`` under a
normalisation, because what is constant over a group, or a mean over it, cancels there and the config refuses the pair;
the ``history`` baseline, because the warm start has never seen a history, so that its probability given one says
nothing. Importing this file imports no torch.

Invariant: a default arm's settings are the published ones but for what its name says; but for ``clipped`` no arm has
settings that are not its algorithm's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mempo_env.algos.algorithm_config import GRPOConfig, MemPOConfig, MemPOPaperConfig
from mempo_env.algos.ppo_config import PPOConfig
from mempo_env.errors import UserError
from mempo_env.rewards import OutcomeMode


@dataclass(frozen=True)
class Regime:
    """What reinforcement learning sees.

    Attributes:
        name: Of the regime.
        goals: Least and most goals of a training task.
        outcome: Outcome reward.
        dev_goals: Numbers of goals that tuning is scored at; none: nothing is tuned there.
        default: Whether it is part of the default matrix, or of ``--full`` only.
    """

    name: str
    goals: tuple[int, int]
    outcome: OutcomeMode
    dev_goals: tuple[int, ...]
    default: bool = True


REGIMES = {
    "easy": Regime("easy", (2, 4), "fraction", (2, 4)),
    "hard": Regime("hard", (6, 10), "binary", (6, 8, 10)),
}
CROSSED = {
    "sparse": Regime("sparse", (2, 4), "binary", (), default=False),
    "long": Regime("long", (6, 10), "fraction", (), default=False),
}
"""``hard`` differs from ``easy`` in two things, goals and outcome; these differ from each in one."""
CROSSED_ARMS = ("grpo", "mempo", "mempo-paper", "shuffled", "same-turn", "shuffled-in-turn")
"""What is run there, with the settings before tuning."""
CLIP = 0.003
"""Norm that ``clipped`` clips gradients to: about twice the median of tuned MemPO's in ``hard``."""


@dataclass(frozen=True)
class Arm:
    """One way to learn.

    Attributes:
        name: Of the arm.
        algo: Algorithm, as ``mempo train --algo`` takes it.
        settings: The algorithm's settings, without the weight.
        words: What it is, for readers.
        weighted: Whether there is a weight of the memory reward to tune; its settings have a ``weight`` then.
        default: Whether it is part of the default matrix, or of ``--full`` only.
        context: Context strategy; another than ``memory`` has a warm start of its own. The demonstrator cannot do
            without a memory, so that under ``history`` the memory blocks are part of what is kept.
        regimes: Where it is run.
        max_grad_norm: Gradients are clipped to this norm; None: to the preset's, as those of all other arms are.
        tuned: Whether it is run with what tuning chooses, too; otherwise with the settings it has alone.
    """

    name: str
    algo: str
    settings: Any
    words: str
    weighted: bool = True
    default: bool = True
    context: str = "memory"
    regimes: tuple[str, ...] = tuple(REGIMES)
    max_grad_norm: float | None = None
    tuned: bool = True

    def __post_init__(self) -> None:
        """Refuses a weight that its settings lack."""
        if self.weighted and not hasattr(self.settings, "weight"):
            raise UserError(
                f"arm {self.name}: {type(self.settings).__name__} has no weight of a memory reward to tune; "
                "give Arm(.., weighted=False)"
            )


def _further(name: str, settings: MemPOConfig, words: str, **more: Any) -> Arm:
    """A MemPO of ``--full``."""
    algo = "mempo-paper" if isinstance(settings, MemPOPaperConfig) else "mempo"
    return Arm(name, algo, settings, words, default=False, **more)


_CONTROL = "memory_study.control"
ARMS = {
    arm.name: arm
    for arm in (
        Arm("grpo", "grpo", GRPOConfig(), "no memory reward", weighted=False),
        Arm("mempo", "mempo", MemPOConfig(), "Q(m) less the mean of the group's other episodes (the default form)"),
        Arm(
            "mempo-paper",
            "mempo-paper",
            MemPOPaperConfig(baseline="old_memory"),
            "Q(m) less Q of the memory before, z-scored over the group unless all of it failed (the paper's form with "
            "another baseline)",
        ),
        Arm("shuffled", f"{_CONTROL}:ShuffledMemPO", MemPOConfig(), "control: Q(m) dealt out anew within the group"),
        Arm("ppo", "ppo", PPOConfig(), "a critic instead of groups", weighted=False, default=False),
        _further("leave-one-out", MemPOConfig(baseline="leave_one_out"), "Q(m) less the mean of all other memories"),
        _further("empty", MemPOConfig(baseline="empty_memory"), "Q(m) less Q of an empty memory"),
        _further(
            "same-turn",
            MemPOConfig(baseline="same_turn"),
            "Q(m) less the mean of the group's other episodes at the same turn (ours: being late earns nothing)",
        ),
        _further(
            "frozen",
            MemPOConfig(baseline="frozen_reference"),
            "Q(m) less the mean of four of the warm start's episodes",
        ),
        _further("old", MemPOConfig(baseline="old_memory"), "Q(m) less Q of the memory before"),
        _further(
            "old-per-turn",
            MemPOPaperConfig(baseline="old_memory", normalisation="per_turn"),
            "the same, z-scored over the memories of equal turns",
        ),
        _further("unguarded", MemPOConfig(credit="all"), "as mempo, no guard on failed groups", regimes=("hard",)),
        _further(
            "unguarded-paper",
            MemPOPaperConfig(baseline="old_memory", credit="all"),
            "as mempo-paper, no guard on failed groups",
            regimes=("hard",),
        ),
        _further(
            "clipped",  # not tuned: it has what tuning chose for mempo
            MemPOConfig(weight=0.3),
            f"tuned mempo (weight 0.3) with gradients clipped to {CLIP}, twice their median, so that an update with a "
            "success weighs little more than others; all other arms clip to 1, which none of theirs reaches",
            weighted=False,
            regimes=("hard",),
            max_grad_norm=CLIP,
            tuned=False,
        ),
        _further(
            "successes",
            MemPOConfig(credit="successes"),
            "as mempo, but only in episodes with an outcome above 0 (`fraction`: any goal right)",
        ),
        Arm(
            "shuffled-in-turn",
            f"{_CONTROL}:TurnShuffledMemPO",
            MemPOConfig(),
            "control: Q(m) dealt out anew among the group's memories of the same turn, so that only being late counts",
            default=False,
        ),
        Arm(
            "short",
            f"{_CONTROL}:ShortMemPO",
            MemPOConfig(),
            "control: a memory is better the shorter it is, whatever it says",
            default=False,
        ),
        Arm(
            "history",
            "grpo",
            GRPOConfig(),
            "GRPO with the full history kept, memory blocks too, from a warm start of its own",
            weighted=False,
            default=False,
            context="history",
        ),
    )
}
