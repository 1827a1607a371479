"""Pictures of evaluations and of a run: they follow the numbers, also where there are few."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from mempo_env.agents import eval_rows
from mempo_env.agents.episodes_io import save_episodes
from mempo_env.algos import noting_scorer
from mempo_env.algos.eval_plots import LOOKS, look, plot_quality, quality_values
from mempo_env.algos.logs import RunLog
from mempo_env.algos.plots import plot_curves
from mempo_env.algos.report import plot_run_quality


def test_strategies_keep_their_looks_whoever_stands_beside_them() -> None:
    names = ["window-3", "history", "mem1", "memory", "retrieved"]
    assert look("memory", names) == look("memory", ["memory"]) == LOOKS[0]
    assert look("history", names) == look("history", ["history"])
    assert len({look(name, names) for name in names}) == len(names)


def test_the_histogram_follows_the_values(tmp_path: Path) -> None:
    plot_quality(tmp_path / "a.png", {"x": [0.05, 0.95, 1.0]})
    plot_quality(tmp_path / "b.png", {"x": [0.05, 0.05, 1.0]})
    one, two = (matplotlib.image.imread(tmp_path / name) for name in ("a.png", "b.png"))
    assert one.shape == two.shape
    assert not np.array_equal(one, two)


def test_the_histogram_of_a_run_needs_notes(tmp_path: Path, small_turn: Any, small_episode: Any) -> None:
    (tmp_path / "eval").mkdir()
    plain = small_episode(0, [small_turn("a")])
    save_episodes(tmp_path / "eval" / "after.episodes.jsonl.gz", [plain])
    assert plot_run_quality(tmp_path) is None
    turn = dataclasses.replace(small_turn("a"), info=small_turn("a").info | {noting_scorer.QUALITY: 0.5})
    noted = small_episode(0, [turn, small_turn("b", written=False)])
    save_episodes(tmp_path / "eval" / "after.episodes.jsonl.gz", [noted, noted.replace(error="down")])
    assert plot_run_quality(tmp_path) == tmp_path / "memory_quality.png"
    assert quality_values([noted, noted.replace(error="down")]) == [0.5]
    assert eval_rows.QUALITY == noting_scorer.QUALITY


@pytest.mark.parametrize("metrics", [{"rollout/return": 0.5}, {"rollout/f1": 0.1, "train/kl": float("nan")}])
def test_curves_draw_what_was_logged(tmp_path: Path, metrics: dict[str, float]) -> None:
    assert plot_curves(tmp_path) is None
    with RunLog(tmp_path) as log:
        for step in range(3):
            log.write("train", step, metrics)
    plot_curves(tmp_path)
    first = matplotlib.image.imread(tmp_path / "curves.png")
    with RunLog(tmp_path, resume_from=3) as log:
        log.write("train", 3, dict.fromkeys(metrics, 1.0))
    plot_curves(tmp_path)
    assert not np.array_equal(first, matplotlib.image.imread(tmp_path / "curves.png"))
