"""What the sampler writes: tokens and log-probs of a plain forward pass, whatever the batch, and where a row stops."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mempo_env.actions import action_end
from mempo_env.agents.codec import ChatCodec
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


def full_forward(model: Any, prompt: tuple[int, ...], output: tuple[int, ...], temperature: float = 1.0) -> Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
    logprobs: Tensor = (logits / temperature).log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(output)[:, None])[:, 0]


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
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 - declared as one of two forms
    states = torch.get_rng_state(), numpy_state[1].copy(), random.getstate()
    assert sampler.sample(make_requests(tiny_codec), config) == first
    assert torch.equal(torch.get_rng_state(), states[0])
    numpy_state = np.random.get_state()  # noqa: NPY002
    assert (numpy_state[1] == states[1]).all()
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


def test_the_head_is_given_a_matrix(tiny_model: Any, tiny_codec: ChatCodec) -> None:
    """Given a slice of the prompt's states, the product copies the head's weights once per row."""
    whole: list[bool] = []
    tiny_model.lm_head.register_forward_pre_hook(lambda _, args: whole.append(args[0].is_contiguous()))
    EmbeddedSampler(tiny_model, tiny_codec).sample(make_requests(tiny_codec, 8), SamplingConfig(max_new_tokens=4))
    assert whole == [True] * 4


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
