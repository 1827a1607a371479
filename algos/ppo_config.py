"""Settings of PPO; importing this file imports no torch.

Invariant: class defaults are published settings, each with its source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mempo_env.errors import UserError

from .algorithm_config import check_choices


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO. Epochs and minibatches are the loop's: ``train.epochs`` and ``train.minibatches``.

    Attributes:
        clip_low: Clips the ratio below 1 - clip_low (0.2: PPO, arXiv 1707.06347).
        clip_high: Clips the ratio above 1 + clip_high (0.2: PPO).
        beta: Weight of the KL term (0.001: verl's ``kl_coef``, for either place; InstructGPT, arXiv 2203.02155, had
            0.02, TRL has 0.05).
        kl_in: Where the KL term stands. ``reward``: each token's reward loses beta (log pi - log pi_ref), as in
            InstructGPT and TRL. ``loss``: beta times the k3 estimate is added to the loss, as in GRPO.
        gamma: Discount per token (1: InstructGPT, TRL, verl).
        lam: Lambda of GAE (1: verl and Search-R1, arXiv 2503.09516; TRL has 0.95, with which a reward 100 tokens
            away counts for 0.006).
        whiten: Centre and scale the advantages over all tokens of the batch (on: TRL, verl).
        value_clip: A value gains nothing by moving further than this in one batch; 0: no clip (0.5: verl; TRL has 0.2).
        value_coef: Factor on the critic's loss (1: c1 of PPO's table 5, over verl's 1/2 of the square).
        critic_lr_factor: Learning rate of the critic as a multiple of the policy's (1: TRL has one for both; verl's are
            1e-5 and 1e-6).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.001
    kl_in: Literal["reward", "loss"] = "reward"
    gamma: float = 1.0
    lam: float = 1.0
    whiten: bool = True
    value_clip: float = 0.5
    value_coef: float = 1.0
    critic_lr_factor: float = 1.0

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.clip_low < 1 or not self.clip_high > 0:
            raise UserError(f"clip_low={self.clip_low} must lie in (0, 1) and clip_high={self.clip_high} above 0")
        if not 0 < self.gamma <= 1 or not 0 <= self.lam <= 1:
            raise UserError(f"gamma={self.gamma} must lie in (0, 1] and lam={self.lam} in [0, 1]")
        if not 0 <= self.beta < math.inf or not self.value_clip >= 0:
            raise UserError(
                f"beta={self.beta} and value_clip={self.value_clip} must not be negative; 0 switches them off"
            )
        if not 0 < self.value_coef < math.inf or not 0 < self.critic_lr_factor < math.inf:
            raise UserError(
                f"value_coef={self.value_coef} and critic_lr_factor={self.critic_lr_factor} must be positive and "
                "finite: the critic must learn; for a learner without one take --algo grpo"
            )
