"""What a run leaves for its reader is made from stored files, also where every episode ended on a fault."""

from __future__ import annotations

import dataclasses
import json
import math
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from rich.console import Console

from mempo_env.agents.episodes_io import load_episodes
from mempo_env.agents.eval_rows import evaluation_row
from mempo_env.agents.evaluation import EvaluationReport, evaluate
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.history_cost import history_cost
from mempo_env.agents.scripted_expert import Flaws
from mempo_env.algos.logs import RunLog, read_metrics
from mempo_env.algos.plots import plot_run
from mempo_env.algos.presets import get_preset
from mempo_env.algos.report import Gain, comparison_table, gain, gap_closed, history_table, run_seconds, write_report
from mempo_env.algos.stored import Quality, load_evaluation, memory_quality, store_evaluation
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.tokens import RegexTokenCounter


@pytest.fixture(scope="module")
def played() -> EvaluationReport:
    def make_env(goals: int) -> Any:
        return lambda: MultiGoalEnv(goals=goals, split="dev", instructions="terse")

    return evaluate(ExpertAgent("brief", flaws=Flaws(forget=0.3)), make_env, (2, 4), 5, 0)


def costs(report: EvaluationReport) -> dict[int, Any]:
    """The cost of full history by number of goals."""
    episodes = {n: [e for e in report.episodes if len(e.task.goals) == n] for n in (2, 4)}
    return {n: history_cost(some, RegexTokenCounter()) for n, some in episodes.items()}


def all_failed(report: EvaluationReport) -> EvaluationReport:
    """The same evaluation, had the tools been down."""
    episodes = tuple(episode.replace(error="down") for episode in report.episodes)
    agent = ExpertAgent("brief")
    rows = tuple(
        evaluation_row(agent, n, "brief", [e for e in episodes if len(e.task.goals) == n], RegexTokenCounter())
        for n in (2, 4)
    )
    return EvaluationReport(rows, 0, episodes)


def test_memory_quality_by_hand(small_turn: Any, small_episode: Any, fake_scorer: Any) -> None:
    episodes = [
        small_episode(0, [small_turn("a"), small_turn("b"), small_turn("unseen", written=False)]),
        small_episode(1, [small_turn("c")]),
        small_episode(2, [small_turn("unseen")], error="down"),
    ]
    scorer = fake_scorer({"a": 0.1, "b": 0.9, "c": 0.5, "unseen": math.nan})
    quality = memory_quality(episodes, scorer)
    assert quality.mean == pytest.approx(0.5)
    assert quality.above == pytest.approx(1 / 3)
    assert quality.by_turn == {1: [pytest.approx(0.3), pytest.approx(0.9)]}
    assert [memory for _, memory in scorer.memories] == ["a", "b", "c"]


def test_no_memory_has_no_quality(small_turn: Any, small_episode: Any, fake_scorer: Any) -> None:
    quality = memory_quality([small_episode(0, [small_turn("a", written=False)])], fake_scorer({}))
    assert math.isnan(quality.mean)
    assert math.isnan(quality.above)
    assert quality.by_turn == {}


def test_an_evaluation_is_read_as_it_was_written(played: EvaluationReport, tmp_path: Path) -> None:
    quality = Quality(0.4, 0.1, {2: [0.1, 0.5], 4: [0.2]})
    stored = store_evaluation(played, quality, tmp_path / "eval", "before", costs(played))
    assert load_evaluation(tmp_path / "eval" / "before.json") == stored
    assert stored.rows == played.rows
    assert tuple(load_episodes(tmp_path / "eval" / "before.episodes.jsonl.gz")) == played.episodes
    assert load_evaluation(tmp_path / "eval" / "after.json") is None


def test_tokens_by_turn_leave_faults_out(played: EvaluationReport, tmp_path: Path) -> None:
    two = [episode for episode in played.episodes if len(episode.task.goals) == 2]
    broken = EvaluationReport(played.rows, 0, (two[0].replace(error="down"), *two[1:]))
    stored = store_evaluation(broken, Quality(0.5, 0.5, {}), tmp_path, "x", {})
    first = [episode.turns[0] for episode in two[1:]]
    assert stored.tokens_by_turn[2][0] == pytest.approx(
        sum(turn.n_prompt + turn.n_output for turn in first) / len(first)
    )
    assert list(stored.tokens_by_turn) == [2]


def strict(path: Path) -> Any:
    """JSON as other programs read it, which know no NaN."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_rows_of_faults_alone_survive_the_file(played: EvaluationReport, tmp_path: Path) -> None:
    nothing = Quality(math.nan, math.nan, {})
    stored = store_evaluation(all_failed(played), nothing, tmp_path, "before", {})
    assert strict(tmp_path / "before.json")["rows"][0]["f1"] is None
    loaded = load_evaluation(tmp_path / "before.json")
    assert loaded is not None
    for row, again in zip(stored.rows, loaded.rows, strict=True):
        assert (again.episodes, again.errors) == (0, 5)
        for field in dataclasses.fields(row):
            one, two = getattr(row, field.name), getattr(again, field.name)
            assert repr(one) == repr(two), field.name
    assert math.isnan(loaded.quality.mean)


def render(table: Any) -> str:
    file = StringIO()
    Console(file=file, width=140).print(table)
    return file.getvalue()


def test_the_table_shows_both_and_the_faults(played: EvaluationReport, tmp_path: Path) -> None:
    before = store_evaluation(all_failed(played), Quality(math.nan, math.nan, {}), tmp_path, "before", {})
    after = store_evaluation(played, Quality(0.4321, 0.1, {}), tmp_path, "after", costs(played))
    text = render(comparison_table(get_preset("tiny"), {"before": before, "after": after}))
    row = played.rows[0]
    assert f"{row.f1:.1f} ({row.f1_interval[0]:.3g}-{row.f1_interval[1]:.3g})" in text
    assert f"{row.total_tokens:.0f}" in text
    assert "0 + 5 errors" in text
    assert "Q(m) nan -> 0.432" in " ".join(text.split())
    assert "mempo on closed-world, dev tasks never trained on (greedy)" in text


def test_gains_and_ceilings(played: EvaluationReport, tmp_path: Path) -> None:
    """The gain is paired by task, a fault on either side leaves its task out; the gap is the one to imitation."""
    nothing = Quality(math.nan, math.nan, {})
    stored = store_evaluation(played, nothing, tmp_path, "x", {})
    before = dataclasses.replace(stored, f1={2: [10.0, 20.0, math.nan, 30.0]})
    after = dataclasses.replace(stored, f1={2: [15.0, 25.0, 99.0, 35.0]})
    assert gain(before, after, [2]) == Gain((2,), 5.0, (5.0, 5.0))

    low, high, ceiling = (dataclasses.replace(played.rows[0], f1=f1) for f1 in (40.0, 60.0, 90.0))
    assert gap_closed(low, high, ceiling) == pytest.approx(0.4)
    assert math.isnan(gap_closed(low, high, None))
    assert math.isnan(gap_closed(low, high, low)), "no gap, no share of it"

    evaluations = {
        "before": dataclasses.replace(stored, rows=(low, low)),
        "after": dataclasses.replace(stored, rows=(high, high)),
        "imitation": dataclasses.replace(stored, rows=(ceiling, ceiling)),
        "expert": stored,
    }
    text = render(comparison_table(get_preset("tiny"), evaluations))
    assert "40%" in text
    assert "imitation " in text
    narrow = Console(file=StringIO(), width=80)
    narrow.print(comparison_table(get_preset("tiny"), evaluations))
    assert "…" not in narrow.file.getvalue(), "it fits a terminal of 80 columns"  # type: ignore[attr-defined]


def test_the_cost_of_full_history_stands_beside_its_bound(played: EvaluationReport, tmp_path: Path) -> None:
    stored = store_evaluation(played, Quality(math.nan, math.nan, {}), tmp_path, "x", costs(played))
    cost = costs(played)[4]
    text = render(history_table(stored))
    for number in (f"{cost.history_total / 5:.0f}", f"{cost.saving_total:.0%}", f"{cost.bound:.0%}"):
        assert number in text


def test_seconds_of_parts_and_phases(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in range(2):
            log.write("train", step, {f"time/{part}_s": 1.0 + step for part in ("sampling", "scoring", "update")})
        for _ in range(2):
            with log.timed("evaluation"):
                pass
    seconds = run_seconds(tmp_path)
    assert (seconds["sampling"], seconds["scoring"], seconds["update"]) == (1.5, 1.5, 1.5)
    lines = read_metrics(tmp_path, "time")
    assert len(lines) == 2
    assert seconds["evaluation_s"] == sum(line["evaluation_s"] for line in lines)


@pytest.fixture
def run(played: EvaluationReport, tmp_path: Path) -> Path:
    folder = tmp_path / "eval"
    store_evaluation(all_failed(played), Quality(math.nan, math.nan, {}), folder, "before", {})
    quality = Quality(0.4, 0.1, {2: [0.1, 0.5], 4: [0.2, 0.3, 0.4]})
    store_evaluation(played, quality, folder, "after", costs(played))
    with RunLog(tmp_path) as log:
        for step in range(4):
            log.write("train", step, {"rollout/f1": 0.1 * step, "rollout/f1_standard_error": 0.02})
    return tmp_path


def test_report_is_made_from_the_folder_again_and_again(run: Path, played: EvaluationReport) -> None:
    config = get_preset("tiny")
    console = Console(file=StringIO(), width=200)
    write_report(config, run, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for path in (run, run / "plot.png", run / "checkpoints"):
        assert str(path) in text.replace("\n", "")
    summary = strict(run / "summary.json")
    first_row = summary["before"]["rows"][0]
    assert {name for name, value in first_row.items() if value is None} == {
        "f1", "em", "success", "total_tokens", "peak_tokens", "turns", "tool_calls",
    }  # fmt: skip
    assert (first_row["goals"], first_row["episodes"], first_row["errors"]) == (2, 0, 5)
    assert summary["after"]["rows"][1]["f1"] == played.rows[1].f1
    assert summary["after"]["quality"] == 0.4

    first = {name: (run / name).read_bytes() for name in ("summary.json", "plot.png")}
    picture = matplotlib.image.imread(run / "plot.png")
    assert picture.shape[0] > 500
    assert picture.shape[1] > 1000
    assert picture[..., 3].min() == 1, "an opaque background, for dark pages"
    for name in first:
        (run / name).unlink()
    again = Console(file=StringIO(), width=200)
    write_report(config, run, again)
    assert again.file.getvalue() == text  # type: ignore[attr-defined]
    assert (run / "summary.json").read_bytes() == first["summary.json"]
    assert (matplotlib.image.imread(run / "plot.png") == picture).all()


def test_the_picture_follows_the_files(run: Path) -> None:
    after = load_evaluation(run / "eval" / "after.json")
    plot_run(run, {"after": after})
    with_curve = matplotlib.image.imread(run / "plot.png")
    with RunLog(run, resume_from=1) as log:
        log.write("train", 1, {"rollout/f1": 0.9, "rollout/f1_standard_error": 0.0})
    plot_run(run, {"after": after})
    other_curve = matplotlib.image.imread(run / "plot.png")
    plot_run(run, {})
    assert not (with_curve == other_curve).all()
    assert not (other_curve == matplotlib.image.imread(run / "plot.png")).all()


def test_a_run_without_evaluation_has_a_report_too(tmp_path: Path) -> None:
    write_report(get_preset("tiny"), tmp_path, Console(file=StringIO()))
    assert strict(tmp_path / "summary.json")["before"] is None
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_bound_beyond_the_mean_by_rounding_can_be_drawn(played: EvaluationReport, tmp_path: Path) -> None:
    rows = tuple(dataclasses.replace(row, f1=50.0, f1_interval=(50.0 + 1e-12, 50.0 - 1e-12)) for row in played.rows)
    stored = store_evaluation(EvaluationReport(rows, 0), Quality(0.4, 0.1, {}), tmp_path, "after", {})
    plot_run(tmp_path, {"after": stored})
    assert (tmp_path / "plot.png").exists()
