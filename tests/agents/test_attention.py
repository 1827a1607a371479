"""The attention of a single query equals transformers' own, with grouped heads, masks of both kinds, and none."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mempo_env.agents.attention import NAME, single_queries, single_query_attention
from mempo_env.agents.kv_cache import GrowingLayer


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("turned", [False, True])
def test_it_equals_sdpa(kind: str, heads: int, groups: int, length: int, turned: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, key, value = draw(3, heads, length, 8), draw(3, groups, 11, 8), draw(3, groups, 11, 8)
    seen = torch.rand((3, 1, length, 11), generator=generator) < 0.7
    seen[..., 0] = True
    masks = {"none": None, "bool": seen, "added": torch.where(seen, 0.0, -torch.inf).double()}
    module = cast(nn.Module, SimpleNamespace(num_key_value_groups=heads // groups, is_causal=False))
    laid = key.transpose(2, 3).contiguous().transpose(2, 3) if turned else key  # the same numbers, positions last
    found, _ = single_query_attention(module, query, laid, value, masks[kind], scaling=0.3, dropout=0.0)
    expected, _ = sdpa_attention_forward(module, query, key, value, masks[kind], scaling=0.3, dropout=0.0)
    assert found.shape == expected.shape == (3, length, heads, 8)
    assert float((found - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (9, 3), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_reads_the_cache_where_it_lies(kind: str, heads: int, groups: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = GrowingLayer()
    for length in (90, 1):
        shape = (3, groups, length, 64)
        layer.update(*(torch.randn(shape, generator=generator).to(dtype) for _ in range(2)))
    key, value = layer.keys, layer.values
    query = torch.randn((3, heads, 1, 64), generator=generator).to(dtype)
    seen = torch.rand((3, 1, 1, 91), generator=generator) < 0.7
    seen[..., 0] = True
    added = torch.where(seen, 0.0, -torch.inf)
    mask, exact_mask = {"none": (None, None), "bool": (seen, seen), "added": (added.to(dtype), added.double())}[kind]
    module = cast(nn.Module, SimpleNamespace(num_key_value_groups=heads // groups, is_causal=False))
    found, _ = single_query_attention(module, query, key, value, mask, scaling=0.2)
    exact, _ = sdpa_attention_forward(module, query.double(), key.double(), value.double(), exact_mask, scaling=0.2)
    assert key.stride(-1) == value.stride(-1) == 1
    assert not value.is_contiguous()
    assert found.shape == exact.shape == (3, 1, heads, 64)
    assert found.dtype == dtype
    assert float((found.double() - exact).abs().max()) < (0.02 if dtype == torch.bfloat16 else 0.003)


def test_a_model_takes_it_for_a_while(tiny_model: Any) -> None:
    with single_queries(tiny_model):
        assert tiny_model.config._attn_implementation == NAME
    assert tiny_model.config._attn_implementation == "sdpa"
    tiny_model.config._attn_implementation = "eager"
    with single_queries(tiny_model):
        assert tiny_model.config._attn_implementation == "eager"
