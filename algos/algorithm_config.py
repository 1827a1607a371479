"""Settings of the algorithms; importing this file imports no torch.

Invariant: class defaults are published settings, each with its source; combinations that mean nothing are refused at
construction.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Literal

from mempo_env.errors import UserError, unknown_name

EPS = 1e-6
"""Added to a standard deviation before dividing. A common default; no source for MemPO states it."""

ReturnBaseline = Literal["group_mean", "leave_one_out"]
Ratio = Literal["token", "sequence"]
Aggregation = Literal["episode", "token", "sequence", "constant"]
Normalisation = Literal["none", "pooled", "per_turn"]
MemoryCredit = Literal["all", "successes", "guarded"]
Baseline = Literal[
    "reference", "frozen_reference", "history", "old_memory", "empty_memory", "leave_one_out", "same_turn"
]
_NOT_BESIDE_A_MEAN = {
    "frozen_reference": "is constant over a group and cancels",
    "empty_memory": "is constant over a group and cancels",
    "leave_one_out": "is a mean over the group's memories and cancels, but for a factor that eps sees,",
    "reference": "is a mean over the group's other episodes, so that a mean would be subtracted twice",
    "same_turn": "is a mean over the group's other episodes at that turn, so that a mean would be subtracted twice",
}
"""Baselines that are refused where the mean over the group is subtracted anyway (method 4), and why."""


def check_choices(config: object) -> None:
    """Checks the ``Literal`` fields of a config dataclass: types alone do not, where values come from code or a file.

    Args:
        config: The instance.

    Raises:
        UserError: A value is none of its field's choices; names the nearest.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        if typing.get_origin(hints[field.name]) is Literal:
            choices, value = typing.get_args(hints[field.name]), getattr(config, field.name)
            if value not in choices:
                raise unknown_name(f"{type(config).__name__}.{field.name}", str(value), map(str, choices))


@dataclass(frozen=True)
class GRPOConfig:
    """Settings of GRPO.

    Attributes:
        clip_low: Clips the ratio below 1 - clip_low (0.2: PPO, arXiv 1707.06347).
        clip_high: Clips the ratio above 1 + clip_high (0.2; DAPO, arXiv 2503.14476, takes 0.28).
        beta: Weight of the KL term (0.001: verl's default and Search-R1's, arXiv 2503.09516; GRPO's paper had 0.04).
        normalise_std: Divide A^T by the group's standard deviation (True: GRPO; False: Dr. GRPO, arXiv 2503.20783).
        eps: Added to that standard deviation (1e-6: verl's default).
        return_baseline: What is subtracted from a return. ``group_mean``: the mean over the group (GRPO, arXiv
            2402.03300). ``leave_one_out``: the mean over the group's other episodes (RLOO, arXiv 2402.14740), which
            divides by no standard deviation.
        ratio: Of what pi / pi_old is taken. ``token``: each token's own (PPO, GRPO). ``sequence``: the geometric mean
            over the tokens of one turn's output (GSPO, arXiv 2507.18071, whose clip range is 3e-4 below, 4e-4 above).
        aggregation: How token losses are averaged over a minibatch. ``episode``: mean over episodes of the mean over
            an episode's output tokens (1/|o_i| of GRPO, with the episode as its output). ``token``: mean over all
            tokens (DAPO, arXiv 2503.14476). ``sequence``: mean over turns of the mean over a turn's tokens.
            ``constant``: an episode's sum divided by ``divisor``, mean over episodes (Dr. GRPO, arXiv 2503.20783).
        divisor: That constant; Dr. GRPO takes the largest number of tokens that a response can have. 0: none.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.001
    normalise_std: bool = True
    eps: float = EPS
    return_baseline: ReturnBaseline = "group_mean"
    ratio: Ratio = "token"
    aggregation: Aggregation = "episode"
    divisor: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.clip_low < 1 or not self.clip_high > 0:  # `not` also refuses NaN, here and below
            raise UserError(f"clip_low={self.clip_low} must lie in (0, 1) and clip_high={self.clip_high} above 0")
        if not 0 <= self.beta < math.inf or not 0 < self.eps < math.inf:
            raise UserError(f"beta={self.beta} must not be negative and eps={self.eps} must be positive, both finite")
        if self.return_baseline == "leave_one_out" and self.normalise_std:
            raise UserError(
                "return_baseline='leave_one_out' with normalise_std=True is 'group_mean' times a constant; set "
                "normalise_std=False (--no-normalise-std), as RLOO has it"
            )
        if (self.aggregation == "constant") != (self.divisor > 0):
            raise UserError(
                f"aggregation='{self.aggregation}' with divisor={self.divisor}: 'constant' needs a divisor above 0, "
                "such as the most output tokens that an episode can have; every other aggregation takes none"
            )


@dataclass(frozen=True)
class MemPOConfig(GRPOConfig):
    """Settings of MemPO; the defaults are this project's form: Q less a mean over other episodes, not normalised.

    Attributes:
        weight: w of A^M (1: the paper).
        baseline: b. ``reference``: mean Q over the memories of the group's other episodes (the default).
            ``frozen_reference``: mean Q over the memories of ``reference_episodes`` episodes that the frozen reference
            policy plays of the same task; it costs these episodes. Both follow an article on the paper.
            ``history``: P(answer | all that was seen before the turn), the paper's; quadratic in turns, and it means
            something only for a policy that was warm-started on history contexts too.
            ``old_memory``: Q(m_{t-1}), the memory this one replaced; as potential shaping it leaves the optimal policy
            unchanged (HiMPO, arXiv 2606.16285; IGPO, arXiv 2510.14967). ``empty_memory``: Q of an empty memory.
            ``leave_one_out``: mean Q over the group's other memories, those of the same episode among them (RLOO,
            arXiv 2402.14740, with a memory as the sample). ``same_turn``: mean Q over the memories that the group's
            other episodes wrote at the same turn (ours: a later memory has seen more, so that Q less a mean over all
            turns credits being late); where no other episode got that far there is none, and A^M is 0.
        normalisation: ``none``, or over which set mean and std run: ``pooled`` (all memories of the group) or
            ``per_turn``; the sources leave this open.
        credit: Which episodes' memories earn A^M: ``all``, ``successes`` (outcome above 0; InfoMem, arXiv 2606.03329),
            or ``guarded`` (ours, the default of both forms: all, but bounded below by 0 and not normalised in groups
            where no episode had an outcome above 0).
        reference_episodes: K of ``frozen_reference`` (4: an article on the paper).
    """

    weight: float = 1.0
    baseline: Baseline = "reference"
    normalisation: Normalisation = "none"
    credit: MemoryCredit = "guarded"
    reference_episodes: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight < math.inf:
            raise UserError(f"weight={self.weight} must not be negative, and finite")
        if self.reference_episodes < 1:
            raise UserError(f"reference_episodes={self.reference_episodes} must be at least 1")
        if self.normalisation != "none" and self.baseline in _NOT_BESIDE_A_MEAN:
            raise UserError(
                f"baseline='{self.baseline}' {_NOT_BESIDE_A_MEAN[self.baseline]} when normalisation="
                f"'{self.normalisation}' subtracts the mean; use normalisation='none', or baseline='old_memory' or "
                "'history'"
            )


@dataclass(frozen=True)
class MemPOPaperConfig(MemPOConfig):
    """The paper's equation (arXiv 2603.00680): b from the full history, z-scored over the group's memories.

    With a guard, which is ours and not the paper's; ``credit="all"`` switches it off.
    """

    baseline: Baseline = "history"
    normalisation: Normalisation = "pooled"
