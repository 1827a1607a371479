"""Losses: pure functions of per-token tensors, each with its equation.

Invariant: every function returns one value per token, (B, O), and leaves masks and means to the caller, so that the
same number results for any split into micro-batches.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float = 0.2, clip_high: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Clipped policy-gradient loss, -min(rho A, clip(rho, 1 - low, 1 + high) A) (PPO, arXiv 1707.06347, eq. 7).

    Args:
        logprobs: (B, O) log pi of the current weights, with gradient.
        old_logprobs: (B, O) log pi of the weights that the ratio is taken against.
        advantages: (B, O).
        clip_low: Clips the ratio below 1 - clip_low.
        clip_high: Clips the ratio above 1 + clip_high; larger than clip_low is DAPO's clip-higher (arXiv 2503.14476).

    Returns:
        (B, O) loss, and (B, O) whether the clip took the gradient away.

    >>> loss, clipped = clipped_surrogate(torch.tensor([0.5]).log(), torch.tensor([0.25]).log(), torch.tensor([1.0]))
    >>> round(loss.item(), 4), clipped.item()
    (-1.2, True)
    """
    ratio = (logprobs - old_logprobs).exp()  # (B, O)
    plain = ratio * advantages  # (B, O)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages  # (B, O)
    return -torch.minimum(plain, clipped), clipped < plain


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Estimates KL(pi || pi_ref) per token, exp(d) - d - 1 with d = log pi_ref - log pi (Schulman 2020, k3).

    Args:
        logprobs: (B, O) log pi, with gradient.
        reference_logprobs: (B, O) log pi_ref.

    Returns:
        (B, O), never negative, 0 where the two agree.
    """
    difference = reference_logprobs - logprobs  # (B, O)
    return difference.exp() - difference - 1


def cross_entropy(logprobs: Tensor) -> Tensor:
    """Imitation loss per token, -log pi(demonstrated token)."""
    return -logprobs
