"""Attention of rows that share beginnings, packed without padding: a prefix's keys and values are read where they lie.

All queries after a prefix meet its keys in one product per key head, neither copied for each row nor for each query
head; what a row's queries see of their own suffix is a product of its own; the two partial results are joined by their
log-sum-exps (Hydragen, arXiv:2402.05099). The backward pass computes the weights again from the log-sum-exps, tile by
tile (FlashAttention-2, arXiv:2307.08691), so that no (queries, keys) tensor outlives its tile.

Half-precision inputs are multiplied in float32: scores rounded to half precision would be the largest error of the
layer, and on CPUs without half-precision matrix units the wide product is the faster one too.

Invariant: the result and its gradient are those of causal attention over each row's prefix and suffix, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "sdpa_packed_rows"
TILE = 1 << 18
"""Scores of a tile: small enough to stay in a core's cache between the passes over them."""
MIN_QUERIES = 32
"""Fewest queries of a tile, however many keys they see."""


@dataclass(frozen=True)
class Packed:
    """Where the tokens of rows lie in one sequence: cluster by cluster, each its prefix, then its rows' suffixes.

    Attributes:
        spans: (start, end of the prefix, end) of each cluster.
        rows: (R, T) places of each row's suffix in the sequence of N, padded on the right with N.
    """

    spans: tuple[tuple[int, int, int], ...]
    rows: Tensor


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: Packed | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it; without ``packed`` it is ``sdpa``.

    Args:
        module: The layer.
        query: (1, H, N, D) of the packed tokens.
        key: (1, K, N, D) with K heads that each serve H / K query heads.
        value: (1, K, N, E).
        attention_mask: Not looked at where ``packed`` says who sees whom.
        packed: Where the tokens of which row lie.
        **settings: ``scaling`` and what else ``sdpa`` takes.

    Returns:
        (1, N, H, E), and no weights.

    Raises:
        ValueError: Dropout or a position bias is asked for, which packed rows do not have.
    """
    if packed is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return found
    if settings.get("dropout") or settings.get("position_bias") is not None:
        raise ValueError("packed rows have neither dropout of attention weights nor position biases")
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    out: Tensor = _PackedAttention.apply(query[0], key[0], value[0], packed, scale)  # type: ignore[no-untyped-call]
    return out[None], None  # (1, N, H, E)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, packed: Packed, scale: float) -> Tensor:
        q, k, v = _wide(query, key, value, scale)  # (K, G, N + 1, D), (K, N + 1, D), (K, N + 1, E)
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))  # (K, G, N + 1, E)
        lse = q.new_empty(q.shape[:-1])  # (K, G, N + 1)
        for tile in _tiles(packed, q.shape[0] * q.shape[1]):
            weights = tile.scores(q, k)  # (b, G n, m)
            top = weights.amax(-1, keepdim=True)  # (b, G n, 1)
            total = weights.sub_(top).exp_().sum(-1, keepdim=True)  # (b, G n, 1)
            part, norm = (weights @ _keys(v, tile.keys)).div_(total), (top + total.log_()).squeeze(-1)
            if tile.joins:
                before = _queries(lse, tile.queries)  # (b, G n)
                both = torch.logaddexp(before, norm)  # (b, G n)
                part.mul_((norm - both).exp_()[..., None])
                part.addcmul_(_queries(out, tile.queries), (before - both).exp_()[..., None])
                norm = both
            _put_queries(out, tile.queries, part)
            _put_queries(lse, tile.queries, norm)
        result = out[:, :, :-1].flatten(0, 1).transpose(0, 1).to(query.dtype, memory_format=torch.contiguous_format)
        ctx.save_for_backward(query, key, value, result, lse)  # result is (N, H, E)
        ctx.packed, ctx.scale = packed, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, result, lse = ctx.saved_tensors
        q, k, v = _wide(query, key, value, ctx.scale)  # (K, G, N + 1, D), (K, N + 1, D), (K, N + 1, E)
        given = _with_zero(grad.transpose(0, 1), q.dtype).view(*q.shape[:3], -1)  # (K, G, N + 1, E)
        delta = _with_zero((grad.to(q.dtype) * result).sum(-1, keepdim=True).transpose(0, 1), q.dtype)  # (H, N + 1, 1)
        delta = delta.view(q.shape[:3])  # (K, G, N + 1)
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for tile in _tiles(ctx.packed, q.shape[0] * q.shape[1]):
            weights = tile.scores(q, k).sub_(_queries(lse, tile.queries)[..., None]).exp_()  # (b, G n, m)
            g = _queries(given, tile.queries)  # (b, G n, E)
            _add_keys(dv, tile.keys, weights.mT @ g)
            slope = g @ _keys(v, tile.keys).mT  # (b, G n, m)
            slope.sub_(_queries(delta, tile.queries)[..., None]).mul_(weights)
            _put_queries(dq, tile.queries, slope @ _keys(k, tile.keys), add=True)
            _add_keys(dk, tile.keys, slope.mT @ _queries(q, tile.queries))
        d_query = dq[:, :, :-1].mul_(ctx.scale).flatten(0, 1).to(query.dtype)  # (H, N, D)
        return d_query, dk[:, :-1].to(key.dtype), dv[:, :-1].to(value.dtype), None, None


At = slice | Tensor
"""Places of tokens in the packed sequence: a run of them, or (R, n) for R rows."""


@dataclass(frozen=True)
class _Tile:
    """Queries that meet keys in one product per key head: the last queries see the last keys causally, or all of them.

    ``b`` in shapes: K for a run; R x K for rows.
    """

    queries: At
    keys: At
    causal: bool
    joins: bool  # whether these queries have already seen others

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """(b, G n, m), -inf where a query does not see a key."""
        found = _queries(q, self.queries) @ _keys(k, self.keys).mT  # (b, G n, m)
        if self.causal:
            n = found.shape[1] // q.shape[1]
            unseen = torch.ones((n, n), dtype=torch.bool, device=q.device).triu_(1)  # (n, n)
            found.view(len(found), -1, n, found.shape[2])[..., -n:].masked_fill_(unseen, -torch.inf)
        return found


def _tiles(packed: Packed, heads: int) -> Iterator[_Tile]:
    """Each pair of a query and a key that it sees is in one tile; a suffix's own keys come before its prefix's."""
    n_rows, width = packed.rows.shape
    step = _step(width, heads)
    together = max(1, TILE // (heads * step * width))
    for low in range(0, n_rows, together):
        rows = packed.rows[low : low + together]  # (r, T)
        for a in range(0, width, step):
            yield _Tile(rows[:, a : a + step], rows[:, : a + step], causal=True, joins=False)
    for start, middle, end in packed.spans:
        step = _step(middle - start, heads)
        for a in range(start, middle, step):
            b = min(a + step, middle)
            yield _Tile(slice(a, b), slice(start, b), causal=True, joins=False)
        if start < middle:
            for a in range(middle, end, step):
                yield _Tile(slice(a, min(a + step, end)), slice(start, middle), causal=False, joins=True)


def _step(n_keys: int, heads: int) -> int:
    """Queries of a tile."""
    return max(MIN_QUERIES, TILE // (heads * max(1, n_keys)))


def _wide(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries (K, G, N + 1, D), keys (K, N + 1, D) and values (K, N + 1, E) in float32 or wider."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    q = _with_zero(query, dtype).mul_(scale)  # (H, N + 1, D)
    q = q.view(key.shape[0], -1, *q.shape[1:])  # (K, G, N + 1, D)
    return q, _with_zero(key, dtype), _with_zero(value, dtype)


def _with_zero(states: Tensor, dtype: torch.dtype) -> Tensor:
    """(H, N, D) with a token of zeros behind them, which padding points to: nothing comes from it."""
    heads, length, depth = states.shape
    wide = torch.empty((heads, length + 1, depth), dtype=dtype, device=states.device)
    wide[:, :length], wide[:, length] = states, 0
    return wide


def _queries(states: Tensor, at: At) -> Tensor:
    """(K, G, N, ...) at places: (b, G n, ...)."""
    found = states[:, :, at]  # (K, G, n, ...) or (K, G, R, n, ...)
    if isinstance(at, slice):
        return found.flatten(1, 2)
    return found.movedim(2, 0).flatten(2, 3).flatten(0, 1)


def _put_queries(states: Tensor, at: At, values: Tensor, *, add: bool = False) -> None:
    """Writes (b, G n, ...) to places of (K, G, N, ...), or adds it."""
    kv, groups = states.shape[:2]
    new = values.reshape(-1, kv, groups, values.shape[1] // groups, *values.shape[2:])  # (R, K, G, n, ...)
    new = new[0] if isinstance(at, slice) else new.movedim(0, 2)  # (K, G, n, ...) or (K, G, R, n, ...)
    states[:, :, at] = states[:, :, at] + new if add else new


def _keys(states: Tensor, at: At) -> Tensor:
    """(K, N, D) at places: (b, m, D)."""
    found = states[:, at]  # (K, m, D) or (K, R, m, D)
    return found if isinstance(at, slice) else found.transpose(0, 1).flatten(0, 1)


def _add_keys(states: Tensor, at: At, values: Tensor) -> None:
    """Adds (b, m, D) to places of (K, N, D)."""
    new = values if isinstance(at, slice) else values.view(-1, len(states), *values.shape[1:]).transpose(0, 1)
    states[:, at] += new  # places of one tile differ, but for padding, whose sum nobody reads


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def takes_packed_rows(model: nn.Module) -> bool:
    """Whether a model can: on a CPU, where its attention is ``sdpa`` or already this one, and without autocast."""
    config: Any = model.config
    if torch.is_autocast_enabled("cpu"):
        return False
    return next(model.parameters()).device.type == "cpu" and config._attn_implementation in ("sdpa", NAME)


@contextmanager
def packed_rows_in(model: nn.Module, *, stays: bool) -> Iterator[None]:
    """Has a model take this attention, which is ``sdpa`` for all but packed rows.

    Args:
        model: Whose config names its attention.
        stays: Leave it so: under gradient checkpointing the backward pass computes the layers again, by the attention
            that it finds.
    """
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        if not stays:
            config._attn_implementation = before
