"""The tutorial's environment, from its file: it conforms, its expert solves it, it trains, a person plays it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from mempo_env.agents.testing import check_expert
from mempo_env.algos.config_io import read_config
from mempo_env.testing import check_memory_env

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
ENV = "own_environment:Boxes-v0"
Mempo = Callable[..., Any]


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples on the import path, as PYTHONPATH would put them there."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    sys.modules.pop("own_environment", None)
    gym.registry.pop("Boxes-v0", None)


def boxes(**arguments: Any) -> Any:
    return gym.make(ENV, **arguments).unwrapped


def test_it_is_short_and_the_document_shows_it_as_it_is() -> None:
    text = (EXAMPLES / "own_environment.py").read_text()
    assert len(text.splitlines()) < 80
    assert f"--env {ENV}" in text
    assert f"```python\n{text}```" in (ROOT / "docs" / "own_environment.md").read_text()


@pytest.mark.parametrize("arguments", [{}, {"goals": (2, 16), "split": "dev", "memory": "off"}, {"budget": "paper"}])
def test_it_conforms(arguments: dict[str, Any]) -> None:
    checks = check_memory_env(boxes(**arguments))
    assert not [check for check in checks if check.skipped]


@pytest.mark.parametrize("goals", [1, 6, 16])
def test_its_expert_solves_it(goals: int) -> None:
    check_expert(boxes(goals=goals, split="test"))


def test_no_task_is_in_two_splits() -> None:
    drawn = {}
    for split in ("train", "dev", "test"):
        env = boxes(goals=2, split=split)
        tasks = [env.reset(seed=seed)[1]["task"] for seed in range(200)]
        drawn[split] = {frozenset((goal.question, goal.answers) for goal in task.goals) for task in tasks}
    assert min(map(len, drawn.values())) > 100
    assert len(set.union(*drawn.values())) == sum(map(len, drawn.values()))


@pytest.mark.parametrize("algo", ["mempo", "ppo"])
def test_it_trains_from_a_warm_start(mempo: Mempo, small: tuple[str, ...], tmp_path: Path, algo: str) -> None:
    run = tmp_path / "run"
    result = mempo("train", "--env", ENV, "--algo", algo, "--out", run, "--steps", "2", *small)
    assert result.code == 0, result.err
    assert read_config(run)[0].env == ENV
    assert f"{algo} on {ENV}, dev tasks" in " ".join(result.out.split())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    phases = [row["phase"] for row in rows]
    assert phases.count("imitation") == 3
    assert phases.count("train") == 2
    again = mempo("eval", run, "--goals", "1", "--episodes", "1")
    assert again.code == 0, again.err


def test_its_words_are_single_tokens() -> None:
    from mempo_env.agents.tiny import build_tokenizer

    env = boxes(goals=8)
    tokenizer = build_tokenizer(env.vocabulary, 2048, env.phrases)
    task = env.reset(seed=0)[1]["task"]
    call = '{"name": "open", "arguments": {"boxes": ["red", "blue"]}}'
    result = env.step(f"<mem>x</mem><tool_call>{call}</tool_call>")[0]["tool_result"]
    words = re.findall(r"\w+|[?;:]", f"{task.text} {result}")
    assert len(tokenizer(task.text + "\n" + result)["input_ids"]) <= len(words) + 2  # and two line ends
    assert len(tokenizer(call)["input_ids"]) == 5


def test_a_person_plays_it(mempo: Mempo) -> None:
    lines = "open: red | blue\nopen: plaid\nnote: red\nanswer: key\n"
    result = mempo("play", "--env", ENV, "--goals", "1", "--seed", "2", stdin=lines)
    assert result.code == 0, result.err
    assert re.search(r"open: BOXES \| BOXES +Opens 1 to 5 boxes", result.out)
    assert re.search(r"Result: red: \w+\s+blue: \w+", result.out)
    assert "Format error (bad_arguments): open takes" in result.out
    assert "gold:" in result.out


def test_settings_that_it_does_not_take_are_refused(mempo: Mempo) -> None:
    play = mempo("play", "--env", ENV, "--dataset", "qa", "--data", "x").complaint
    assert "takes no dataset" in play
    assert (
        "split='no' is unknown; use one of train, dev, test" in mempo("play", "--env", ENV, "--split", "no").complaint
    )
    option = mempo("play", "--env", ENV, "--env-options", "goals=3").complaint
    assert option == "--env-options goals=..: goals has a flag of its own; see mempo play --help"


def test_play_hands_options_on(mempo: Mempo) -> None:
    result = mempo("play", "--env", ENV, "--env-options", "memory=off", "instructions=terse", stdin="answer: a; b\n")
    assert result.code == 0, result.err
    assert "answered" in result.out


def test_check_env_names_what_it_checked(mempo: Mempo) -> None:
    result = mempo("check-env", ENV, "--env-options", "goals=[1, 4]", "--seed", "3", "--episodes", "2", columns=80)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert len(lines) == 23
    assert all(line.startswith("ok ") for line in lines)
    assert max(map(len, lines)) <= 80
    seldom = mempo("check-env", ENV, "--env-options", "goals=6", 'budget={"max_tool_calls": 1}').complaint
    assert seldom.startswith(f"{ENV} breaks a promise: the expert fails on 8 of 8 tasks")
    allowed = mempo("check-env", ENV, "--no-success", "--env-options", "goals=6", 'budget={"max_tool_calls": 1}')
    assert allowed.code == 0, allowed.err
    assert "solves every task" not in allowed.out


MISTAKES = """
import gymnasium as gym
import own_environment

class Numbers(own_environment.OpenBoxes):
    def call(self, arguments):
        return 7

class Dicts(own_environment.OpenBoxes):
    def __init__(self, most):
        super().__init__(most)
        self.spec = {"name": "open"}

class Mistaken(own_environment.BoxesEnv):
    def __init__(self, tool="numbers", **memory_env):
        super().__init__(**memory_env)
        self._open = {"numbers": Numbers, "dicts": Dicts}.get(tool, own_environment.OpenBoxes)(5)
        self._single = tool == "single"

    @property
    def tools(self):
        return self._open if self._single else (self._open,)

gym.register("Mistaken-v0", entry_point=Mistaken)
"""


def test_mistakes_with_tools_are_told_in_one_line(
    mempo: Mempo, small: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mistaken.py").write_text(MISTAKES)
    monkeypatch.syspath_prepend(tmp_path)
    env, promise = "mistaken:Mistaken-v0", "mistaken:Mistaken-v0 breaks a promise: "
    try:
        dicts = mempo("check-env", env, "--env-options", "tool=dicts").complaint
        assert dicts.startswith(f"{promise}the spec of tool Dicts is of type dict: {{'name': 'open'}}. Mend: make it a")
        single = mempo("check-env", env, "--env-options", "tool=single").complaint
        assert single.startswith(f"{promise}tools is <own_environment.OpenBoxes object")
        numbers = mempo("check-env", env).complaint
        assert "tool 'open' returned 7, of type int; its call(arguments) must return a str. Mend: return" in numbers
        train = mempo("train", "--env", env, "--algo", "grpo", "--out", tmp_path / "run", "--steps", "1", *small)
        assert train.complaint == "tool 'open' returned 7, of type int; its call(arguments) must return a str"
    finally:
        sys.modules.pop("mistaken", None)
        gym.registry.pop("Mistaken-v0", None)


def test_check_env_refuses_what_is_no_memory_env(mempo: Mempo) -> None:
    assert "is no mempo_env.MemoryEnv" in mempo("check-env", "CartPole-v1").complaint
    assert "unknown environment 'Nothing-v0'" in mempo("check-env", "Nothing-v0").complaint
    assert "mempo check-env needs ID" in mempo("check-env").complaint
    assert "episodes=0 must be at least 1" in mempo("check-env", ENV, "--episodes", "0").complaint
