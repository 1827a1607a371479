"""Settings of models, adapters and sampling; importing this file imports no torch.

Invariant: every field has a default, and a settings object that was constructed is consistent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mempo_env.errors import UserError


@dataclass(frozen=True)
class LoraSettings:
    """A LoRA adapter (Hu et al., arXiv 2106.09685).

    Attributes:
        rank: Rank of the update.
        alpha: Scale; the update is multiplied by alpha / rank.
        dropout: Dropout on the adapter's input; 0, so that scoring and sampling see one policy.
        target_modules: ``all-linear`` (every linear layer but the head) or names separated by commas.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise UserError(f"LoRA needs rank >= 1, alpha > 0 and dropout in [0, 1), not {self}")
        if "lm_head" in self.target_modules:
            raise UserError(
                "lm_head cannot be a LoRA target: log-probabilities are computed with the base's head in chunks"
            )


@dataclass(frozen=True)
class SamplingConfig:
    """How outputs are sampled: no top-k, no top-p, no penalties.

    Attributes:
        temperature: Divides the logits; 1 in training, so that the policy sampled is the policy trained.
        max_new_tokens: Longest output.
        greedy: Take the likeliest token (evaluation).
        batch_size: Most rows decoded side by side.
    """

    temperature: float = 1.0
    max_new_tokens: int = 512
    greedy: bool = False
    batch_size: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf or self.max_new_tokens < 1 or self.batch_size < 1:
            raise UserError(f"temperature must be positive, max_new_tokens and batch_size at least 1, not {self}")


@dataclass(frozen=True)
class TinyConfig:
    """Shape of the Qwen2 built in place.

    Attributes:
        layers: Decoder layers.
        width: Hidden size.
        heads: Attention heads; as many key-value heads.
        feed_forward: Width of the MLP.
        init_range: Standard deviation of the initial weights.
        rope_theta: Base of the rotary positions.
        max_positions: Longest sequence.
        look_back: Heads of the first layer that start out looking 1, 2, .. tokens back; 0: none. Copying needs such
            heads first (Olsson et al., arXiv 2209.11895), and to find them is most of what a short imitation is spent
            on.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    feed_forward: int = 256
    init_range: float = 0.05
    rope_theta: float = 10_000.0
    max_positions: int = 2048
    look_back: int = 4

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "feed_forward", "max_positions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.width % (2 * self.heads):
            raise UserError(f"width={self.width} must be divisible by twice heads={self.heads}")
        if not 0 <= self.look_back <= self.heads:
            raise UserError(f"look_back={self.look_back} must lie between 0 and heads={self.heads}")
