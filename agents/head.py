"""Log-probabilities of tokens from hidden states, without ever holding a (tokens, vocabulary) tensor.

With gradient, a frozen linear head needs no second product: a token's log-probability depends on its own hidden state
alone, so the forward pass already knows the gradient up to the factor that arrives later, and keeps that (N, D) tensor.

Invariant: whatever the chunk size and the way, the result and its gradient are those of log-softmax over all logits in
float32, up to rounding.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

MAX_SCORES = {"cpu": 3 << 23}
"""Most scores of a chunk by kind of device: 96 MiB in float32, of which two live at one time."""
MAX_SCORES_ELSEWHERE = 1 << 27
"""On other devices, whose products need more rows to be fast."""


def token_logprobs(
    head: nn.Module,
    states: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = 1024,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of tokens.

    Args:
        head: From hidden states to logits.
        states: (N, D) hidden states.
        ids: (N,) the token after each.
        temperature: Divides the logits.
        chunk_tokens: Most tokens whose logits live at one time, fewer under a large vocabulary (``MAX_SCORES``). None:
            the plain path, all at once.
        entropy: Whether to return the entropy of each distribution too, without gradient.

    Returns:
        (N,) float32 log-probabilities, and the (N,) entropies or None.
    """
    if chunk_tokens is None:
        return _plain(head, states, ids, temperature, entropy)
    size = chunk_size(chunk_tokens, getattr(head, "out_features", 1), states.device.type)
    parts = []
    for piece, chosen in zip(torch.split(states, size), torch.split(ids, size), strict=True):  # (n, D), (n,)
        if not (torch.is_grad_enabled() and (piece.requires_grad or _learns(head))):
            parts.append(_logprobs(_logits(head, piece, temperature), chosen, entropy)[:2])
        elif type(head) is nn.Linear and not _learns(head):
            found, spread = _FrozenHead.apply(piece, chosen, head, temperature, entropy)  # type: ignore[no-untyped-call]
            parts.append((found, spread))
        else:
            parts.append(checkpoint(_plain, head, piece, chosen, temperature, entropy, use_reentrant=False))
    spreads = [part[1] for part in parts]
    return torch.cat([part[0] for part in parts]), torch.cat(cast(list[Tensor], spreads)) if entropy else None


def chunk_size(chunk_tokens: int, vocabulary: int, device: str) -> int:
    """Tokens of a chunk on a kind of device.

    >>> chunk_size(1024, 49_152, "cpu"), chunk_size(1024, 151_936, "cpu"), chunk_size(1024, 151_936, "cuda")
    (512, 165, 883)
    """
    return min(chunk_tokens, max(1, MAX_SCORES.get(device, MAX_SCORES_ELSEWHERE) // vocabulary))


def _learns(head: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in head.parameters())


def _plain(
    head: nn.Module, states: Tensor, ids: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    log_all = torch.log_softmax(head(states).float() / temperature, dim=-1)  # (n, V)
    chosen = log_all.gather(-1, ids[:, None]).squeeze(-1)  # (n,)
    with torch.no_grad():
        return chosen, -(log_all.exp() * log_all).sum(-1) if entropy else None


def _logits(head: nn.Module, states: Tensor, temperature: float) -> Tensor:
    """(n, V) in float32; the caller may change them in place."""
    logits = cast(Tensor, head(states)).float()  # (n, V)
    return logits if temperature == 1.0 else logits.div_(temperature)


def _logprobs(logits: Tensor, ids: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Log-probabilities (n,), entropies (n,), exp(logits - largest) (n, V), its sums (n, 1); uses ``logits`` up."""
    top = logits.amax(-1, keepdim=True)  # (n, 1)
    below = logits.sub_(top)  # (n, V)
    chosen = below.gather(-1, ids[:, None]).squeeze(-1)  # (n,)
    weights = below.exp() if entropy else below.exp_()  # (n, V)
    total = weights.sum(-1, keepdim=True)  # (n, 1)
    log_total = total.log().squeeze(-1)  # (n,)
    spread = None
    if entropy:
        # The mean of log-sum-exp - logit: one pass over (n, V), no log of all probabilities. As a product of matrices,
        # because vecdot would hold all (n, V) products.
        spread = log_total - (weights[:, None] @ below[..., None]).flatten() / total.squeeze(-1)  # (n,)
    return chosen - log_total, spread, weights, total


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, ids: Tensor, head: nn.Linear, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        found, spread, weights, total = _logprobs(_logits(head, states, temperature), ids, entropy)  # (n,), (n, V)
        # One-hot minus probabilities, in float32: where a token is nearly certain, their difference is all there is.
        weights.div_(-total * temperature)  # (n, V)
        weights.scatter_add_(-1, ids[:, None], weights.new_full((len(ids), 1), 1 / temperature))  # (n, V)
        ctx.save_for_backward(weights.to(states.dtype) @ head.weight)  # (n, D)
        if spread is not None:
            ctx.mark_non_differentiable(spread)
        return found, spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None, None, None]:
        (slope,) = ctx.saved_tensors  # (n, D)
        return (grad[:, None] * slope).to(slope.dtype), None, None, None, None
