"""Specs are consistent or refused in one line, and ``make_agent`` builds what they name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

import mempo_env  # noqa: F401  (registers the environments)
from mempo_env.agents.adapters import POLICY, adapter_parameters, save_adapter
from mempo_env.agents.agent_spec import AgentSpec
from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.contexts import memory_mode
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.make_agent import make_agent
from mempo_env.agents.models import add_lora, load_model, save_plain
from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.rollout import group_specs, rollout
from mempo_env.agents.settings import TinyConfig
from mempo_env.agents.tiny import build_tiny
from mempo_env.envs.closed_world import closed_world_vocabulary
from mempo_env.errors import UserError


def make_env(context: str = "memory", **kwargs: Any) -> Any:
    return gym.make(
        "MemPO-MultiGoal-v0",
        **{"goals": 1, "split": "dev", "memory": memory_mode(context), "budget": {"max_turns": 2}, **kwargs},
    ).unwrapped


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    model, tokenizer = build_tiny(0, closed_world_vocabulary())
    save_plain(model, tokenizer, folder)
    return folder


def adapter(folder: Path, value: float = 0.05, config: TinyConfig | None = None) -> Path:
    """A folder with an adapter that changes something."""
    model: Any = add_lora(build_tiny(0, closed_world_vocabulary(), config)[0])
    with torch.no_grad():
        for parameter in adapter_parameters(model, POLICY):
            parameter.fill_(value)
    return save_adapter(model, folder, POLICY)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "run"}, "needs run: a run folder"),
        ({"kind": "model"}, "needs model: a hub id"),
        ({"kind": "chat"}, "needs model: the server's name"),
        ({"kind": "robot"}, "unknown kind 'robot'"),
        ({"kind": "expert", "model": "m"}, "model does not go with an agent of kind expert; it is for: model, chat"),
        ({"kind": "expert", "prompt_style": "mem1"}, "prompt_style does not go with"),
        ({"kind": "chat", "model": "m", "adapter": "a"}, "adapter does not go with"),
        ({"kind": "model", "model": "m", "base_url": "http://x"}, "base_url does not go with"),
        ({"kind": "model", "model": "m.gguf", "gguf_file": "n.gguf"}, "is a GGUF file already"),
        ({"kind": "chat", "model": "m", "concurrency": 0}, "concurrency=0 must be at least 1"),
        ({"kind": "chat", "model": "m", "retries": -1}, "retries=-1 must be at least 0"),
        ({"kind": "chat", "model": "m", "timeout": float("nan")}, "timeout=nan must be a positive number"),
        ({"kind": "chat", "model": "m", "temperature": 0.5}, "no effect where decoding is greedy"),
        ({"kind": "chat", "model": "m", "greedy": False, "temperature": 0.0}, "temperature=0.0 must be a positive"),
        ({"kind": "model", "model": "m", "device": "tpu"}, "unknown device 'tpu'"),
        ({"kind": "chat", "model": "m", "system_role": "no"}, "unknown system_role 'no'"),
        ({"kind": "expert", "context": ""}, "context is empty"),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        AgentSpec(**settings)
    assert "\n" not in str(caught.value)


def test_the_context_mem1_brings_its_tags_for_models_of_others_only() -> None:
    assert AgentSpec("chat", model="m", context="mem1").style == "mem1"
    assert AgentSpec("model", model="m", context="mem1", prompt_style="own").style == "own"
    assert AgentSpec("expert", context="mem1").style == "own"
    assert AgentSpec("run", run="runs/x", context="mem1").style == "own"
    assert AgentSpec("chat", model="m").style == "own"


def test_labels_say_what_was_measured() -> None:
    assert AgentSpec("expert").label == "expert"
    assert AgentSpec("run", run="runs/x").label == "runs/x"
    assert AgentSpec("model", model="m", adapter="a").label == "m+a"
    assert AgentSpec("model", model="m", gguf_file="f.gguf").label == "m:f.gguf"
    assert AgentSpec("chat", model="m", name="mine").label == "mine"


def test_context_style_and_environment_must_fit() -> None:
    required = make_env()
    with pytest.raises(UserError, match="memory is optional; this one has memory=required"):
        make_agent(AgentSpec("expert", context="history"), required)
    with pytest.raises(UserError, match="search-r1 has no memory, but the environment demands one"):
        make_agent(AgentSpec("chat", model="m", base_url="http://x", prompt_style="search-r1"), required)
    optional, spec = make_env(memory="optional"), AgentSpec("chat", model="m", prompt_style="search-r1")
    with pytest.raises(UserError, match="no memory to show under the context memory"):
        make_agent(spec, optional)
    with pytest.raises(UserError, match="did you mean 'history'"):
        make_agent(AgentSpec("expert", context="histori"), required)
    with pytest.raises(UserError, match="load_run_policy"):
        make_agent(AgentSpec("run", run="runs/x"), required)


def test_experts_are_priced_as_asked(tiny_codec: ChatCodec) -> None:
    env = make_env("window-2", budget="paper")
    agent = make_agent(AgentSpec("expert", context="window-2"), env, tokens=tiny_codec)
    assert isinstance(agent, ExpertAgent)
    assert (agent.context.name, agent.budget.name, agent.tokens) == ("window-2", "paper", tiny_codec)
    random = make_agent(AgentSpec("random"), make_env())
    assert random.name == "random"


def test_a_model_plays_with_and_without_an_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    def play(spec: AgentSpec) -> Any:
        env = make_env("mem1", instructions="terse")
        agent = make_agent(spec, env)
        assert isinstance(agent, LoraPolicy)
        assert agent.name == spec.label
        assert not agent.trainable_parameters() or not spec.adapter
        return rollout(agent, lambda: make_env("mem1", instructions="terse"), group_specs([1], 1), seed=0, step=0)[0]

    common: dict[str, Any] = {"model": str(tiny_folder), "context": "mem1", "max_new_tokens": 8, "device": "cpu"}
    plain = play(AgentSpec("model", prompt_style="own", **common))
    adapted = play(AgentSpec("model", prompt_style="own", adapter=str(adapter(tmp_path)), **common))
    zero = play(AgentSpec("model", prompt_style="own", adapter=str(adapter(tmp_path / "zero", 0.0)), **common))
    assert [turn.output_ids for turn in zero.turns] == [turn.output_ids for turn in plain.turns]
    assert [turn.output_ids for turn in adapted.turns] != [turn.output_ids for turn in plain.turns]
    styled = play(AgentSpec("model", **common))
    assert all("raw_text" in turn.info for turn in styled.turns)
    assert all(len(turn.segments) == len(turn.output_ids) > 0 for turn in styled.turns)


def test_an_adapter_of_another_model_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    def spec(path: Path) -> AgentSpec:
        return AgentSpec("model", model=str(tiny_folder), adapter=str(path))

    env = make_env()
    for config, said in (
        (TinyConfig(layers=3), "made for another model"),
        (TinyConfig(layers=5), "made for another model"),
        (TinyConfig(width=64), "cannot be put on this model"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            make_agent(spec(adapter(tmp_path / f"{config.layers}-{config.width}", config=config)), env)
        assert "\n" not in str(caught.value)
    adapter(tmp_path / "run")
    with pytest.raises(UserError, match=r"holds no adapter_config.json; give one of its folders: policy"):
        make_agent(spec(tmp_path / "run"), env)
    with pytest.raises(UserError, match="cannot be put on this model"):
        make_agent(spec(tmp_path / "nowhere"), env)


def test_a_template_without_a_system_role_gets_the_instructions_in_the_user_message(tmp_path: Path) -> None:
    model, tokenizer = build_tiny(0, closed_world_vocabulary())
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    folder = tmp_path / "model"
    save_plain(model, tokenizer, folder)
    assert "no system role" in str(load_model(str(folder))[1].chat_template)
    env = make_env(instructions="terse")

    def play(**settings: Any) -> Any:
        agent = make_agent(AgentSpec("model", model=str(folder), max_new_tokens=4, **settings), env)
        return rollout(agent, lambda: make_env(instructions="terse"), group_specs([1], 1), seed=0, step=0)[0], agent

    episode, agent = play()
    assert agent.codec.decode(episode.turns[0].prompt_ids).startswith("Answer all.\n\nTask:")
    with pytest.raises(UserError, match="cannot show messages with the roles system"):
        play(system_role="keep")
