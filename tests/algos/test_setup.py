from __future__ import annotations

import json
from pathlib import Path

import pytest

from mempo_env.algos.config import EnvSettings, EvalConfig, RunConfig, WarmStartConfig
from mempo_env.algos.setup import check_environments
from mempo_env.errors import UserError


@pytest.fixture
def without_gold(tmp_path: Path) -> str:
    """NQ-open as it was published: questions and answers, and a corpus from elsewhere."""
    (tmp_path / "wiki-18.jsonl").write_text(json.dumps({"id": "0", "contents": '"Fernie"\nA resort.'}) + "\n")
    for split in ("train", "dev"):
        rows = [{"question": f"what is {split} {at}", "answer": ["a resort"]} for at in range(4)]
        (tmp_path / f"NQ-open.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


def config(data: str, warm_start: WarmStartConfig) -> RunConfig:
    return RunConfig(dataset="qa", data=(data,), goals=(2,), warm_start=warm_start, eval=EvalConfig(goals=(2,)))


def test_a_warm_start_needs_gold_passages(without_gold: str) -> None:
    with pytest.raises(UserError, match=r"needs gold passages, .*use --warm-start.target none, or data with gold"):
        check_environments(config(without_gold, WarmStartConfig(goals=(1, 2))))


def test_an_environment_without_search_is_not_told_to_start_a_server() -> None:
    nowhere = EnvSettings(retrieval="http://127.0.0.1:1")
    asked = RunConfig(env="MemPO-Ledger-v0", env_args=nowhere, eval=EvalConfig(goals=(2,)))
    with pytest.raises(UserError, match=r"^MemPO-Ledger-v0 takes no retrieval; drop that setting$"):
        check_environments(asked, training=False)


def test_training_and_evaluation_do_not(without_gold: str) -> None:
    check_environments(config(without_gold, WarmStartConfig(target="none")))
    check_environments(config(without_gold, WarmStartConfig(goals=(1, 2))), training=False)
