from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import mempo_env  # noqa: F401 - registers the environments
from mempo_env.actions import ToolCall, parse
from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.models import load_model, save_plain
from mempo_env.agents.rollout import group_specs, rollout
from mempo_env.agents.scripted_expert import Flaws, make_expert
from mempo_env.agents.settings import TinyConfig
from mempo_env.agents.tiny import build_tiny, build_tokenizer
from mempo_env.envs.closed_world import closed_world_vocabulary
from mempo_env.errors import UserError
from mempo_env.prompts import render_observation

OUTPUT = (
    "<mem>Mira plays chess; Boris owns fox</mem>"
    '<tool_call>{"name": "search", "arguments": {"queries": ["Mira plays", "Boris owns"]}}</tool_call>'
)


def test_what_an_output_costs(tiny_codec: ChatCodec) -> None:
    pieces = [piece.decode() for piece in tiny_codec.token_bytes(tiny_codec.encode_text(OUTPUT))]
    assert pieces == [
        *("<mem>", " Mira", " plays", " chess", ";", " Boris", " owns", " fox", "</mem>"),
        *("<tool_call>", '{"name": "search", "arguments": {"queries": ["', " Mira", " plays", '", "'),
        *(" Boris", " owns", '"]}}', "</tool_call>"),
    ]
    parsed = parse("".join(pieces))
    assert parsed.memory == "Mira plays chess; Boris owns fox"
    assert parsed.action == ToolCall("search", {"queries": [" Mira plays", " Boris owns"]})
    calculation = '<tool_call>{"name": "calculator", "arguments": {"expression": "12 + 7"}}</tool_call>'
    assert len(tiny_codec.encode_text(calculation)) == 8


def test_what_a_prompt_costs(tiny_codec: ChatCodec) -> None:
    """One token a word or sign; two a message; one a field name, tag or unit."""
    observation = {
        "task": "Mira plays what?; Mira or Boris scores more?",
        "memory": "Boris scores 97",
        "tool_result": "Mira plays: Mira owns fox. Mira plays chess.\nBoris owns: nothing found",
        "budget": "5 tool calls, 8 turns left",
    }
    words = 4 + 1 + 6 + 3 + 3 + 4 + 4 + 1 + 3 + 2  # as the observation is written, line by line, with its signs
    fields, budget, messages, instructions = 4, 4, 2 * 2 + 1, 1
    chat = [
        {"role": "system", "content": "Answer all."},
        {"role": "user", "content": render_observation(observation)},
    ]
    assert len(tiny_codec.encode_chat(chat)) == words + fields + budget + messages + instructions


def test_every_word_of_the_closed_world_is_one_token_everywhere(tiny_codec: ChatCodec) -> None:
    places = (" {}", "<mem>{}</mem>", ". {}.", "?\n{}?", '{{"name": "search", "arguments": {{"queries": ["{}"]}}}}')
    for word in closed_world_vocabulary():
        (index,) = tiny_codec.encode_text(word)
        assert tiny_codec.token_bytes([index]) == [f" {word}".encode() if word.isalnum() else word.encode()]
        for place in (*places, '", "{}', "Task: {}", "{} {}\n{}"):
            ids = tiny_codec.encode_text(place.format(word, word, word))
            assert ids.count(index) >= place.count("{}"), place.format(word, word, word)


def test_real_observations_need_no_single_bytes(tiny_codec: ChatCodec) -> None:
    env = gym.make("MemPO-MultiGoal-v0", goals=6, instructions="terse", disable_env_checker=True)
    for seed in range(10):
        observation, info = env.reset(seed=seed)
        queries = [goal.evidence[0].query for goal in info["task"].goals][:5]
        listed = '", "'.join(queries)
        call = f'{{"name": "search", "arguments": {{"queries": ["{listed}"]}}}}'
        observation, *_ = env.step(f"<mem>nothing found</mem><tool_call>{call}</tool_call>")
        assert observation["tool_result"].count("\n") == 4
        for text in (render_observation(observation), env.unwrapped.instructions):  # type: ignore[attr-defined]
            pieces = tiny_codec.token_bytes(tiny_codec.encode_text(text))
            assert not [piece for piece in pieces if len(piece) == 1 and piece not in b"?.:;|\n"], text


@pytest.mark.parametrize("name", ["MemPO-LongDocument-v0", "MemPO-Ledger-v0"])
@pytest.mark.parametrize("questions", ["end", "start"])
def test_what_is_read_and_written_there_needs_no_single_bytes(name: str, questions: str) -> None:
    def make() -> Any:
        settings: dict[str, Any] = {"goals": 4, "questions": questions, "instructions": "terse"}
        return gym.make(name, disable_env_checker=True, **settings)

    env = make().unwrapped
    codec = ChatCodec(build_tokenizer(env.vocabulary, phrases=env.phrases))
    for word in env.vocabulary:
        assert len(codec.encode_text(word)) == 1, word
    for flaws in (Flaws(), Flaws(0.2, 0.1, 0.5)):
        for episode in rollout(make_expert(env, flaws=flaws), make, group_specs(range(5), 1), seed=0, step=0):
            for turn in episode.turns:
                prompt = codec.encode_text(render_observation(turn.observation))
                for ids in (prompt, codec.encode_text(turn.text)):
                    pieces = codec.token_bytes(ids)
                    assert not [piece for piece in pieces if len(piece) == 1 and piece not in b"?.:;,|\n"], pieces
                # What a model writes has a space before each word; it means the same.
                written = parse(codec.decode(codec.encode_text(turn.text)))
                assert (written.memory or "").split() == turn.memory.split()
                assert type(written.action) is type(turn.action)
    call = f'<tool_call>{{"name": "{env.tools[0].spec.name}", "arguments": {{}}}}</tool_call>'
    assert len(codec.encode_text(call)) == 3
    if name == "MemPO-Ledger-v0":
        assert len(codec.encode_text('{"name": "calculator", "arguments": {"expression": "14 + 2 - 5"}}')) == 7
        assert codec.decode(codec.encode_text("q1 = 14 + 2 - 5")) == " q1 = 14 + 2 - 5"


def test_the_tokenizer_of_the_search_environment_is_what_it_was() -> None:
    """Stored runs and results rest on it: other environments bring their words without touching it."""
    env = gym.make("MemPO-MultiGoal-v0").unwrapped
    tokenizer = build_tokenizer(env.vocabulary, 2048, env.phrases)  # type: ignore[attr-defined]
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    assert hashlib.sha256(vocabulary).hexdigest() == "9d0e97f433e0b53f9302461662d649aeef751883725c3fe8805e176654caf070"


def test_unknown_text_is_covered_by_bytes(tiny_codec: ChatCodec) -> None:
    for text in ("Zyx", " été 文 😀", "\x00\x7f", "a_b c-d", "don’t"):
        assert tiny_codec.decode(tiny_codec.encode_text(text)).lstrip() == text.lstrip()
    assert len(tiny_codec.encode_text("😀")) == 4


def test_words_must_be_words() -> None:
    for word in ("two words", "", " x", "a;", "é!"):
        with pytest.raises(UserError, match="single words"):
            build_tokenizer(["Mira", word])
    assert ChatCodec(build_tokenizer(["Mira", "chess-player", "été", "Mira"])).encode_text("chess-player été Mira")[2:]


def test_built_from_a_seed_without_the_global_generators() -> None:
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 - declared as one of two forms
    states = torch.get_rng_state(), numpy_state[1].copy(), random.getstate()
    weights = [torch.cat([p.flatten() for p in build_tiny(seed, ["Mira"])[0].parameters()]) for seed in (0, 0, 1)]
    torch.manual_seed(7)
    again = torch.cat([p.flatten() for p in build_tiny(0, ["Mira"])[0].parameters()])
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], again)
    assert not torch.equal(weights[0], weights[2])
    torch.set_rng_state(states[0])
    build_tiny(0, ["Mira"])
    assert torch.equal(torch.get_rng_state(), states[0])
    numpy_state = np.random.get_state()  # noqa: NPY002
    assert (numpy_state[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_shape_follows_the_config() -> None:
    config = TinyConfig(
        layers=2, width=64, heads=2, feed_forward=96, init_range=0.1, rope_theta=500.0, max_positions=99, look_back=0
    )
    model, tokenizer = build_tiny(0, ["Mira"], config)
    assert (model.config.num_hidden_layers, model.config.num_key_value_heads) == (2, 2)
    assert model.config.rope_parameters["rope_theta"] == 500.0
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 99
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 64)
    assert model.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.1, rel=0.05)
    with pytest.raises(UserError, match="divisible"):
        TinyConfig(width=100, heads=3)


def test_saved_and_loaded_as_any_model(tmp_path: Path, tiny_model: Any, tiny_codec: ChatCodec) -> None:
    save_plain(tiny_model, tiny_codec.tokenizer, tmp_path / "tiny")
    model, tokenizer = load_model(tmp_path / "tiny")
    codec = ChatCodec(tokenizer)
    chat = [{"role": "system", "content": "Answer all."}, {"role": "user", "content": "Task: Mira plays what?\nZyx 文"}]
    assert codec.encode_chat(chat) == tiny_codec.encode_chat(chat)
    assert codec.encode_text(OUTPUT) == tiny_codec.encode_text(OUTPUT)
    assert (codec.eos_ids, codec.pad_id) == (tiny_codec.eos_ids, tiny_codec.pad_id)
    ids = torch.tensor([codec.encode_chat(chat)])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tiny_model(ids).logits)
    assert not model.training
