"""Generalised advantage estimation and the critic's loss: pure functions of tensors, each with its equation.

The actions of an episode are its output tokens, turn after turn; T is their number. What the model is shown between
two turns (prompt, tool results) is state, not action: the last token of a turn is followed by the first of the next.

Invariant: advantages and returns are computed in float64 from the episode alone; whatever is taken over a batch
(``whiten``) is a function of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def turn_rewards(rewards: Sequence[float], sizes: Sequence[int]) -> Tensor:
    """Rewards of an episode's tokens: each turn's falls on the last token of its output.

    Args:
        rewards: One per turn.
        sizes: Output tokens of each turn, at least one.

    Returns:
        (T,) float64.

    >>> turn_rewards([0.5, 1.0], [1, 3])
    tensor([0.5000, 0.0000, 0.0000, 1.0000], dtype=torch.float64)
    """
    tokens = torch.zeros(sum(sizes), dtype=torch.float64)  # (T,)
    last = torch.tensor(sizes).cumsum(0) - 1  # (turns,)
    tokens[last] = torch.tensor(rewards, dtype=torch.float64)
    return tokens


def gae(rewards: Tensor, values: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages A_n = sum_k (gamma lam)^k delta_{n+k} (GAE, arXiv 1506.02438, eq. 16), and the returns A_n + V(s_n).

    delta_n = r_n + gamma V(s_{n+1}) - V(s_n) is the temporal-difference error; V is 0 after the last token.

    Args:
        rewards: (T,) r_n of each token.
        values: (T,) V(s_n) of the state before each token.
        gamma: Discount per token.
        lam: 0 gives delta_n; 1 gives the discounted sum of rewards minus V(s_n).

    Returns:
        (T,) advantages and (T,) returns (the TD(lambda) targets of V), float64.

    >>> a, returns = gae(torch.tensor([0.0, 1.0]), torch.tensor([0.25, 0.5]), gamma=1.0, lam=0.5)
    >>> a.tolist(), returns.tolist()
    ([0.5, 0.5], [0.75, 1.0])
    """
    r, v = rewards.tolist(), values.tolist()
    advantages, after, later = [0.0] * len(r), 0.0, 0.0  # V(s_{n+1}) and A_{n+1}
    for n in reversed(range(len(r))):
        delta = r[n] + gamma * after - v[n]
        advantages[n] = later = delta + gamma * lam * later
        after = v[n]
    found = torch.tensor(advantages, dtype=torch.float64)  # (T,)
    return found, found + values.double()


def whiten(values: Tensor, eps: float = 1e-8) -> Tensor:
    """Centres and scales to unit variance, (x - mean) / sqrt(var + eps), var unbiased (verl's ``masked_whiten``).

    Args:
        values: (N,) of all tokens of a batch.
        eps: Added to the variance.

    Returns:
        (N,); all 0 where there are fewer than two values, or equal ones.
    """
    # A variance of equal numbers can come out as 1e-17 instead of 0, and noise over noise is no advantage.
    if values.numel() < 2 or bool((values == values[0]).all()):
        return torch.zeros_like(values)
    return (values - values.mean()) / (values.var(unbiased=True) + eps).sqrt()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Critic's loss 1/2 max((V - R)^2, (V_clip - R)^2), V_clip = V_old + clip(V - V_old, -clip, clip).

    The form of OpenAI's ``baselines`` (ppo2), TRL and verl: a value gains nothing by moving further than ``clip``
    towards its target.

    Args:
        values: (B, O) V of the current weights, with gradient.
        old_values: (B, O) V of the weights before the batch's first step.
        returns: (B, O) targets.
        clip: Half the width of the range; 0: plain 1/2 (V - R)^2.

    Returns:
        (B, O) loss, and (B, O) whether the clip took the gradient away.
    """
    plain = (values - returns) ** 2  # (B, O)
    if clip == 0:
        return plain / 2, torch.zeros_like(plain, dtype=torch.bool)
    clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns) ** 2  # (B, O)
    return torch.maximum(plain, clipped) / 2, clipped > plain


def explained_variance(values: Tensor, returns: Tensor) -> float | None:
    """1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for one that knows no more than the mean, below for a worse.

    Args:
        values: (N,) V of all tokens of a batch.
        returns: (N,) their targets.

    Returns:
        The share, or None where the targets do not vary.
    """
    spread = returns.var().item() if returns.numel() > 1 else 0.0
    return 1.0 - (returns - values).var().item() / spread if spread > 0 else None
