from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from mempo_env.actions import parse
from mempo_env.agents.base import TurnRequest
from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.contexts import HistoryContext, MemoryContext
from mempo_env.agents.models import add_lora, load_model
from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.sampler import SampleRequest, SampleResult
from mempo_env.agents.settings import LoraSettings, SamplingConfig
from mempo_env.agents.tiny import build_tiny
from mempo_env.envs.closed_world import closed_world_vocabulary
from mempo_env.errors import UserError
from mempo_env.segments import token_segments

Make = Callable[..., TurnRequest]


class Recorder:
    """A sampler elsewhere: notes what it is asked, says what it is told."""

    def __init__(self, *outputs: tuple[int, ...]) -> None:
        self.outputs = list(outputs)
        self.asked: list[SampleRequest] = []
        self.weights_version = 0

    def update_weights(self, version: int) -> None:
        self.weights_version = version

    def sample(self, requests: Any, config: SamplingConfig) -> list[SampleResult]:
        self.asked += requests
        return [
            SampleResult(o, (-0.5,) * len(o), "action", self.weights_version) for o in self.outputs[: len(requests)]
        ]


@pytest.fixture
def policy(tiny_model: Any, tiny_codec: ChatCodec) -> LoraPolicy:
    """With an adapter that is not zero."""
    model = add_lora(tiny_model, LoraSettings(rank=4))
    shake(model, "policy", 1)
    return LoraPolicy(model, tiny_codec, MemoryContext(), SamplingConfig(max_new_tokens=12))


def shake(model: Any, adapter: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name and f".{adapter}." in name:
                parameter.normal_(std=0.1, generator=generator)


def logits(policy: LoraPolicy) -> Tensor:
    with torch.no_grad():
        found: Tensor = policy.model(torch.arange(300, 320)[None]).logits
    return found


def flags(policy: LoraPolicy) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in policy.model.named_parameters()}


# Playing


def test_ids_in_are_ids_out(policy: LoraPolicy, turn_request: Make) -> None:
    requests = [turn_request(rollout=i, memory=f"Mira plays {'x' * i}") for i in range(5)]
    outputs = policy.act(requests)
    for request, output in zip(requests, outputs, strict=True):
        prompt = policy.codec.encode_chat(MemoryContext().messages(request))
        assert output.prompt_ids == tuple(prompt)
        assert (output.n_prompt, output.n_output) == (len(prompt), len(output.output_ids))
        assert output.text == policy.codec.decode(output.output_ids)
        assert output.segments == token_segments(policy.codec.token_bytes(output.output_ids))
        with torch.no_grad():
            ids = torch.tensor([output.prompt_ids + output.output_ids])
            logprobs = policy.model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        chosen = logprobs.gather(-1, torch.tensor(output.output_ids)[:, None])[:, 0]
        assert (chosen - torch.tensor(output.logprobs)).abs().max() < 1e-4


def test_output_is_read_from_the_ids_alone(codec: ChatCodec, tiny_model: Any, turn_request: Make) -> None:
    """Also where the ids are not what a tokenizer would make of the text, and where tokens straddle tags."""
    text = "<mem>a é</mem><think>b</think><answer>c</answer>"
    usual = tuple(codec.encode_text(text))
    unusual = tuple(index for sign in text.encode() for index in codec.encode_text(chr(sign)) if sign < 128)
    outputs = [(*usual, codec.eos_ids[0]), unusual, (codec.eos_ids[0],), usual[:3]]
    sampler = Recorder(*outputs)
    policy = LoraPolicy(tiny_model, codec, MemoryContext(), sampler=sampler)
    policy.weights_version = 7
    played = policy.act([turn_request(rollout=i) for i in range(4)])
    assert [turn.output_ids for turn in played] == outputs
    assert [request.key_seed for request in sampler.asked] == [(3, 0, "g", i, 0) for i in range(4)]
    assert [turn.prompt_ids for turn in played] == [request.prompt_ids for request in sampler.asked]
    for turn in played:
        pieces = codec.token_bytes(turn.output_ids)
        assert turn.text.encode("utf-8", errors="replace") == b"".join(pieces).decode(errors="replace").encode()
        assert turn.segments == token_segments(pieces)
        assert len(turn.segments) == len(turn.logprobs) == turn.n_output
        assert (turn.stop_reason, turn.weights_version) == ("action", 7)
    assert parse(played[0].text).memory == "a é"
    assert played[0].segments[-1] == 0  # the end of the turn is in no block
    assert set(played[0].segments) == {0, 1, 2, 4}


def test_requests_are_answered_in_order_whatever_the_batch(policy: LoraPolicy, turn_request: Make) -> None:
    requests = [turn_request(rollout=i, tool_result="Mira " * (i * 7 % 5)) for i in range(8)]
    together = policy.act(requests)
    for others in (policy.act(requests[::-1])[::-1], [policy.act([request])[0] for request in requests]):
        assert [output.prompt_ids for output in others] == [output.prompt_ids for output in together]
        assert [output.output_ids for output in others] == [output.output_ids for output in together]


def test_settings_may_be_exchanged(policy: LoraPolicy, turn_request: Make) -> None:
    policy.sampling = SamplingConfig(max_new_tokens=2, greedy=True, temperature=0.5)
    first, second = policy.act([turn_request(rollout=0), turn_request(rollout=1)])
    assert first.output_ids == second.output_ids
    assert first.n_output == 2
    assert policy.temperature == 1.0  # what greedy log-probs are of
    policy.sampling = SamplingConfig(temperature=0.5)
    assert policy.temperature == 0.5
    policy.context = HistoryContext()
    (history,) = policy.act([turn_request(memory="Mira plays chess")])
    assert "chess" not in policy.codec.decode(history.prompt_ids)


def test_prompt_that_is_too_long_is_an_error(policy: LoraPolicy, turn_request: Make) -> None:
    request = turn_request(tool_result="Mira plays chess. " * 20, budget="5 tool calls, 8 turns left")
    length = policy.act([request])[0].n_prompt
    policy.max_prompt_tokens = length
    policy.act([request])
    policy.max_prompt_tokens = length - 1
    with pytest.raises(
        UserError, match=rf"turn 0 of g: a prompt of {length} tokens exceeds {length - 1}; raise max_prompt"
    ):
        policy.act([request])


def test_limit_of_the_model_counts_too(policy: LoraPolicy) -> None:
    assert policy.prompt_limit == 2048 - 12
    policy.max_prompt_tokens = 5000
    assert policy.prompt_limit == 2048 - 12
    policy.max_prompt_tokens = 100
    assert policy.prompt_limit == 100


def test_tool_result_is_cut_on_demand(policy: LoraPolicy, turn_request: Make, caplog: pytest.LogCaptureFixture) -> None:
    request = turn_request(
        tool_result="Mira plays chess. " * 20, memory="Boris owns fox", budget="5 tool calls, 8 turns left"
    )
    whole = policy.act([request])[0]
    policy.truncate_tool_result, policy.max_prompt_tokens = True, whole.n_prompt - 10
    (cut,) = policy.act([request])
    assert whole.n_prompt - 12 <= cut.n_prompt <= whole.n_prompt - 10  # no more than needed, at the end, nothing else
    before, after = policy.codec.decode(whole.prompt_ids), policy.codec.decode(cut.prompt_ids)
    head, tail = after.split("\nBudget:")
    assert before.startswith(head)
    assert before.endswith(tail)
    assert policy.truncated_prompts == 1
    assert "tool result cut" in caplog.text
    policy.max_prompt_tokens = 5  # not even an empty result would do
    with pytest.raises(UserError, match="exceeds 5"):
        policy.act([request])
    assert policy.truncated_prompts == 1


# Adapters


def test_use_adapter_switches_and_restores(policy: LoraPolicy) -> None:
    policy.add_frozen_copy("reference")
    shake(policy.model, "policy", 2)
    own, before = logits(policy), flags(policy)
    with policy.use_adapter("reference"):
        reference = logits(policy)
        assert flags(policy) == before  # a reference that is active is not trainable for that
        with policy.use_adapter(None):
            base = logits(policy)
            with policy.use_adapter("policy"):
                assert torch.equal(logits(policy), own)
            assert torch.equal(logits(policy), base)
            with policy.use_adapter(None):
                assert torch.equal(logits(policy), base)
            assert torch.equal(logits(policy), base)
        assert torch.equal(logits(policy), reference)
    assert torch.equal(logits(policy), own)
    assert flags(policy) == before
    assert not torch.equal(own, reference)
    assert not torch.equal(reference, base)
    plain, _ = build_tiny(0, closed_world_vocabulary())
    assert torch.equal(base, plain(torch.arange(300, 320)[None]).logits)


@pytest.mark.parametrize("name", [None, "reference"])
def test_use_adapter_restores_after_an_exception(policy: LoraPolicy, name: str | None) -> None:
    policy.add_frozen_copy("reference")
    shake(policy.model, "policy", 2)
    own, before = logits(policy), flags(policy)
    with pytest.raises(KeyError), policy.use_adapter(name):
        raise KeyError
    assert torch.equal(logits(policy), own)
    assert flags(policy) == before


def test_unknown_adapters_and_plain_models(policy: LoraPolicy) -> None:
    with pytest.raises(ValueError, match="no adapter 'reference'; there are policy"), policy.use_adapter("reference"):
        pass
    plain = LoraPolicy(build_tiny(0, closed_world_vocabulary())[0], policy.codec, MemoryContext())
    expected = logits(plain)
    with plain.use_adapter(None):
        assert torch.equal(logits(plain), expected)
    with pytest.raises(ValueError, match="there are none"), plain.use_adapter("policy"):
        pass
    with pytest.raises(ValueError, match="there are none"):
        plain.add_frozen_copy()
    assert (plain.adapters, plain.reference_adapter) == ((), None)


def test_frozen_copy_is_equal_then_stays(policy: LoraPolicy) -> None:
    own, state, reference = logits(policy), torch.get_rng_state(), policy.reference_adapter
    trainable = {id(parameter) for parameter in policy.trainable_parameters()}
    assert reference is None
    policy.add_frozen_copy("reference")
    assert torch.equal(torch.get_rng_state(), state)
    assert policy.reference_adapter == "reference"
    assert torch.equal(logits(policy), own)  # the policy is still the active one
    with policy.use_adapter("reference"):
        assert torch.equal(logits(policy), own)
    assert {id(parameter) for parameter in policy.trainable_parameters()} == trainable
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.1)
    for _ in range(2):
        with policy.use_adapter("reference"):
            logits(policy)
        policy.model(torch.arange(300, 320)[None]).logits.log_softmax(-1)[..., 0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(logits(policy), own)
    with policy.use_adapter("reference"):
        assert torch.equal(logits(policy), own)
    with pytest.raises(ValueError, match="already"):
        policy.add_frozen_copy("reference")


def test_gradients_of_two_adapters_are_those_of_two_models(policy: LoraPolicy) -> None:
    """Each backward is finished before the switch; both must reach their adapter."""
    policy.add_frozen_copy("second")
    shake(policy.model, "second", 5)
    for name, parameter in policy.model.named_parameters():
        if ".second." in name:
            parameter.requires_grad_(True)
    alone = copy.deepcopy(policy)

    def backward(of: LoraPolicy, adapter: str) -> None:
        with of.use_adapter(adapter):
            of.model(torch.arange(300, 320)[None]).logits.log_softmax(-1)[..., 7].sum().backward()

    backward(policy, "policy")
    backward(policy, "second")
    for adapter in ("policy", "second"):
        model = copy.deepcopy(alone)
        backward(model, adapter)
        for (name, a), (_, b) in zip(policy.model.named_parameters(), model.model.named_parameters(), strict=True):
            if f".{adapter}." in name:
                assert a.grad is not None
                assert b.grad is not None
                assert torch.equal(a.grad, b.grad)
                assert "lora_" in name


def test_modes(policy: LoraPolicy) -> None:
    model = add_lora(build_tiny(0, closed_world_vocabulary())[0], LoraSettings(dropout=0.5))
    shake(model, "policy", 1)
    dropping = LoraPolicy(model, policy.codec, MemoryContext())
    expected = logits(dropping)
    dropping.train_mode()
    assert not torch.equal(logits(dropping), expected)
    with dropping.evaluating():
        assert torch.equal(logits(dropping), expected)
    assert dropping.model.training
    with pytest.raises(KeyError), dropping.evaluating():
        raise KeyError
    assert all(module.training for module in dropping.model.modules())


# Files


def test_adapters_come_back_from_disk(policy: LoraPolicy, tmp_path: Path) -> None:
    policy.add_frozen_copy("reference")
    shake(policy.model, "policy", 2)
    own = logits(policy)
    with policy.use_adapter("reference"):
        reference = logits(policy)
    policy.save_adapters(tmp_path)
    other = LoraPolicy(
        add_lora(build_tiny(0, closed_world_vocabulary())[0], LoraSettings(rank=4), seed=9),
        policy.codec,
        MemoryContext(),
    )
    with pytest.raises(UserError, match="holds the adapters policy, reference, but this policy has policy"):
        other.load_adapters(tmp_path)
    other.add_frozen_copy("reference")
    parameters = other.trainable_parameters()
    other.load_adapters(tmp_path)
    assert torch.equal(logits(other), own)
    with other.use_adapter("reference"):
        assert torch.equal(logits(other), reference)
    assert all(
        a is b for a, b in zip(parameters, other.trainable_parameters(), strict=True)
    )  # an optimizer's stay valid
    assert flags(other) == flags(policy)
    base, _ = build_tiny(0, closed_world_vocabulary())
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "policy")).eval()  # peft reads it too
    assert torch.equal(theirs(torch.arange(300, 320)[None]).logits, own)


def test_adapters_that_do_not_fit(policy: LoraPolicy, tmp_path: Path) -> None:
    policy.save_adapter(tmp_path)
    other = add_lora(build_tiny(0, closed_world_vocabulary())[0], LoraSettings(rank=8))
    with pytest.raises(UserError, match="of another adapter: rank"):
        LoraPolicy(other, policy.codec, MemoryContext()).load_adapter(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        policy.load_adapter(tmp_path / "nowhere")
    (tmp_path / "policy" / "adapter_model.safetensors").write_bytes(b"\x01" * 50)
    with pytest.raises(UserError, match="cannot be read"):
        policy.load_adapter(tmp_path)
    with pytest.raises(ValueError, match="no adapter 'reference'"):
        policy.save_adapter(tmp_path, "reference")


def test_base_and_adapters_rebuild_the_policy(policy: LoraPolicy, tmp_path: Path, turn_request: Make) -> None:
    policy.save_base(tmp_path / "run" / "base")
    policy.save_adapters(tmp_path / "run" / "adapters")
    model, tokenizer = load_model(tmp_path / "run" / "base")
    rebuilt = LoraPolicy(
        add_lora(model, LoraSettings(rank=4)), ChatCodec(tokenizer), MemoryContext(), SamplingConfig(max_new_tokens=12)
    )
    rebuilt.load_adapters(tmp_path / "run" / "adapters")
    requests = [turn_request(rollout=i) for i in range(3)]
    for name, weights in policy.model.state_dict().items():
        assert torch.equal(rebuilt.model.state_dict()[name], weights), name
    assert torch.equal(logits(rebuilt), logits(policy))
    assert rebuilt.act(requests) == policy.act(requests)  # bit for bit, log-probs included
    with pytest.raises(UserError, match="exists already"):
        policy.save_base(tmp_path / "run" / "base")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["adapters", "base"]  # nothing half-written
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        policy.save_base(tmp_path / "file" / "base")


def test_trainable_parameters(policy: LoraPolicy) -> None:
    n = sum(parameter.numel() for parameter in policy.trainable_parameters())
    assert n == sum(p.numel() for name, p in policy.model.named_parameters() if ".lora_" in name)
    assert policy.device == torch.device("cpu")
    assert isinstance(policy.trainable_parameters()[0], nn.Parameter)
