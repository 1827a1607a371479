"""The example of a user's own algorithm, by its place and by an entry point, through a whole job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mempo_env.algos import ALGORITHMS
from mempo_env.algos.base import get_algorithm
from mempo_env.algos.config_io import read_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PLACE = "own_algorithm:TurnReturns"
Mempo = Callable[..., Any]


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples on the import path, as PYTHONPATH would put them there."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    sys.modules.pop("own_algorithm", None)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip leaves of an installed package that brings the example as an entry point."""
    info = tmp_path / "site" / "turn_returns-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: turn-returns\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mempo_env.algos]\nturn-returns = {PLACE}\n")
    monkeypatch.syspath_prepend(info.parent)


def train(mempo: Mempo, algo: str, run: Path, small: tuple[str, ...]) -> None:
    result = mempo("train", "--algo", algo, "--out", run, "--steps", "2", *small, "--turn-returns.discount", "0.5")
    assert result.code == 0, result.err
    config, algorithm = read_config(run)
    assert config.algo == algo
    assert algorithm.discount == 0.5
    resumed = mempo("train", "--resume", run, "--steps", "3")
    assert resumed.code == 0, resumed.err
    assert '"train/turn_return_groups": 1.0' in (run / "metrics.jsonl").read_text()


def test_by_its_place(mempo: Mempo, small: tuple[str, ...], tmp_path: Path) -> None:
    assert "turn-returns" not in ALGORITHMS.names()
    train(mempo, PLACE, tmp_path / "run", small)
    assert "--turn-returns.discount" in mempo("train", "--algo", PLACE, "--help").out


def test_it_needs_a_group_as_grpo_does(mempo: Mempo, tmp_path: Path) -> None:
    complaint = mempo("train", "--algo", PLACE, "--train.group-size", "1", "--out", tmp_path / "run").complaint
    assert f"--algo {PLACE} compares the episodes of a group" in complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("installed")
def test_by_an_entry_point(mempo: Mempo, small: tuple[str, ...], tmp_path: Path) -> None:
    assert "turn-returns" in ALGORITHMS.names()
    train(mempo, "turn-returns", tmp_path / "run", small)


def test_it_is_short_and_says_how_to_call_it() -> None:
    text = (EXAMPLES / "own_algorithm.py").read_text()
    assert len(text.splitlines()) < 60
    assert f"--algo {PLACE}" in text
    assert f'turn-returns = "{PLACE}"' in text


def test_its_advantages_by_hand() -> None:
    """Rewards (0, 0, 1) and (0.5, 0), discount 0.5: G is (.25, .5, 1) and (.5, 0); a third episode has an error."""
    import dataclasses

    from mempo_env.actions import Answer
    from mempo_env.records import Episode, Goal, Task, Turn

    def episode(index: int, rewards: tuple[float, ...], error: str | None = None) -> Episode:
        turn = Turn({}, "x", Answer(("x",)), 0.0, {}, "", False, 1, 2, (1,), (2, 3), (-1.0, -1.0), (4, 4))
        turns = tuple(dataclasses.replace(turn, reward=reward) for reward in rewards)
        return Episode(turns, Task((Goal("Q?", ("x",)),)), "g", index, 0, 0.0, error is None, error is not None, error)

    algorithm = get_algorithm(PLACE)
    group = (episode(0, (0.0, 0.0, 1.0)), episode(1, (0.5, 0.0)), episode(2, (9.0, 9.0), "down"))
    tokens = algorithm(algorithm.config_class(discount=0.5)).advantages([group], None).tokens  # type: ignore[arg-type]
    found = {key: value.tolist() for key, value in tokens.items()}
    assert found == {
        (0, 0, 0): [-0.125] * 2, (0, 0, 1): [0.25] * 2, (0, 0, 2): [0.0] * 2,
        (0, 1, 0): [0.125] * 2, (0, 1, 1): [-0.25] * 2,
        (0, 2, 0): [0.0] * 2, (0, 2, 1): [0.0] * 2,
    }  # fmt: skip
