"""How long a long document takes: to draw, to read by the scripted expert, and to price as full history.

Run with ``make bench``. The tests hold that the prices are right and grow no faster than the turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gymnasium as gym

from mempo_env.agents.history_cost import history_cost
from mempo_env.agents.rollout import group_specs, rollout
from mempo_env.agents.scripted_expert import make_expert
from mempo_env.env import MemoryEnv
from mempo_env.records import Episode
from mempo_env.tokens import RegexTokenCounter

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


def long_document() -> MemoryEnv:
    """An environment of the longest documents, with the most facts and goals."""
    env = gym.make("mempo_env:MemPO-LongDocument-v0", chunks=400, chunk_tokens=100, facts=60, goals=16).unwrapped
    assert isinstance(env, MemoryEnv)
    return env


def read(env: MemoryEnv) -> Episode:
    """One episode of the scripted expert."""
    (episode,) = rollout(make_expert(env), lambda: env, group_specs([0], 1), seed=0, step=0)
    return episode


def test_draw_a_document_of_400_chunks(benchmark: BenchmarkFixture) -> None:
    """A reset: 400 chunks of 100 tokens."""
    env = long_document()
    assert len(benchmark(lambda: env.reset(seed=0)[1]["task"]).passages) == 400


def test_read_a_document_of_400_chunks(benchmark: BenchmarkFixture) -> None:
    """The whole episode of 401 turns, with rollout, environment and prices."""
    env = long_document()
    assert len(benchmark(read, env).turns) == 401


def test_price_its_history(benchmark: BenchmarkFixture) -> None:
    """What full history would have cost, beside what memory cost."""
    played = [read(long_document())]
    assert benchmark(history_cost, played, RegexTokenCounter()).saving_total > 0.9
