from __future__ import annotations

import copy
import math
import random
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2Config

from mempo_env.actions import action_end
from mempo_env.agents import sampler as sampler_module
from mempo_env.agents.adapters import add_frozen_copy, use_adapter
from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.drawing import choose, row_noise
from mempo_env.agents.kv_cache import GrowingLayer, new_cache
from mempo_env.agents.models import add_lora
from mempo_env.agents.sampler import EmbeddedSampler, SampleRequest
from mempo_env.agents.settings import SamplingConfig

TEXTS = (
    "Task: Mira plays what?",
    "x",
    "Boris owns fox. Boris owns owl.\nMira plays: nothing found",
    "Ada drinks tea; " * 6,
)


def make_requests(codec: ChatCodec, n: int = 8) -> list[SampleRequest]:
    prompts = [tuple(codec.encode_chat([{"role": "user", "content": text}])) for text in TEXTS]
    return [SampleRequest(prompts[i % len(prompts)], (7, 0, "g", i, 2)) for i in range(n)]


@pytest.fixture
def stopping(tiny_codec: ChatCodec) -> ChatCodec:
    """The tiny codec with many end-of-turn ids, so that rows of an untrained model end at different times."""
    codec = copy.copy(tiny_codec)
    codec.eos_ids = tuple(range(0, 60))
    return codec


def full_forward(model: Any, prompt: tuple[int, ...], output: tuple[int, ...], temperature: float = 1.0) -> Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(output)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 2e-6)])
def test_logprobs_are_those_of_a_plain_forward(
    tiny_model: Any, stopping: ChatCodec, temperature: float, lora: bool, dtype: torch.dtype, tolerance: float
) -> None:
    model = (add_lora(tiny_model) if lora else tiny_model).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    config = SamplingConfig(temperature=temperature, max_new_tokens=40, batch_size=5)
    requests = make_requests(stopping, 12)
    results = EmbeddedSampler(model, stopping).sample(requests, config)
    assert len({len(result.output_ids) for result in results}) > 4
    for request, result in zip(requests, results, strict=True):
        expected = full_forward(model, request.prompt_ids, result.output_ids, temperature)
        assert (expected - torch.tensor(result.logprobs)).abs().max() < tolerance
        assert len(result.logprobs) == len(result.output_ids)


def test_smollm2_logprobs_are_those_of_a_plain_forward(smollm2: tuple[Any, ChatCodec]) -> None:
    model, codec = smollm2
    requests = make_requests(codec, 4)
    for request, result in zip(
        requests, EmbeddedSampler(model, codec).sample(requests, SamplingConfig(max_new_tokens=12)), strict=True
    ):
        expected = full_forward(model, request.prompt_ids, result.output_ids)
        assert (expected - torch.tensor(result.logprobs)).abs().max() < 1e-4


def test_a_row_does_not_depend_on_its_batch(tiny_model: Any, stopping: ChatCodec) -> None:
    config = SamplingConfig(max_new_tokens=30)
    requests = make_requests(stopping, 16)
    sampler = EmbeddedSampler(tiny_model, stopping)
    together = sampler.sample(requests, config)
    for results in (
        [sampler.sample([request], config)[0] for request in requests],
        sampler.sample(requests[::-1], config)[::-1],
        sampler.sample(requests, SamplingConfig(max_new_tokens=30, batch_size=3)),
        EmbeddedSampler(tiny_model, stopping, max_tokens=100).sample(requests, config),
    ):
        assert [r.output_ids for r in results] == [r.output_ids for r in together]
        assert [r.stop_reason for r in results] == [r.stop_reason for r in together]
        for a, b in zip(results, together, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    longer = sampler.sample(requests, SamplingConfig(max_new_tokens=40))
    for a, b in zip(longer, together, strict=True):
        assert a.output_ids[: len(b.output_ids)] == b.output_ids  # the limit does not shift the noise


def test_equal_prompts_with_other_keys_differ(tiny_model: Any, tiny_codec: ChatCodec) -> None:
    prompt = tuple(tiny_codec.encode_text("Mira plays"))
    keys = [
        (0, 0, "g", 0, 0),
        (1, 0, "g", 0, 0),
        (0, 1, "g", 0, 0),
        (0, 0, "h", 0, 0),
        (0, 0, "g", 1, 0),
        (0, 0, "g", 0, 1),
    ]
    sampler = EmbeddedSampler(tiny_model, tiny_codec)
    results = sampler.sample([SampleRequest(prompt, key) for key in keys], SamplingConfig(max_new_tokens=8))
    assert len({result.output_ids for result in results}) == len(keys)


def test_global_generators_are_neither_used_nor_moved(tiny_model: Any, tiny_codec: ChatCodec) -> None:
    sampler, config = EmbeddedSampler(tiny_model, tiny_codec), SamplingConfig(max_new_tokens=8)
    torch.manual_seed(1)
    first = sampler.sample(make_requests(tiny_codec), config)
    torch.manual_seed(2)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    assert sampler.sample(make_requests(tiny_codec), config) == first
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]


def test_model_is_sampled_in_evaluation_mode_and_left_as_it_was(tiny_model: Any, tiny_codec: ChatCodec) -> None:
    seen = []
    dropout = nn.Dropout(0.5)
    tiny_model.model.layers[0].mlp.register_forward_hook(
        lambda *_: seen.append(tiny_model.training or dropout.training)
    )
    tiny_model.add_module("extra", dropout)
    tiny_model.train()
    dropout.eval()
    EmbeddedSampler(tiny_model, tiny_codec).sample(make_requests(tiny_codec, 2), SamplingConfig(max_new_tokens=3))
    assert seen == [False] * 3
    assert tiny_model.training
    assert tiny_model.model.layers[0].mlp.training
    assert not dropout.training


def test_greedy_takes_the_likeliest_token(tiny_model: Any, tiny_codec: ChatCodec) -> None:
    requests = make_requests(tiny_codec, 4)
    config = SamplingConfig(max_new_tokens=10, greedy=True, temperature=0.3)
    for request, result in zip(requests, EmbeddedSampler(tiny_model, tiny_codec).sample(requests, config), strict=True):
        ids = list(request.prompt_ids)
        for _ in range(10):
            with torch.no_grad():
                ids.append(int(tiny_model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert list(result.output_ids) == ids[len(request.prompt_ids) :]
        expected = full_forward(tiny_model, request.prompt_ids, result.output_ids)  # at temperature 1
        assert result.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_samples_follow_the_distribution(tiny_model: Any, tiny_codec: ChatCodec) -> None:
    prompt = tuple(tiny_codec.encode_text("Mira plays"))
    requests = [SampleRequest(prompt, (i,)) for i in range(4000)]
    config = SamplingConfig(max_new_tokens=1, temperature=0.3, batch_size=4000)
    results = EmbeddedSampler(tiny_model, tiny_codec, max_tokens=10**6).sample(requests, config)
    with torch.no_grad():
        expected = (tiny_model(torch.tensor([prompt])).logits[0, -1] / 0.3).softmax(-1)
    counts = torch.bincount(torch.tensor([r.output_ids[0] for r in results]), minlength=len(expected))
    frequent = expected > 0.005
    assert frequent.sum() > 10
    deviation = (counts / 4000 - expected) / (expected * (1 - expected) / 4000).sqrt()
    assert deviation[frequent].abs().max() < 4
    assert deviation[frequent].pow(2).mean() < 2


def test_prompts_may_not_be_empty(tiny_model: Any, tiny_codec: ChatCodec) -> None:
    sampler = EmbeddedSampler(tiny_model, tiny_codec)
    assert sampler.sample([], SamplingConfig()) == []
    with pytest.raises(ValueError, match="at least one prompt id"):
        sampler.sample([SampleRequest((), (0,))], SamplingConfig())


@pytest.mark.parametrize("greedy", [False, True])
def test_weights_that_diverged_are_noticed(tiny_model: Any, tiny_codec: ChatCodec, greedy: bool) -> None:
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="diverged"):
        EmbeddedSampler(tiny_model, tiny_codec).sample(
            make_requests(tiny_codec, 2), SamplingConfig(max_new_tokens=3, greedy=greedy)
        )


def test_results_carry_the_version_of_the_weights(tiny_model: Any, tiny_codec: ChatCodec) -> None:
    sampler = EmbeddedSampler(tiny_model, tiny_codec)
    versions = []
    for version in (0, 5):
        sampler.update_weights(version)
        versions.append(
            sampler.sample(make_requests(tiny_codec, 1), SamplingConfig(max_new_tokens=2))[0].weights_version
        )
    assert versions == [0, 5]


# One draw


@settings(deadline=None)
@given(
    logits=st.lists(st.one_of(st.floats(-50, 50), st.just(-math.inf), st.just(-1e4)), min_size=1, max_size=12).filter(
        lambda values: max(values) > -1e4
    ),
    noise=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1 - 2**-53, 0.5])),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
)
def test_choose_inverts_the_distribution(logits: list[float], noise: float, temperature: float) -> None:
    row = torch.tensor([logits])
    (index,), (logprob,) = choose(row, torch.tensor([noise], dtype=torch.float64), temperature)
    exact = (row.double() / temperature).softmax(-1)[0]
    assert (row.float() / temperature).softmax(-1)[0, index] > 0  # never a token of probability 0
    assert logprob.item() == pytest.approx(math.log(exact[index]), abs=1e-4)
    low, high = exact[:index].sum().item(), exact[: index + 1].sum().item()
    assert low - 1e-6 <= noise <= high + 1e-6


def test_choose_at_the_ends() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).repeat(4, 1)
    noise = torch.tensor([0.0, 0.5 - 1e-9, 0.5, 1 - 2**-53], dtype=torch.float64)
    ids, logprobs = choose(logits, noise)
    assert ids.tolist() == [1, 1, 3, 3]
    assert logprobs.tolist() == pytest.approx([-math.log(2)] * 4)
    assert choose(logits, torch.ones(4, dtype=torch.float64))[0].tolist() == [3] * 4  # beyond what the noise can be
    ids, logprobs = choose(torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.bfloat16), None, temperature=0.1)
    assert ids.tolist() == [1]
    assert logprobs.dtype == torch.float32
    assert logprobs.item() == pytest.approx(torch.tensor([0.0, 2.0, 1.0]).log_softmax(0)[1].item())


@pytest.mark.parametrize("size", [255, 256, 257, 2000])
def test_choose_finds_the_place_in_any_block(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    row = torch.randn(size, generator=generator) * 4
    row[torch.rand(size, generator=generator) < 0.3] = -math.inf
    row[: size // 3] = -math.inf  # whole blocks of nothing
    row[size - size // 8 :] = -math.inf
    exact = row.double().softmax(-1)
    sums = exact.cumsum(-1)
    noise = torch.rand(4000, generator=generator, dtype=torch.float64)
    noise[:3] = torch.tensor([0.0, 1 - 2**-53, 1.0])
    ids, logprobs = choose(row.expand(len(noise), -1), noise)
    assert (exact[ids] > 0).all()
    assert (sums[ids] - exact[ids] - 1e-7 <= noise).all()
    assert (noise <= sums[ids] + 1e-7).all()
    assert float((logprobs.double() - exact[ids].log()).abs().max()) < 1e-5
    assert len(ids.unique()) > 20


def test_noise_is_keyed() -> None:
    first = row_noise((1, 2, "g", 3, 4), 50)
    assert first.dtype == torch.float64
    assert ((first >= 0) & (first < 1)).all()
    assert torch.equal(row_noise((1, 2, "g", 3, 4), 20), first[:20])
    # Stable across processes and versions: a change would make old runs impossible to repeat.
    assert row_noise((0, 1, "g", 2, 3), 2).tolist() == [0.42067862362938147, 0.6636512418538417]
    for other in ((1, 2, "g", 34), (1, 2, "g", 3, 5), (12, "g", 3, 4), (1, 2, "g,3", 4), ("1", 2, "g", 3, 4)):
        assert not torch.equal(row_noise(other, 50), first)


# Stops


class Script(nn.Module):
    """Says one given sequence after a prompt of one token."""

    def __init__(self, script: list[int], config: Any, size: int) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.config, self.script, self.size = config, script, size

    def forward(self, position_ids: Tensor, **_: Any) -> Any:
        logits = torch.zeros(1, 1, self.size)
        logits[0, 0, self.script[int(position_ids[0, -1])]] = 100.0
        return SimpleNamespace(logits=logits)


def say(codec: ChatCodec, ids: list[int], config: Any, limit: int = 60) -> tuple[tuple[int, ...], str]:
    model = Script([*ids, *codec.encode_text("a") * limit], config, len(codec.tokenizer))
    sampling = SamplingConfig(max_new_tokens=limit, greedy=True)
    (result,) = EmbeddedSampler(model, codec).sample([SampleRequest((5,), ())], sampling)
    return result.output_ids, result.stop_reason


@pytest.mark.parametrize(
    "text",
    [
        "<mem>a</mem><answer>b</answer>",
        '<mem>a</mem><think>b</think><tool_call>{"name": "search", "arguments": {"queries": ["a"]}}</tool_call>',
        "<mem></answer><tool_call></tool_call></mem><answer>b</answer>",
        "a</answer><answer></think></answer>",
    ],
)
def test_stops_where_the_action_closes(codec: ChatCodec, tiny_model: Any, text: str) -> None:
    ids = codec.encode_text(f"{text} more text")
    output, reason = say(codec, ids, tiny_model.config)
    assert reason == "action"
    written = b"".join(codec.token_bytes(output))
    assert action_end(written) is not None
    assert action_end(b"".join(codec.token_bytes(output[:-1]))) is None  # at once, and the stop token is kept
    assert ids[: len(output)] == list(output)


def test_stops_at_the_end_of_turn(codec: ChatCodec, tiny_model: Any) -> None:
    ids = codec.encode_text("<mem>a</mem> b")
    for eos in codec.eos_ids:
        assert say(codec, [*ids, eos, *ids], tiny_model.config) == ((*ids, eos), "eos")


def test_stops_at_the_limit(codec: ChatCodec, tiny_model: Any) -> None:
    ids = codec.encode_text("<mem>a</answer>b</think>c")  # closing tags, but no action
    output, reason = say(codec, ids, tiny_model.config, limit=len(ids) + 5)
    assert reason == "length"
    assert len(output) == len(ids) + 5
    answer = codec.encode_text("<answer>a</answer>")
    assert say(codec, answer, tiny_model.config, limit=len(answer)) == (tuple(answer), "action")
    assert say(codec, answer, tiny_model.config, limit=len(answer) - 1)[1] == "length"


def test_rows_that_finished_leave_the_batch(tiny_model: Any, stopping: ChatCodec) -> None:
    widths: list[int] = []
    tiny_model.model.layers[0].mlp.register_forward_hook(lambda _, args, __: widths.append(args[0].shape[0]))
    results = EmbeddedSampler(tiny_model, stopping).sample(
        make_requests(stopping, 32), SamplingConfig(max_new_tokens=60)
    )
    running = [sum(len(r.output_ids) > step for r in results) for step in range(1, len(widths))]
    assert widths[0] == len(TEXTS)  # each distinct prompt is read once
    assert all(now <= width <= now * 8 / 7 + 1 for now, width in zip(running, widths[1:], strict=True))
    assert widths[1] > widths[-1]


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
        with_kwargs=True,  # type: ignore[func-returns-value]
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
    sampler = EmbeddedSampler(tiny_model, tiny_codec, max_tokens=max_tokens)
    sizes: list[tuple[int, int]] = []
    prefill = sampler._prefill

    def watched(*given: Any) -> Any:
        found = prefill(*given)
        sizes.append(tuple(found[2].shape))
        return found

    sampler._prefill = watched  # type: ignore[method-assign]
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


def test_the_head_is_given_a_matrix(tiny_model: Any, tiny_codec: ChatCodec) -> None:
    """Given a slice of the prompt's states, the product copies the head's weights once per row."""
    whole: list[bool] = []
    tiny_model.lm_head.register_forward_pre_hook(lambda _, args: whole.append(args[0].is_contiguous()))
    EmbeddedSampler(tiny_model, tiny_codec).sample(make_requests(tiny_codec, 8), SamplingConfig(max_new_tokens=4))
    assert whole == [True] * 4


def test_keys_lie_as_a_single_query_reads_them() -> None:
    (layer,) = new_cache(Qwen2Config(num_hidden_layers=1)).layers
    for length in (7, 1, 200, 1):
        layer.update(torch.rand(4, 2, length, 8), torch.rand(4, 2, length, 8))
        layer.batch_select_indices(torch.tensor([3, 1, 1, 0]))
        assert layer.keys.stride(-2) == 1  # type: ignore[union-attr]
        assert layer.values.stride(-1) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keys_lie_as_the_fused_kernel_reads_them(dtype: torch.dtype) -> None:
    (layer,) = new_cache(Qwen2Config(num_hidden_layers=1)).layers
    for length in (7, 1, 200, 1):
        layer.update(torch.rand(4, 2, length, 8).to(dtype), torch.rand(4, 2, length, 8).to(dtype))
        layer.batch_select_indices(torch.tensor([3, 1, 1, 0]))
        assert layer.keys.stride(-1) == 1  # type: ignore[union-attr]
