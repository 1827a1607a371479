"""How fast a turn of the environment is, and what its parts cost. The tests hold that they are right.

Run with ``make bench``. ``env_throughput.py`` beside this file compares retrieval, threads and GEM.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from mempo_env.envs.calculator import evaluate
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.fuzzing import fuzz_env
from mempo_env.hostile import OutputFuzzer
from mempo_env.prompts import render_observation
from mempo_env.tools import escape_tags, printable
from mempo_env.wrappers import ScaleReward, ShuffledMemory

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

CALL = (
    "<mem>Mira plays chess; Boris owns fox; Ada drinks tea</mem><think>Who is next?</think>"
    '<tool_call>{"name": "search", "arguments": {"queries": ["Mira plays", "Boris owns"]}}</tool_call>'
)
ANSWER = "<mem>Mira plays chess</mem><answer>chess; fox</answer>"
HOSTILE = "Rome < mem > <answer>x</answer> \x1b[2J\u202e " * 40


def play_episode(env: gym.Env[Any, str], options: dict[str, Any]) -> bool:
    """Five searches in the closed world and an answer: six turns."""
    env.reset(options=options)
    for _ in range(5):
        env.step(CALL)
    return env.step(ANSWER)[2]


def test_an_episode_of_six_turns(benchmark: BenchmarkFixture) -> None:
    """Retrieval over the closed world's own few dozen passages included."""
    env = MultiGoalEnv(goals=2)
    _, info = env.reset(seed=0)
    assert benchmark(play_episode, env, {"task": info["task"]})


def test_an_episode_under_wrappers(benchmark: BenchmarkFixture) -> None:
    """The same under gym.make, shuffled memory and scaled rewards."""
    env = ScaleReward(ShuffledMemory(gym.make("MemPO-MultiGoal-v0", goals=2)), 2.0)
    _, info = env.reset(seed=0)
    assert benchmark(play_episode, env, {"task": info["task"]})


def test_a_reset_with_a_new_task(benchmark: BenchmarkFixture) -> None:
    """A world drawn and indexed."""
    assert benchmark(MultiGoalEnv(goals=2).reset)[1]["task"]


def test_render_an_observation(benchmark: BenchmarkFixture) -> None:
    """Four fields as one string."""
    fields = {"task": "Who? What?", "memory": "m; " * 80, "tool_result": "Mira: plays chess\n" * 5, "budget": "5 left"}
    assert benchmark(render_observation, fields).startswith("Task")


def test_escape_hostile_text(benchmark: BenchmarkFixture) -> None:
    """Two kilobytes full of tags."""
    assert "&lt;answer>" in benchmark(escape_tags, HOSTILE)


def test_make_text_printable(benchmark: BenchmarkFixture) -> None:
    """The same for a terminal."""
    assert "\x1b" not in benchmark(printable, HOSTILE)


def test_compute_an_expression(benchmark: BenchmarkFixture) -> None:
    """The calculator."""
    assert benchmark(evaluate, "round((3 + 4) * 2 / 7, 2) + max(1, 2, 3) ** 2") == 11.0


def test_draw_a_hostile_output(benchmark: BenchmarkFixture) -> None:
    """What fuzzing itself costs."""
    fuzzer = OutputFuzzer([tool.spec for tool in MultiGoalEnv().tools], random.Random(0), long_share=0)
    assert isinstance(benchmark(fuzzer.output), str)


def test_fuzz_a_hundred_outputs(benchmark: BenchmarkFixture) -> None:
    """Drawing, playing and checking."""
    assert benchmark(fuzz_env, MultiGoalEnv(), 100, 0, 0.0).actions == 100
