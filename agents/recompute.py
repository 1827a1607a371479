"""Gradient checkpointing: a layer's insides are computed again in the backward pass, where they would have been kept.

Memory then grows with the layers' inputs alone, for one more forward pass (Chen et al., arXiv 1604.06174).

Invariants:
    * gradients are those without it, dropout included, whose draws are repeated;
    * it acts in training mode only and ends with the block: sampling and scoring know nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mempo_env.errors import UserError

from .scoring import causal_lm


@contextmanager
def layers_recomputed(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Has the layers of a model computed again in every backward pass of a block.

    Forward and backward pass belong into one block, under one adapter. Inputs need no gradient of their own: the
    non-reentrant form also works where only adapters inside the layers are trained.

    Args:
        model: A causal LM of transformers, plain or under peft.
        on: Off, the block is as any other.

    Raises:
        UserError: This model has no layers that can be computed again.
        ValueError: The model is in evaluation mode, in which transformers recomputes nothing.
    """
    if not on:
        yield
        return
    lm: Any = causal_lm(model)
    if not getattr(lm, "supports_gradient_checkpointing", False):
        raise UserError(
            f"{type(lm).__name__} does not support gradient checkpointing; give --train.no-gradient-checkpointing and "
            "lower --train.micro-batch-tokens instead"
        )
    if not lm.training:
        raise ValueError("gradient checkpointing acts in training mode only; call train_mode() first")
    # transformers renamed the pair; the old names warn, and will go.
    if hasattr(lm, "activation_checkpointing_enable"):
        enable, disable = lm.activation_checkpointing_enable, lm.activation_checkpointing_disable
    else:
        enable, disable = lm.gradient_checkpointing_enable, lm.gradient_checkpointing_disable
    enable({"use_reentrant": False})
    try:
        yield
    finally:
        disable()
