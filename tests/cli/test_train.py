"""A whole job through the command line: what it leaves, how it goes on, and how it ends when it must end early."""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mempo_env.agents.recompute import layers_recomputed
from mempo_env.algos import imitation, update
from mempo_env.algos.checkpoint import list_checkpoints, write_failure
from mempo_env.algos.config_io import config_from_dict, config_text, read_config
from mempo_env.algos.logs import read_metrics
from mempo_env.algos.presets import PRESETS
from mempo_env.algos.trainer import Trainer
from mempo_env.cli.train import parse

Mempo = Callable[..., Any]


def steps_of(run: Path, phase: str) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["phase"] == phase]


def losses_of(run: Path, phase: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["phase"] == phase]


def test_what_a_run_leaves(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "base", "metrics.jsonl", "tensorboard", "checkpoints", "eval", "summary.json"} <= names
    assert (trained / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert steps_of(trained, "imitation") == [0, 1, 2]
    assert steps_of(trained, "train") == [0, 1]
    assert [path.name for path in list_checkpoints(trained / "checkpoints")] == ["step-000001", "step-000002"]
    config, algorithm = read_config(trained)
    assert (config.algo, config.preset, config.steps, config.out) == ("mempo", "tiny", 2, str(trained))
    assert algorithm.weight == 1.0


def test_resume_goes_on(mempo: Mempo, run_copy: Path) -> None:
    result = mempo("train", "--resume", run_copy, "--steps", "3", "--algo", "mempo")
    assert result.code == 0, result.err
    assert f"resumed {run_copy / 'checkpoints' / 'step-000002'} at step 2" in result.out.replace("\n", "")
    assert steps_of(run_copy, "train") == [0, 1, 2]
    assert (run_copy / "checkpoints" / "step-000003").is_dir()
    assert f"run folder  {run_copy}" in result.out.replace("\n", "")


def test_grpo_with_an_adapter_from_the_start(mempo: Mempo, small: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = mempo("train", "--algo", "grpo", "--out", run, "--steps", "1", *small, "--warm-start.target", "adapter")
    assert result.code == 0, result.err
    assert result.err == ""
    assert "self-check" in result.out
    assert "F1 0." in result.out
    assert "Q nan" not in result.out, "GRPO has no Q(m) to show"
    assert read_config(run)[0].algo == "grpo"
    complaint = mempo("train", "--resume", run, "--algo", "mempo").complaint
    assert "is a checkpoint of 'grpo', not of 'mempo'" in complaint


def test_ppo_needs_no_group(mempo: Mempo, small: tuple[str, ...], tmp_path: Path) -> None:
    """Its critic is what an episode is compared with: groups of one are refused to the others alone."""
    flags = ("--warm-start.target", "none", "--train.group-size", 1, "--out", tmp_path / "run")
    result = mempo("train", "--algo", "ppo", "--steps", "1", *small, *flags)
    assert (result.code, result.err) == (0, "")
    (line,) = read_metrics(tmp_path / "run", "train")
    assert line["rollout/episodes"] == 1


def test_checkpointing_is_for_the_whole_run_and_its_resume(
    mempo: Mempo, small: tuple[str, ...], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, used = tmp_path / "run", []
    for place in (imitation, update):

        def spy(model: Any, on: bool, place: Any = place) -> Any:
            used.append((place.__name__.rpartition(".")[2], on))
            return layers_recomputed(model, on)

        monkeypatch.setattr(place, "layers_recomputed", spy)
    result = mempo("train", "--out", run, "--steps", "1", *small, "--train.gradient-checkpointing")
    assert (result.code, result.err) == (0, "")
    assert used == [("imitation", True)] * 4 + [("update", True)]  # three steps of the warm start, one of the ceiling
    mine, theirs = (losses_of(folder, "imitation") for folder in (run, trained))
    assert mine == pytest.approx(theirs, rel=1e-4)
    result = mempo("train", "--resume", run, "--steps", "2")
    assert (result.code, result.err) == (0, "")
    assert used[5:] == [("update", True)]


@pytest.mark.parametrize(
    ("broken", "flags", "advice"),
    [
        (
            "imitation.output_logprobs",
            "",
            "imitating: lower --train.micro-batch-tokens, which is 250, or give --train.g",
        ),
        ("trainer.rollout", "--warm-start.target none", "sampling: lower --sampling.batch-size, which is 7"),
        (
            "critic.output_states",
            "--warm-start.target none --algo ppo",
            "scoring: lower --train.micro-batch-tokens, which is 900 (",
        ),
        (
            "update.output_logprobs",
            "--warm-start.target none --algo ppo",
            "updating: lower --train.micro-batch-tokens, which is 900, or give --train.gradient-checkpointing (",
        ),
        (
            "update.output_logprobs",
            "--warm-start.target none --algo ppo --train.gradient-checkpointing",
            "updating: lower --train.micro-batch-tokens, which is 900 (",
        ),
    ],
)
def test_a_gpu_without_memory_ends_the_run_with_what_to_lower(
    broken: str,
    flags: str,
    advice: str,
    mempo: Mempo,
    small: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_out(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB.")

    monkeypatch.setattr(f"mempo_env.algos.{broken}", run_out)
    sizes = ("--train.micro-batch-tokens", "900", "--sampling.batch-size", "7", "--eval.episodes", "0")
    result = mempo("train", "--out", tmp_path / "run", "--steps", "1", *small, *sizes, *flags.split())
    assert f"the GPU ran out of memory while {advice}" in result.complaint
    assert "CUDA out of memory. Tried to allocate 2.00 GiB" in result.complaint


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_configuration_is_read_back_as_it_was(preset: str, tmp_path: Path) -> None:
    config, algorithm = parse(["--preset", preset, "--seed", "7", "--out", "somewhere"])
    (tmp_path / "config.json").write_text(config_text(config, algorithm))
    assert read_config(tmp_path) == (config, algorithm)
    assert config_from_dict(type(algorithm), {}) == type(algorithm)()


# Stopped by the user --------------------------------------------------------------------------------------------------


def interrupted_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Sends Ctrl-C's signal in the middle of a step of training."""
    take = Trainer.step

    def stepping(self: Trainer) -> Any:
        if self.steps_done == step:
            signal.raise_signal(signal.SIGINT)
        return take(self)

    monkeypatch.setattr(Trainer, "step", stepping)


def test_ctrl_c_keeps_the_last_checkpoint_and_says_how_to_go_on(
    mempo: Mempo, small: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 1)
        result = mempo("train", "--out", run, "--steps", "2", *small)
    assert result.code == 130
    assert result.err.strip() == f"mempo: stopped; go on from step-000001: mempo train --resume {run}"
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-000000", "step-000001"]
    result = mempo("train", "--resume", run)
    assert result.code == 0, result.err
    assert steps_of(run, "train") == [0, 1]


def test_ctrl_c_in_the_warm_start_says_that_there_is_nothing_to_resume(
    mempo: Mempo, small: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("mempo_env.algos.warm_phase.warm_start", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    result = mempo("train", "--out", run, "--steps", "2", *small)
    assert result.code == 130
    assert result.err.strip() == f"mempo: stopped before the first checkpoint: {run} cannot be resumed"
    assert "has no checkpoint" in mempo("train", "--resume", run).complaint


# A full disk ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_before_the_first_checkpoint_leaves_no_folder(
    mempo: Mempo, small: tuple[str, ...], tmp_path: Path, files_of_at_most: Any
) -> None:
    run = tmp_path / "runs" / "run"
    with files_of_at_most(100_000):  # the weights of the base are more
        result = mempo("train", "--out", run, "--steps", "2", *small)
    assert f"{run} cannot be written: File too large (os error 27); free some space" in result.complaint
    assert not run.exists()


@pytest.mark.parametrize("size", [20_000, 150_000], ids=["adapter", "state"])
def test_a_disk_that_fills_up_later_leaves_the_last_checkpoint(
    mempo: Mempo, run_copy: Path, size: int, files_of_at_most: Any
) -> None:
    before = {path: path.read_bytes() for path in (run_copy / "checkpoints").rglob("*") if path.is_file()}
    with files_of_at_most(size):
        complaint = mempo("train", "--resume", run_copy, "--steps", "3").complaint
    assert f"the checkpoint {run_copy / 'checkpoints' / 'step-000003'} cannot be written" in complaint
    assert f"(go on from step-000002: mempo train --resume {run_copy})" in complaint
    assert {path: path.read_bytes() for path in (run_copy / "checkpoints").rglob("*") if path.is_file()} == before
    result = mempo("train", "--resume", run_copy, "--steps", "3")
    assert result.code == 0, result.err
    assert steps_of(run_copy, "train") == [0, 1, 2]


def test_a_full_disk_under_the_metrics(mempo: Mempo, run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mempo_env.algos.logs.RunLog.write", full)
        complaint = mempo("train", "--resume", run_copy, "--steps", "3").complaint
    assert complaint.startswith(f"{run_copy} cannot be written: No space left on device; free some space")
    assert "go on from step-000002" in complaint


def test_other_errors_are_bugs_and_keep_their_traceback(
    mempo: Mempo, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write_failure(RuntimeError("shapes differ")) is None
    assert write_failure(FileNotFoundError(errno.ENOENT, "none")) is None

    def broken(self: Trainer) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        mempo("train", "--resume", run_copy, "--steps", "3")
    assert list_checkpoints(run_copy / "checkpoints")
