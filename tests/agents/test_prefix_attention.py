"""Packed attention equals attention over each row's own prefix and suffix, with its gradient, however it is tiled."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mempo_env.agents import prefix_attention
from mempo_env.agents.prefix_attention import Packed, packed_attention

HEADS, GROUPS, DEPTH, SCALE = 2, 3, 8, 0.3
CLUSTERS = st.lists(
    st.tuples(st.integers(0, 40), st.lists(st.integers(1, 40), min_size=1, max_size=4)), min_size=1, max_size=3
)
MODULE = cast(nn.Module, SimpleNamespace(num_key_value_groups=GROUPS, is_causal=True))


def places(clusters: list[tuple[int, list[int]]]) -> tuple[Packed, list[list[int]]]:
    """Clusters of (prefix, suffixes) laid out one after the other, and each row's places: prefix, then suffix."""
    spans, suffixes, rows, end = [], [], [], 0
    for shared, lengths in clusters:
        start, middle, end = end, end + shared, end + shared
        for length in lengths:
            suffixes.append(list(range(end, end + length)))
            rows.append([*range(start, middle), *suffixes[-1]])
            end += length
        spans.append((start, middle, end))
    width = max(map(len, suffixes))
    return Packed(tuple(spans), torch.tensor([each + [end] * (width - len(each)) for each in suffixes])), rows


def draw(length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def leaf(heads: int) -> Tensor:
        states = torch.randn((1, heads, length, DEPTH), generator=generator)  # (1, heads, N, D)
        return states.to(dtype).requires_grad_()

    return leaf(HEADS * GROUPS), leaf(HEADS), leaf(HEADS)


def row_by_row(query: Tensor, key: Tensor, value: Tensor, packed: Packed, rows: list[list[int]]) -> Tensor:
    """Each row alone, in float64; a prefix's result is taken from its first row."""
    out: dict[int, Tensor] = {}
    for row in rows:
        q, k, v = (states.double()[:, :, row] for states in (query, key, value))
        found = scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE, enable_gqa=True)  # (1, H, t, D)
        for slot, place in enumerate(row):
            out.setdefault(place, found[:, :, slot])
    return torch.stack([out[place] for place in sorted(out)], dim=1)  # (1, N, H, D)


def compare(clusters: list[tuple[int, list[int]]], dtype: torch.dtype, tolerance: float) -> None:
    packed, rows = places(clusters)
    length = packed.spans[-1][2]
    states = draw(length, dtype)
    expected = row_by_row(*states, packed, rows)
    found, weights = packed_attention(MODULE, *states, None, packed, scaling=SCALE)
    assert weights is None
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    assert float((found - expected).detach().abs().max()) < tolerance
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(7)).to(dtype)
    ours = torch.autograd.grad(found, states, upstream)
    theirs = torch.autograd.grad(expected, states, upstream.double())
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).abs().max()) < tolerance * max(1.0, float(other.abs().max()))


@given(CLUSTERS, st.sampled_from([1, 300, 4000, prefix_attention.TILE]), st.sampled_from([1, 5, 32]))
@settings(deadline=None, max_examples=60)
def test_it_equals_attention_row_by_row(clusters: list[tuple[int, list[int]]], tile: int, fewest: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_attention, "TILE", tile)
        patch.setattr(prefix_attention, "MIN_QUERIES", fewest)
        compare(clusters, torch.float32, 1e-5)


def test_half_precision_is_as_near_as_its_rounding() -> None:
    compare([(30, [4, 9, 2]), (0, [5])], torch.bfloat16, 2e-2)


def test_every_pair_of_a_query_and_a_key_it_sees_is_in_one_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_attention, "TILE", 200)
    monkeypatch.setattr(prefix_attention, "MIN_QUERIES", 3)
    packed, rows = places([(20, [4, 9, 2]), (0, [5]), (7, [1, 1])])
    length = packed.spans[-1][2]
    seen = torch.zeros((length + 1, length + 1), dtype=torch.long)
    every = torch.arange(length + 1)
    for tile in prefix_attention._tiles(packed, 6):
        queries, keys = (torch.atleast_2d(every[at]) for at in (tile.queries, tile.keys))
        for some, others in zip(queries.tolist(), keys.tolist(), strict=True):
            for slot, query in enumerate(some):
                visible = others[: len(others) - len(some) + slot + 1] if tile.causal else others
                for key in visible:
                    seen[query, key] += 1
    expected = torch.zeros_like(seen)
    for row in rows:
        for slot, query in enumerate(row):
            for key in row[: slot + 1]:
                expected[query, key] = 1
    assert torch.equal(seen[:-1, :-1], expected[:-1, :-1])


def test_without_packed_rows_it_is_sdpa() -> None:
    query, key, value = draw(9, torch.float32)
    found, _ = packed_attention(MODULE, query, key, value, None, scaling=SCALE)
    expected, _ = sdpa_attention_forward(MODULE, query, key, value, None, scaling=SCALE)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("asked", [{"dropout": 0.1}, {"position_bias": torch.zeros(1)}])
def test_what_packed_rows_lack_is_refused(asked: dict[str, Any]) -> None:
    packed, _ = places([(3, [2])])
    with pytest.raises(ValueError, match="packed rows have neither"):
        packed_attention(MODULE, *draw(5, torch.float32), None, packed, **asked)
