"""A step reward reaches a training by the way that docs/own_environment.md shows, and by no flag."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "own_environment.md"
ENV = "hooked:Hooked-v0"
Mempo = Callable[..., Any]


@pytest.fixture(autouse=True)
def hooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The document's module on the import path, as PYTHONPATH would put it there."""
    section = DOCUMENT.read_text(encoding="utf-8").partition("\n## A step reward\n")[2]
    (tmp_path / "hooked.py").write_text(section.partition("```python\n")[2].partition("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    gym.registry.pop("Hooked-v0", None)
    yield
    sys.modules.pop("hooked", None)
    gym.registry.pop("Hooked-v0", None)


def test_what_is_noted_is_rewarded_and_what_is_lost_again_is_taken_back() -> None:
    env = gym.make(ENV, goals=2)
    task = env.reset(seed=0)[1]["task"]
    first, second = (goal.answers[0] for goal in task.goals)
    rewards = [env.step(f"<mem>{memory}</mem>")[1] for memory in (first, f"{first} {second}", second, "")]
    assert first != second
    assert rewards == pytest.approx([0.1, 0.1, -0.1, -0.1])


def test_a_training_has_it_in_its_returns(mempo: Mempo, small: tuple[str, ...], tmp_path: Path) -> None:
    """With a hook that always gives something, since a model after three steps of imitation notes nothing."""
    place = tmp_path / "hooked.py"
    text = place.read_text()
    assert text.count("0.1 * (after - before)") == 1
    place.write_text(text.replace("0.1 * (after - before)", "0.1 * (after - before) + 0.5"))
    run = tmp_path / "run"
    result = mempo("train", "--env", ENV, "--algo", "grpo", "--out", run, "--steps", "1", *small)
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (step,) = [row for row in rows if row["phase"] == "train"]
    told = step["rollout/reward/hook/noted"]
    assert told > 0
    assert step["rollout/return"] == pytest.approx(step["rollout/reward/outcome"] + told)


def test_a_flag_that_names_one_is_told_the_way(mempo: Mempo) -> None:
    for command in (("play", "--env"), ("check-env",)):
        told = mempo(*command, "MemPO-MultiGoal-v0", "--env-options", "reward_hook=hooked:noted").complaint
        assert told.startswith("reward_hook='hooked:noted' must be a function of a TurnContext; no flag can give one")
        assert "'A step reward'" in told
