"""Settings of the algorithms; importing this file imports no torch.

Invariant: class defaults are published settings, each with its source; combinations that mean nothing are refused at
construction.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Literal

from mempo_env.errors import UserError, unknown_name

EPS = 1e-6
"""Added to a standard deviation before dividing. A common default; no source for MemPO states it."""

Normalisation = Literal["none", "pooled", "per_turn"]
MemoryCredit = Literal["all", "successes", "guarded"]
Baseline = Literal["reference", "old_memory", "empty_memory", "history"]
CONSTANT_BASELINES = ("reference", "empty_memory")


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
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.001
    normalise_std: bool = True
    eps: float = EPS

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.clip_low < 1 or self.clip_high <= 0:
            raise UserError(f"clip_low={self.clip_low} must lie in (0, 1) and clip_high={self.clip_high} above 0")
        if self.beta < 0 or self.eps <= 0:
            raise UserError(f"beta={self.beta} must not be negative and eps={self.eps} must be positive")


@dataclass(frozen=True)
class MemPOConfig(GRPOConfig):
    """Settings of MemPO; the defaults are the ``brief`` form.

    Attributes:
        weight: w of A^M (1: the paper).
        baseline: b. ``reference``: mean Q over the memories of the group's other episodes. ``old_memory``: Q(m_{t-1}),
            the memory this one replaced (potential shaping). ``empty_memory``: Q of an empty memory.
            ``history``: P(answer | all that was seen before the turn), the paper's; quadratic in turns, and it means
            something only for a policy that was warm-started on history contexts too.
        normalisation: ``none``, or over which set mean and std run: ``pooled`` (all memories of the group) or
            ``per_turn``; the sources leave this open.
        credit: Which episodes' memories earn A^M: ``all``, ``successes`` (outcome above 0; InfoMem, arXiv 2606.03329),
            or ``guarded`` (all, but bounded below by 0 and not normalised in groups where every episode failed).
    """

    weight: float = 1.0
    baseline: Baseline = "reference"
    normalisation: Normalisation = "none"
    credit: MemoryCredit = "guarded"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 0:
            raise UserError(f"weight={self.weight} must not be negative")
        if self.normalisation != "none" and self.baseline in CONSTANT_BASELINES:
            raise UserError(
                f"baseline='{self.baseline}' is constant over a group and cancels when normalisation="
                f"'{self.normalisation}' subtracts the mean; use normalisation='none', or baseline='old_memory' or "
                "'history'"
            )


@dataclass(frozen=True)
class MemPOPaperConfig(MemPOConfig):
    """The ``paper`` form: b is the answer's probability given the full history, z-scored over the group's memories."""

    baseline: Baseline = "history"
    normalisation: Normalisation = "pooled"
