"""Every algorithm trains in every environment of the project, by the same command; each can be played by a person."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mempo_env
from mempo_env.agents.episodes_io import load_episodes
from mempo_env.algos.config_io import read_config

Mempo = Callable[..., Any]
SIZES = {
    "MemPO-LongDocument-v0": ("chunks=4", "chunk_tokens=16", "facts=4"),
    "MemPO-Ledger-v0": ("batches=2", "records=4", "accounts=3"),
}


def test_every_environment_has_its_sizes() -> None:
    assert {mempo_env.MULTI_GOAL_ID, *SIZES} == set(
        mempo_env.ENVIRONMENTS
    )  # the first is what the other tests train in


@pytest.mark.parametrize("algo", ["ppo", "grpo", "mempo", "mempo-paper"])
@pytest.mark.parametrize("env", SIZES)
def test_every_algorithm_trains_in_it(
    mempo: Mempo, small: tuple[str, ...], tmp_path: Path, env: str, algo: str
) -> None:
    run = tmp_path / "run"
    flags = ("--preset", "tiny", "--env", env, "--algo", algo, "--steps", "2", "--goals", "1", "2", *small)
    result = mempo("train", "--out", run, *flags, "--eval.no-ceilings", "--env-options", *SIZES[env])
    assert result.code == 0, result.err
    assert env in result.out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["phase"] == "train"]
    assert [line["step"] for line in steps] == [0, 1]
    assert all(line["rollout/episodes"] == 2 for line in steps)
    assert read_config(run)[0].env_options == SIZES[env]
    (after,) = load_episodes(run / "eval" / "after.episodes.jsonl.gz")
    assert after.task.passages


@pytest.mark.parametrize("preset", ["tiny-document", "tiny-ledger"])
def test_the_expert_solves_what_the_presets_ask(mempo: Mempo, preset: str) -> None:
    result = mempo("eval", "expert", "--preset", preset, "--goals", "1", "2", "--episodes", "20")
    assert result.code == 0, result.err
    assert result.out.count("100.0 (100-100)") == 2


def test_options_that_do_not_fit_are_refused_in_one_line(mempo: Mempo, small: tuple[str, ...]) -> None:
    base = ("train", "--env", "MemPO-Ledger-v0", *small, "--env-options")
    assert "batches must be a whole number from 2 to 48" in mempo(*base, "batches=1").complaint
    assert "unknown option of MemPO-Ledger-v0 'chunks'" in mempo(*base, "chunks=8").complaint
    assert "questions" in mempo(*base, "questions=middle").complaint


@pytest.mark.parametrize("env", SIZES)
def test_a_person_plays_it(mempo: Mempo, env: str) -> None:
    tool = "read" if "Document" in env else "next_records"
    lines = [f'<mem>m</mem><tool_call>{{"name": "{tool}"}}</tool_call>', "", "<mem>m</mem><answer>1</answer>", ""]
    result = mempo(
        "play", "--env", env, "--goals", "1", "--env-options", *SIZES[env], "questions=start", stdin="\n".join(lines)
    )
    assert result.code == 0, result.err
    assert " 1 of " in result.out
    assert "answered: EM" in result.out
    assert "data" in mempo("play", "--env", env, "--data", "folder").complaint
    assert "goals has a flag of its own" in mempo("play", "--env", env, "--env-options", "goals=2").complaint
