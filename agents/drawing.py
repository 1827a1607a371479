"""Draws tokens from logits with noise that is keyed, not taken from a generator.

Invariant: what a row draws is a function of its logits and its key, whoever else is in the batch.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
from torch import Tensor, nn

_BLOCK = 256


def choose(logits: Tensor, noise: Tensor | None, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draws one token per row by inverting the cumulative distribution.

    Args:
        logits: (B, V), any floating type; reduced in float32, accumulated in float64.
        noise: (B,) float64 in [0, 1), or None to take the likeliest token.
        temperature: Divides the logits; without effect where ``noise`` is None.

    Returns:
        (B,) ids and their (B,) float32 log-probabilities. A token of probability 0 is never chosen.
    """
    if noise is None:
        logprobs = logits.float().log_softmax(-1)  # (B, V)
        ids = logprobs.argmax(-1, keepdim=True)  # (B, 1)
        return ids.squeeze(-1), logprobs.gather(-1, ids).squeeze(-1)
    wide = logits.float() if temperature == 1 else logits.float() / temperature  # (B, V)
    top = wide.amax(-1, keepdim=True)  # (B, 1)
    weights = (wide - top).exp_()  # (B, V)
    # A cumulative sum in float64 over all of the vocabulary costs as much as all else: over blocks, then inside of one.
    blocks = nn.functional.pad(weights, (0, -weights.shape[-1] % _BLOCK)).view(len(weights), -1, _BLOCK)  # (B, N, 256)
    cumulative = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # (B, N)
    total = cumulative[:, -1:].contiguous()  # (B, 1)
    target = noise[:, None] * total  # (B, 1)
    block = _first_above(cumulative, target)  # (B, 1)
    before = cumulative.gather(-1, (block - 1).clamp(min=0)).where(block > 0, 0)  # (B, 1)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK)).squeeze(1)  # (B, 256)
    place = _first_above(inside.cumsum(-1, dtype=torch.float64), target - before)  # (B, 1)
    ids = (block * _BLOCK + place).clamp(max=logits.shape[-1] - 1)  # (B, 1), the limit for what is not finite
    chosen = (wide.gather(-1, ids) - top).double() - total.log()  # (B, 1)
    return ids.squeeze(-1), chosen.float().squeeze(-1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """(B, 1) places in (B, N) sums that never fall: the first that exceeds the (B, 1) target.

    A place that adds nothing never does so first. A target that rounding lifted to the total would point past the end,
    so the last place that adds to it is the limit.
    """
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())  # (B, 1)
    found = torch.minimum(torch.searchsorted(cumulative, target, right=True), last)  # (B, 1)
    return found.clamp(max=cumulative.shape[-1] - 1)


def row_noise(key_seed: tuple[int | str, ...], n: int) -> Tensor:
    """The first ``n`` uniform numbers of a key's stream; a longer request begins with the same ones.

    Args:
        key_seed: Any tuple of whole numbers and strings.
        n: How many.

    Returns:
        (n,) float64 in [0, 1).
    """
    digest = hashlib.blake2b(json.dumps(key_seed).encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype="<u8")  # Philox takes two 64-bit words
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).random(n))
