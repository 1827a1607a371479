"""The sampler's cache and fast path: what rows share, how keys lie in memory and what a batch holds change no row."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, Qwen2Config

from mempo_env.agents import sampler as sampler_module
from mempo_env.agents.adapters import add_frozen_copy, use_adapter
from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.kv_cache import GrowingLayer, new_cache
from mempo_env.agents.models import add_lora
from mempo_env.agents.sampler import EmbeddedSampler, SampleRequest
from mempo_env.agents.settings import SamplingConfig

# The cache


def test_growing_cache_holds_what_the_dynamic_one_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    config = Qwen2Config(num_hidden_layers=1)
    ours, theirs = new_cache(config), DynamicCache(config=config)
    assert isinstance(ours.layers[0], GrowingLayer)
    batch = 4
    for step in range(200):
        if step in (3, 70, 150):
            indices = torch.tensor([2, 0, 2, 1, 3][: 5 if step == 3 else 4])
            ours.batch_select_indices(indices)
            theirs.batch_select_indices(indices)
            batch = len(indices)
        shape = (batch, 2, 7 if step == 0 else 1, 3)
        keys, values = (torch.rand(shape, generator=generator) for _ in range(2))
        for a, b in zip(ours.update(keys, values, 0), theirs.update(keys, values, 0), strict=True):
            assert torch.equal(a, b)
        assert ours.get_seq_length() == theirs.get_seq_length() == 7 + step


def test_models_with_sliding_windows_keep_their_own_cache() -> None:
    config = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert not any(isinstance(layer, GrowingLayer) for layer in new_cache(config).layers)


def test_what_prompts_share_is_read_once_and_changes_no_row(tiny_model: Any, stopping: ChatCodec) -> None:
    generator = torch.Generator().manual_seed(3)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(70, 300, (n,), generator=generator).tolist())

    first, second = ids(40), ids(25)
    prompts = [first + ids(n) for n in (3, 9, 1)] + [second + ids(4)] * 3 + [second + ids(6), ids(12)]
    requests = [SampleRequest(prompt, (1, index)) for index, prompt in enumerate(prompts)]
    config = SamplingConfig(max_new_tokens=20, batch_size=16)
    model = tiny_model.double()
    widths: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda *call: widths.append(tuple(call[2]["input_ids"].shape)),
        with_kwargs=True,
    )
    together = EmbeddedSampler(model, stopping).sample(requests, config)
    read = sum(rows * width for rows, width in widths[:2])
    assert widths[0][1] == len(first)
    assert read < sum(map(len, prompts))
    for batch_size in (1, 3):
        alone = EmbeddedSampler(model, stopping).sample(
            requests, SamplingConfig(max_new_tokens=20, batch_size=batch_size)
        )
        for ours, theirs in zip(together, alone, strict=True):
            assert ours.output_ids == theirs.output_ids
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


@pytest.mark.parametrize("batch_size", [3, 16])
@pytest.mark.parametrize("max_tokens", [150, 250, 1000])
def test_the_cache_keeps_its_budget_whatever_is_shared(
    tiny_model: Any, tiny_codec: ChatCodec, batch_size: int, max_tokens: int
) -> None:
    """Long prefixes beside long rests, and short rows before long ones."""

    def ids(start: int, n: int) -> tuple[int, ...]:
        return tuple(range(70 + start, 70 + start + n))

    shared = ids(0, 60)
    prompts = [
        (*shared, 300),
        (*shared, 301),
        (*shared, 302),
        ids(100, 100),
        ids(101, 100),
        ids(5, 20),
        (*ids(5, 19), 9),
    ]
    config = SamplingConfig(max_new_tokens=10, batch_size=batch_size)
    sampler: Any = EmbeddedSampler(tiny_model, tiny_codec, max_tokens=max_tokens)
    sizes: list[tuple[int, int]] = []
    prefill = sampler._prefill

    def watched(*given: Any) -> Any:
        found = prefill(*given)
        sizes.append(tuple(found[2].shape))
        return found

    sampler._prefill = watched
    sampler.sample([SampleRequest(prompt, (1, index)) for index, prompt in enumerate(prompts)], config)
    assert sum(rows for rows, _ in sizes) == len(prompts)
    assert all(rows == 1 or rows * width <= max_tokens for rows, width in sizes)


def test_prompts_that_begin_alike_come_into_one_batch(tiny_model: Any, tiny_codec: ChatCodec) -> None:
    """By length alone, the two tasks would be dealt out in turn and each batch would read both beginnings."""
    beginnings = [tuple(range(70, 110)), tuple(range(150, 190))]
    prompts = [(*beginnings[index % 2], *range(200, 201 + index)) for index in range(6)]
    sampler = EmbeddedSampler(tiny_model, tiny_codec)
    requests = [SampleRequest(prompt, (1, index)) for index, prompt in enumerate(prompts)]
    batches = list(sampler._batches(requests, SamplingConfig(max_new_tokens=4, batch_size=3)))
    assert sorted(map(sorted, batches)) == [[0, 2, 4], [1, 3, 5]]


# The fast path against the plain one


def plain_sample(
    model: Any, codec: ChatCodec, requests: list[SampleRequest], config: SamplingConfig, patch: pytest.MonkeyPatch
) -> Any:
    """One row at a time, with transformers' own cache and attention, and peft's layers: nothing shared or turned."""
    with patch.context() as plain:
        plain.setattr(sampler_module, "new_cache", lambda config: DynamicCache(config=config))
        plain.setattr(sampler_module, "single_queries", lambda model: nullcontext())
        plain.setattr(sampler_module, "lean_linears", lambda model: nullcontext())
        return [EmbeddedSampler(model, codec).sample([request], config)[0] for request in requests]


@pytest.mark.parametrize("shared", [0, 40])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 2e-6)])
def test_the_fast_path_equals_the_plain_one_across_updates_and_adapters(
    tiny_model: Any,
    stopping: ChatCodec,
    shared: int,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(5)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(70, 300, (n,), generator=generator).tolist())

    beginning = ids(shared)
    requests = [SampleRequest((*beginning, *ids(3 + 5 * (row % 3))), (2, row)) for row in range(12)]
    config = SamplingConfig(max_new_tokens=90)  # beyond the cache's spare room, so that it grows on the way
    model = add_lora(tiny_model).to(dtype)
    add_frozen_copy(model, "policy", "other")
    sampler, seen = EmbeddedSampler(model, stopping), []
    for version, name in enumerate(("policy", "policy", "other", None, "policy")):
        for key, parameter in model.named_parameters():
            if "lora_B.policy" in key or ("lora_B.other" in key and not version):
                nn.init.normal_(parameter, std=0.1, generator=generator)
        sampler.update_weights(version)
        with use_adapter(model, name):
            fast = sampler.sample(requests, config)
            plain = plain_sample(model, stopping, requests, config, monkeypatch)
        assert [result.output_ids for result in fast] == [result.output_ids for result in plain]
        assert [result.stop_reason for result in fast] == [result.stop_reason for result in plain]
        for ours, theirs in zip(fast, plain, strict=True):
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=tolerance)
        seen.append(tuple(result.output_ids for result in fast))
    assert len(set(seen)) == len(seen)


def test_keys_lie_as_a_single_query_reads_them() -> None:
    (layer,) = new_cache(Qwen2Config(num_hidden_layers=1)).layers
    for length in (7, 1, 200, 1):
        layer.update(torch.rand(4, 2, length, 8), torch.rand(4, 2, length, 8))
        layer.batch_select_indices(torch.tensor([3, 1, 1, 0]))
        assert layer.keys.stride(-2) == 1
        assert layer.values.stride(-1) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keys_lie_as_the_fused_kernel_reads_them(dtype: torch.dtype) -> None:
    (layer,) = new_cache(Qwen2Config(num_hidden_layers=1)).layers
    for length in (7, 1, 200, 1):
        layer.update(torch.rand(4, 2, length, 8).to(dtype), torch.rand(4, 2, length, 8).to(dtype))
        layer.batch_select_indices(torch.tensor([3, 1, 1, 0]))
        assert layer.keys.stride(-1) == 1
