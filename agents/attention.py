"""Attention of one new token over the cache, on a CPU, without a copy of keys and values for each query head.

In float32 two plain products are fastest. In half precision a batched product copies every matrix that does not fill
its buffer, which is the whole cache at every token; the fused kernel reads it where it lies, if the query heads that
share a key head are given to it as queries that follow each other.

Invariant: the result is that of ``sdpa`` up to rounding; anything but a single query on a CPU goes to ``sdpa`` itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .kv_cache import turned_keys
from .prefix_attention import NAME as PACKED

NAME = "sdpa_single_query"


def single_query_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it.

    Args:
        module: The layer.
        query: (B, H, t, D).
        key: (B, K, T, D) with K heads that each serve H / K query heads.
        value: (B, K, T, D).
        attention_mask: (B or 1, 1, t, T), True where a position is seen, or a number to add; None: all are seen.
        **settings: ``scaling`` and what else ``sdpa`` takes.

    Returns:
        (B, t, H, D), and no weights.
    """
    batch, heads, length, depth = query.shape
    plain = settings.get("position_bias") is None and not settings.get("dropout") and query.device.type == "cpu"
    if length != 1 or not plain or (attention_mask is not None and attention_mask.shape[1] != 1):
        if query.device.type == "cpu" and key.stride(-1) != 1:
            key = key.contiguous()  # as torch's fused kernel asks; our cache turns its keys for single queries
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return found
    groups = key.shape[1]
    scale = settings.get("scaling") or depth**-0.5
    packed = query.reshape(batch, groups, heads // groups, depth)  # (B, K, G, D)
    if not turned_keys(query):
        fused = nn.functional.scaled_dot_product_attention(packed, key, value, attention_mask, scale=scale)
        return fused.reshape(batch, 1, heads, -1), None  # (B, 1, H, D)
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = torch.matmul(packed, key.transpose(2, 3)).to(wide) * scale  # (B, K, G, T)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, -torch.inf)
        else:
            scores = scores + attention_mask
    out = torch.matmul(scores.softmax(-1).to(value.dtype), value)  # (B, K, G, D)
    return out.reshape(batch, 1, heads, -1), None


AttentionInterface.register(NAME, single_query_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def single_queries(model: nn.Module) -> Iterator[None]:
    """Has a model that uses ``sdpa`` take this attention for a while; others are left as they are."""
    config: Any = model.config
    before = config._attn_implementation
    if before not in ("sdpa", PACKED):
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
