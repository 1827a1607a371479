"""Draws tokens from logits with noise that is keyed, not taken from a generator.

Invariant: what a row draws is a function of its logits and its key, whoever else is in the batch.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
from torch import Tensor


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
    else:
        wide = logits.float() if temperature == 1 else logits.float() / temperature  # (B, V)
        logprobs = wide.log_softmax(-1)  # (B, V)
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)  # (B, V)
        total = cumulative[:, -1:].contiguous()  # (B, 1), 1 up to rounding
        # The first token whose cumulative value exceeds the target: one of probability 0 never does so first. A target
        # that rounding lifted to the total would point past the end, so the last token that adds to it is the limit.
        ids = torch.searchsorted(cumulative, noise[:, None] * total, right=True)  # (B, 1)
        ids = torch.minimum(ids, torch.searchsorted(cumulative, total)).clamp(max=logits.shape[-1] - 1)
    return ids.squeeze(-1), logprobs.gather(-1, ids).squeeze(-1)


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
