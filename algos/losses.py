"""Losses: pure functions of per-token tensors, each with its equation; and how token losses are averaged.

Invariant: every loss is one value per token, (B, O), and leaves masks and means to the caller, who takes the weights
of ``token_weights``, so that the same number results for any split into micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .algorithm_config import Aggregation


def token_weights(
    lengths: Sequence[int], aggregation: Aggregation = "episode", divisor: int = 0
) -> tuple[list[float], float]:
    """How one episode enters the mean over a minibatch.

    The objective of a minibatch is sum_e sum_t w_et sum_{tokens of turn t} loss / sum_e mass_e, so that masses add up
    over episodes, micro-batches and processes.

    Args:
        lengths: Output tokens of each turn of the episode.
        aggregation: ``episode``: 1/|tau| per token, mass 1 (method 5). ``token``: 1, mass |tau| (DAPO, arXiv
            2503.14476, sec. 3.3). ``sequence``: 1/|turn|, mass the number of turns. ``constant``: 1/divisor, mass 1
            (Dr. GRPO, arXiv 2503.20783).
        divisor: Of ``constant``.

    Returns:
        The weight w of each token of each turn, and the episode's mass.

    >>> token_weights([2, 6]), token_weights([2, 6], "token"), token_weights([2, 5], "sequence")
    (([0.125, 0.125], 1.0), ([1.0, 1.0], 8.0), ([0.5, 0.2], 2.0))
    """
    total = sum(lengths)
    if aggregation == "token":
        return [1.0] * len(lengths), float(total)
    if aggregation == "sequence":
        return [1.0 / length for length in lengths], float(len(lengths))
    return [1.0 / (total if aggregation == "episode" else divisor)] * len(lengths), 1.0


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Log of the sequence-level ratio, (1/|y|) sum_t log(pi_t / pi_old,t), as each token sees it.

    It is GSPO's (arXiv 2507.18071, sec. 4.1) in the form of GSPO-token (sec. 4.3): the value is the sequence's, the
    gradient the token's own.

    With one advantage for the whole sequence and a mean over its tokens, gradient and value are those of GSPO. Where
    advantages differ by token, as MemPO's do, a token's advantage moves that token alone.

    A sequence is one turn's output, one row: it was sampled from one prompt. The turns of an episode stand under
    different prompts, and a ratio across rows would depend on the split into micro-batches.

    Args:
        log_ratio: (B, O) log(pi / pi_old) per token, with gradient.
        mask: (B, O) True at output tokens.

    Returns:
        (B, O), equal in value along a row.
    """
    count = mask.sum(dim=-1, keepdim=True).clamp(min=1)  # (B, 1)
    mean = (log_ratio * mask).sum(dim=-1, keepdim=True) / count  # (B, 1)
    return mean.detach() + (log_ratio - log_ratio.detach())  # (B, O)


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    *,
    sequence_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Clipped policy-gradient loss, -min(rho A, clip(rho, 1 - low, 1 + high) A) (PPO, arXiv 1707.06347, eq. 7).

    Args:
        logprobs: (B, O) log pi of the current weights, with gradient.
        old_logprobs: (B, O) log pi of the weights that the ratio is taken against.
        advantages: (B, O).
        clip_low: Clips the ratio below 1 - clip_low.
        clip_high: Clips the ratio above 1 + clip_high; larger than clip_low is DAPO's clip-higher (arXiv 2503.14476).
        sequence_mask: (B, O) True at output tokens: rho is the sequence's (``sequence_log_ratio``); None: the token's.

    Returns:
        (B, O) loss, and (B, O) whether the clip took the gradient away.

    >>> loss, clipped = clipped_surrogate(torch.tensor([0.5]).log(), torch.tensor([0.25]).log(), torch.tensor([1.0]))
    >>> round(loss.item(), 4), clipped.item()
    (-1.2, True)
    """
    log_ratio = logprobs - old_logprobs  # (B, O)
    if sequence_mask is not None:
        log_ratio = sequence_log_ratio(log_ratio, sequence_mask)  # (B, O)
    ratio = log_ratio.exp()  # (B, O)
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
