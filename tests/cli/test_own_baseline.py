"""The example of a baseline of one's own: by hand, through a whole job, and in the place the documents name."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mempo_env.actions import Answer
from mempo_env.algos.algorithm_config import MemPOPaperConfig
from mempo_env.algos.base import get_algorithm
from mempo_env.algos.config_io import read_config
from mempo_env.algos.memory_baselines import comparable_memories, score_memories
from mempo_env.errors import UserError
from mempo_env.records import Episode, Goal, Group, Task, Turn

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PLACE = "own_baseline:KeepAll"
QUALITY = {"a": 0.5, "b": 0.9, "c": 0.1, "; seen": 0.7, "a; more": 0.6, "; other": 0.4}


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples on the import path, as PYTHONPATH would put them there."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    sys.modules.pop("own_baseline", None)


class Qualities:
    """A scorer of the texts above; remembers how often it was asked."""

    calls = 0

    def memory_quality(self, items: Sequence[tuple[Episode, str]]) -> torch.Tensor:
        self.calls += 1
        return torch.tensor([QUALITY[text] for _, text in items], dtype=torch.float64)


def turn(before: str, result: str, memory: str, reward: float = 0.0) -> Turn:
    observation = {"task": "Q?", "memory": before, "tool_result": result, "budget": ""}
    tokens: tuple[Any, ...] = ((1,), (2, 3), (-1.0, -1.0), (1, 4))
    return Turn(observation, "x", Answer(("x",)), reward, {"outcome": reward}, memory, True, 1, 2, *tokens)


@pytest.fixture
def group() -> Group:
    """One episode writes a on seeing "seen", then b on "more", and succeeds; the other writes c on "other"."""

    def episode(index: int, *turns: Turn) -> Episode:
        return Episode(turns, Task((Goal("Q?", ("x",)),)), "g", index, 0, turns[-1].reward, True, False, None)

    return (episode(0, turn("", "seen", "a"), turn("a", "more", "b", 1.0)), episode(1, turn("", "other", "c")))


def test_its_advantages_by_hand(group: Group) -> None:
    """R^M is .5 - .7, .9 - .6 and .1 - .4: less their mean, over their standard deviation, on the memory's token."""
    algorithm, scorer = get_algorithm(PLACE), Qualities()
    config = algorithm.config_class(weight=2.0)
    assert isinstance(config, MemPOPaperConfig)
    reward = torch.tensor([-0.2, 0.3, -0.3], dtype=torch.float64)  # (3,)
    expected = 2 * (reward - reward.mean()) / reward.std()  # (3,)
    advantages = algorithm(config).advantages([group], scorer)  # type: ignore[arg-type]
    found = [(tokens[0] - tokens[1]).item() for tokens in advantages.tokens.values()]
    assert found == pytest.approx(expected.tolist(), abs=1e-4)
    assert advantages.metrics["memory/baseline"] == pytest.approx((0.7 + 0.6 + 0.4) / 3)
    assert scorer.calls == 1, "memories and what they are compared with are one question"


def test_a_group_that_failed_is_guarded(group: Group) -> None:
    failed = tuple(
        dataclasses.replace(e, outcome=0.0, turns=tuple(dataclasses.replace(t, reward=0.0) for t in e.turns))
        for e in group
    )
    tokens = get_algorithm(PLACE)().advantages([failed], Qualities()).tokens  # type: ignore[arg-type]
    assert [value[0].item() for value in tokens.values()] == pytest.approx([0.0, 0.3, 0.0])


def test_its_name_without_its_hook_is_refused(group: Group) -> None:
    """A name that a config allows and nothing scores is told, before the model is asked."""
    scorer = Qualities()
    config = get_algorithm(PLACE).config_class()
    with pytest.raises(UserError, match=r"baseline='keep_all' has no case in score_memories .* override memory_scores"):
        score_memories(comparable_memories([group]), config, scorer)  # type: ignore[arg-type]
    assert scorer.calls == 0


def test_the_one_in_the_documents_by_hand(group: Group) -> None:
    """The group's best Q is .9: on the memory's token Q - .9 beside A^T."""
    section = (EXAMPLES.parent / "docs" / "algorithms.md").read_text().partition("### A baseline of your own")[2]
    names: dict[str, Any] = {"__name__": "documents"}
    exec(section.partition("```python\n")[2].partition("```")[0], names)
    advantages = names["BestOfGroup"]().advantages([group], Qualities())
    found = [(tokens[0] - tokens[1]).item() for tokens in advantages.tokens.values()]
    assert found == pytest.approx([0.5 - 0.9, 0.0, 0.1 - 0.9], abs=1e-6)
    assert advantages.metrics["memory/baseline"] == pytest.approx(0.9)


def test_through_a_whole_job(mempo: Callable[..., Any], small: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = mempo("train", "--algo", PLACE, "--out", run, "--steps", "1", *small, "--keep-all.weight", "0.5")
    assert result.code == 0, result.err
    config, algorithm = read_config(run)
    assert config.algo == PLACE
    assert (algorithm.baseline, algorithm.weight, algorithm.credit) == ("keep_all", 0.5, "guarded")
    resumed = mempo("train", "--resume", run, "--steps", "2")
    assert resumed.code == 0, resumed.err
    assert (run / "metrics.jsonl").read_text().count('"memory/scored"') == 2
    wrong = mempo("train", "--algo", PLACE, "--keep-all.baseline", "history")
    assert wrong.code == 2, "the one baseline there is"


def test_it_is_short_and_the_documents_name_it() -> None:
    text = (EXAMPLES / "own_baseline.py").read_text()
    assert len(text.splitlines()) < 60
    assert f"--algo {PLACE}" in text
    for name in ("README.md", "ARCHITECTURE.md", "docs/algorithms.md"):
        assert "examples/own_baseline.py" in (EXAMPLES.parent / name).read_text(), name
