"""A run's own base weights: a folder without them is refused, one that never had any goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mempo_env.algos.config import RunConfig, WarmStartConfig
from mempo_env.algos.setup import writes_base

Mempo = Callable[..., Any]


@pytest.mark.parametrize("how", ["eval", "resume"])
def test_a_run_without_its_base_is_not_played_on_random_weights(how: str, mempo: Mempo, run_copy: Path) -> None:
    calls = {
        "eval": ("eval", run_copy, "--goals", 1, "--episodes", 1),
        "resume": ("train", "--resume", run_copy, "--steps", 3),
    }
    shutil.rmtree(run_copy / "base")
    before = sorted(run_copy.rglob("*"))
    complaint = mempo(*calls[how]).complaint
    assert f"{run_copy / 'base'} is missing" in complaint
    assert "copy it, too, from where the run was made" in complaint
    assert sorted(run_copy.rglob("*")) == before


@pytest.mark.parametrize("target", ["adapter", "none"])
def test_a_run_on_a_model_by_name_has_no_base_and_needs_none(
    target: str, mempo: Mempo, trained: Path, small: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = ("--model", trained / "base", "--warm-start.target", target, "--algo", "grpo", "--out", run)
    result = mempo("train", *small, *flags, "--steps", 1)
    assert result.code == 0, result.err
    assert not (run / "base").exists()
    resumed = mempo("train", "--resume", run, "--steps", 2)
    assert resumed.code == 0, resumed.err
    played = mempo("eval", run, "--goals", 1, "--episodes", 1)
    assert played.code == 0, played.err


@pytest.mark.parametrize(
    ("model", "target", "writes"),
    [
        ("tiny", "all", True),
        ("tiny", "adapter", True),
        ("tiny", "none", True),
        ("smollm2", "all", True),
        ("smollm2", "adapter", False),
        ("smollm2", "none", False),
    ],
)
def test_which_runs_write_a_base(model: str, target: Any, writes: bool) -> None:
    assert writes_base(RunConfig(model=model, warm_start=WarmStartConfig(target=target))) is writes
