"""Metrics on disk: one line a step, also after a resume; numbers that are not finite; TensorBoard's curves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mempo_env.algos.logs import RunLog, read_metrics, self_check, step_note
from mempo_env.errors import UserError


def fill(folder: Path, first: int, last: int, resume_from: int = 0, value: float = 0.0) -> None:
    with RunLog(folder, resume_from) as log:
        for step in range(first, last):
            log.write("train", step, {"rollout/f1": step + value})


def test_lines_come_back_by_phase(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write("imitation", 0, {"loss": 2.5})
        log.write("imitation", 1, {"loss": 1.5})
        log.write("train", 0, {"rollout/f1": 0.25})
        assert read_metrics(tmp_path, "imitation")[1] == {"phase": "imitation", "step": 1, "loss": 1.5}
    assert read_metrics(tmp_path, "train") == [{"phase": "train", "step": 0, "rollout/f1": 0.25}]
    assert read_metrics(tmp_path / "elsewhere", "train") == []


def test_a_resume_drops_what_will_be_done_again(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in range(6):
            log.write("imitation", step, {"loss": 1.0})
    fill(tmp_path, 0, 5)
    fill(tmp_path, 3, 7, resume_from=3, value=0.5)
    lines = read_metrics(tmp_path, "train")
    assert [line["rollout/f1"] for line in lines] == [0, 1, 2, 3.5, 4.5, 5.5, 6.5]
    assert len(read_metrics(tmp_path, "imitation")) == 6, "the warm start is not done again"


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    fill(tmp_path, 0, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "train", "st')
    assert len(read_metrics(tmp_path, "train")) == 2
    fill(tmp_path, 2, 3, resume_from=2)
    assert [line["step"] for line in read_metrics(tmp_path, "train")] == [0, 1, 2]


@pytest.mark.parametrize("line", ['{"phase": "train", "st', "[1]", '{"step": 3}'])
def test_a_broken_line_in_between_is_named(line: str, tmp_path: Path) -> None:
    fill(tmp_path, 0, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line + '\n{"phase": "train", "step": 1}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: no line of metrics"):
        read_metrics(tmp_path, "train")


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write("train", 0, {"a": math.nan, "b": math.inf, "c": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"phase": "train", "step": 0, "a": None, "b": None, "c": 1.0}


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    """What a resume does again hides what was there; the warm start's curve, with larger steps, stays."""
    with RunLog(tmp_path) as log:
        for step in range(6):
            log.write("imitation", step, {"loss": float(step)})
    fill(tmp_path, 0, 5)
    fill(tmp_path, 3, 6, resume_from=3, value=0.5)

    def curve(phase: str, name: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(tmp_path / "tensorboard" / phase))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars(name)]

    assert curve("train", "rollout/f1") == [(0, 0), (1, 1), (2, 2), (3, 3.5), (4, 4.5), (5, 5.5)]
    assert curve("imitation", "loss") == [(step, float(step)) for step in range(6)]


def test_self_check_says_what_it_knows() -> None:
    metrics = {"train/ratio": 1.0, "train/sampler_mismatch": 2e-6, "train/sampler_mismatch_max": 3e-5}
    text = self_check(metrics | {"train/sampler_moved": 0.01})
    assert text == (
        "self-check: ratio 1.000000 (1), KL not computed (beta 0), sampler/trainer gap mean 2.0e-06 max 3.0e-05, "
        "sampler moved by 1.0e-02 after one update"
    )
    assert "KL 0.0e+00 (0)" in self_check(metrics | {"train/kl": 0.0})
    assert "gap unknown" in self_check({"train/ratio": 1.0})
    assert "nothing was learned" in self_check({})
    several = self_check(metrics | {"train/kl": 0.002, "train/optimizer_steps": 4.0})
    assert "ratio 1.000000 (near 1), KL 2.0e-03 (near 0)" in several, "later steps of a batch have moved on"
    assert "gradient was 0" in self_check(metrics | {"train/grad_norm": 0.0})


def test_the_bar_shows_no_quantity_that_a_step_does_not_have() -> None:
    played = {"rollout/return": 0.5, "rollout/f1": 1 / 3, "rollout/turns": 4.0}
    assert step_note(played) == "return 0.500  F1 0.333"  # GRPO, PPO, and MemPO where no memory was written
    assert step_note(played | {"memory/quality": 0.75}) == "return 0.500  F1 0.333  Q 0.750"
    assert step_note({"rollout/errors": 4.0}) == ""  # nothing but faults
