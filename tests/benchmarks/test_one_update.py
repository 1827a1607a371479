"""An update taken again, whole and clipped: the replay is the run's own, and only that update differs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import one_update
import pytest
import torch
from memory_study.cells import SMOKE, Cell
from memory_study.runner import run_cell
from one_update import EVENTS, Event, branch, fell, page, results_table
from rich.console import Console

from mempo_env.errors import UserError

STUDY_PAGE = Path(__file__).resolve().parents[2] / "docs" / "study.md"
SECOND = Event(0, 1, False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three updates, with checkpoints after the second and the third."""
    scale = replace(SMOKE, perfect_steps=30, demonstrator_steps=6, curriculum=((6, 1),), episodes=2, save_every=1)
    scale = replace(scale, steps={"hard": 3}, probes=False)
    folder, threads = tmp_path_factory.mktemp("study"), torch.get_num_threads()
    try:
        run_cell(Cell("train", 0, "hard", "mempo", weight=0.3), folder, Console(quiet=True), scale)
    finally:
        torch.set_num_threads(threads)
    return folder / "runs" / "hard-mempo-0"


def test_a_clip_that_does_not_bind_changes_nothing_and_one_that_does_what_follows(run: Path) -> None:
    threads = torch.get_num_threads()
    try:
        free = branch(run, SECOND, draws=2, after=1, clip=1e9)
        assert free["clipped"] == free["as it was"]
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        known = [line for line in lines if line["phase"] == "train"]
        assert free["norm"] == known[1]["train/grad_norm"]
        assert free["norm"] > 0
        assert free["before"] == [100 * line["rollout/f1"] for line in known[:2]]
        bound = branch(run, SECOND, draws=2, after=2, clip=1e-12)
        assert [draw[0] for draw in bound["as it was"]] == [draw[0] for draw in free["as it was"]]
        assert bound["norm"] == free["norm"]
    finally:
        torch.set_num_threads(threads)


def test_only_the_update_in_question_is_clipped(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    real = torch.nn.utils.clip_grad_norm_

    def noted(parameters: Any, most: float) -> torch.Tensor:
        if list(parameters):
            norms.append(most)
        return real(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
    branch(run, SECOND, draws=1, after=2, clip=1e-12)
    assert norms == [1.0] * 4 + [1e-12, 1.0, 1.0]  # the replay, then the update and two more; the same, clipped


def test_a_run_that_is_not_repeated_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["phase"] == "train" and line["step"] == 0:
            line["train/grad_norm"] += 1e-9
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"update 0 has train/grad_norm .* run its cell here first"):
        branch(other, SECOND, draws=1, after=1)


def made_up(event: Event, whole: list[float], clipped: list[float]) -> dict[str, Any]:
    """A result whose draws end at these F1."""

    def draws(ends: list[float]) -> list[list[dict[str, float]]]:
        return [[{"f1": end, "wrong_number": 10.0, "tool_calls": 2.0}] * 2 for end in ends]

    return {
        "event": {"seed": event.seed, "update": event.update, "fell": event.fell},
        "before": [20.0, 30.0],
        "norm": 0.03,
        "successes": 2,
        "as it was": draws(whole),
        "clipped": draws(clipped),
    }


def test_the_table_counts_falls_and_pairs_draws() -> None:
    assert not fell([20.0], [{"f1": 10.0}, {"f1": 10.0}])  # half is not under half
    found = made_up(EVENTS[0], [2.0, 3.0, 25.0], [20.0, 24.0, 28.0])
    (line,) = results_table([found]).rows
    assert line == (
        *("9", "34", "2", "0.0300", "yes", "25.0", "2 of 3", "0 of 3", "10.0", "24.0"),
        *("+14.0 (-10.0 to +38.0)", "10", "10"),
    )


def test_the_page_has_the_kept_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = STUDY_PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run: python benchmarks/studies/one_update.py --page"
    monkeypatch.setattr(one_update, "KEPT", tmp_path / "kept.json")
    assert "Not run yet." in page(text)
    (tmp_path / "kept.json").write_text(json.dumps({EVENTS[1].name: made_up(EVENTS[1], [2.0], [3.0])}))
    assert "| 5 | 36 | 2 | 0.0300 | yes | 25.0 | 1 of 1 | 1 of 1 |" in page(text)
