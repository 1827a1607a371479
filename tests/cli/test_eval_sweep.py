"""``mempo eval`` over contexts, budgets and goals: one table, the same tasks, resumable; and ``mempo compare``."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from mempo_env.agents.eval_store import EvalStore, read_store
from mempo_env.agents.expert import ExpertAgent

Mempo = Callable[..., Any]
SWEEP = ("eval", "expert", "--goals", "1", "2", "--context", "memory", "history", "--budget", "brief", "paper")
PICTURES = ("goals-brief.png", "goals-paper.png", "turns-brief.png", "turns-paper.png")


def texts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".csv", ".md")}


@pytest.fixture
def sweep(mempo: Mempo, tmp_path: Path) -> Path:
    result = mempo(*SWEEP, "--episodes", "3", "--batch", "2", "--out", tmp_path / "sweep")
    assert result.code == 0, result.err
    return tmp_path / "sweep"


def test_the_product_is_one_table_over_the_same_tasks(mempo: Mempo, sweep: Path) -> None:
    rows = json.loads((sweep / "summary.json").read_text(), parse_constant=pytest.fail)
    assert [(row["budget"], row["goals"], row["context"]) for row in rows] == [
        (budget, goals, context)
        for budget in ("brief", "paper")
        for goals in (1, 2)
        for context in ("memory", "history")
    ]
    assert all(
        {"agent", "context", "goals", "budget", "f1", "em", "total_tokens", "peak_tokens", "episodes", "errors"}
        <= set(row)
        for row in rows
    )
    assert all(row["f1"] == row["em"] == 100 and row["f1_sum"] == row["goals"] for row in rows)
    tasks = {key: [episode.task for episode in episodes] for key, episodes in read_store(sweep).items()}
    for key, played in tasks.items():
        assert all(played == other for name, other in tasks.items() if name.goals == key.goals), "others' tasks differ"
    with (sweep / "table.csv").open(newline="") as file:
        assert [float(line["total_tokens"]) for line in csv.DictReader(file)] == [row["total_tokens"] for row in rows]
    assert "| 2 | history | 100.0 (100-100)" in (sweep / "table.md").read_text()


def test_what_memory_saves_stands_beside_its_bound(mempo: Mempo, sweep: Path) -> None:
    rows = {
        (row["context"], row["budget"], row["goals"]): row for row in json.loads((sweep / "summary.json").read_text())
    }
    memory, history = rows["memory", "paper", 2], rows["history", "paper", 2]
    assert memory["saving_total"] == pytest.approx(1 - memory["total_tokens"] / history["total_tokens"])
    assert memory["saving_measured"] is True
    assert 0 < memory["saving_bound"] < 1
    assert "saving_total" not in history
    pairs = json.loads((sweep / "paired.json").read_text())
    one = next(pair for pair in pairs if pair["row"] == {k: memory[k] for k in ("agent", "context", "budget", "goals")})
    assert one["reference"]["context"] == "history"
    assert one["tasks"] == 3
    assert one["total_tokens"] == pytest.approx(memory["total_tokens"] - history["total_tokens"])


def test_tables_and_pictures_come_out_the_same_again(mempo: Mempo, sweep: Path) -> None:
    before = texts(sweep)
    shown = mempo(*SWEEP, "--episodes", "3", "--out", sweep, columns=80).out
    assert "24 of 24 episodes are there already" in shown
    pictures = {name: matplotlib.image.imread(sweep / "plots" / name) for name in PICTURES}
    for path in [*(sweep / "plots").iterdir(), *(sweep / name for name in before if name != "config.json")]:
        path.unlink()
    result = mempo("eval", "--render", sweep, columns=80)
    assert result.code == 0, result.err
    assert max(map(len, result.out.splitlines())) <= 80
    assert "…" not in result.out
    assert texts(sweep) == before
    for name, picture in pictures.items():
        again = matplotlib.image.imread(sweep / "plots" / name)
        assert (again == picture).all()
        assert again[..., 3].min() == 1, "an opaque background, for dark pages"


def test_more_may_be_asked_of_the_same_folder_but_nothing_else(mempo: Mempo, sweep: Path) -> None:
    more = mempo("eval", "expert", "--goals", "3", "--context", "memory", "--episodes", "2", "--out", sweep)
    assert more.code == 0, more.err
    rows = json.loads((sweep / "summary.json").read_text())
    assert len(rows) == 9
    assert [row["episodes"] for row in rows if row["goals"] == 3] == [2]
    for flags, says in (
        (("--split", "test"), 'environment: split = "dev", not "test"'),
        (("--seed", "1"), "environment: seed = 0, not 1"),
        (("--env-args.topk", "2"), "environment: topk = 1, not 2"),
    ):
        assert says in mempo(*SWEEP, "--episodes", "3", "--out", sweep, *flags).complaint


def test_ctrl_c_keeps_what_was_played_and_the_same_call_goes_on(
    mempo: Mempo, tmp_path: Path, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = (*SWEEP, "--episodes", "3", "--batch", "2", "--out", tmp_path / "stopped")
    write, turns = ExpertAgent.write, iter(range(17))

    def interrupted(self: ExpertAgent, request: Any) -> str:
        if next(turns, None) is None:
            raise KeyboardInterrupt
        return write(self, request)

    monkeypatch.setattr(ExpertAgent, "write", interrupted)
    result = mempo(*call)
    assert result.code == 130
    kept = sum(map(len, read_store(tmp_path / "stopped").values()))
    assert 0 < kept < 24
    assert f"stopped after {kept} of 24 episodes, which are kept; go on with: mempo eval expert --goals" in result.err
    assert f"--out {tmp_path / 'stopped'}" in result.err
    monkeypatch.undo()
    again = mempo(*call)
    assert again.code == 0, again.err
    assert f"{kept} of 24 episodes are there already" in again.out
    assert texts(tmp_path / "stopped") == texts(sweep), "as if it had never been stopped"


def test_ctrl_c_without_a_folder_says_that_nothing_is_kept(mempo: Mempo, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(ExpertAgent, "write", interrupted)
    result = mempo("eval", "expert", "--goals", "1", "--episodes", "2")
    assert result.code == 130
    assert "stopped after 0 of 2 episodes; nothing is kept without --out" in result.err


def test_faults_are_counted_apart_named_and_played_again(
    mempo: Mempo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ("eval", "expert", "--goals", "1", "--episodes", "3", "--out", tmp_path / "faulty")
    append = EvalStore.append

    def faulty(self: EvalStore, key: Any, episodes: Any) -> None:
        append(self, key, [one.replace(error="server gone") if i == 0 else one for i, one in enumerate(episodes)])

    monkeypatch.setattr(EvalStore, "append", faulty)
    shown = mempo(*call).out
    assert "2 + 1e" in shown
    assert "1 of 3 episodes of expert, memory, brief, 1 goals ended on a fault, such as: server gone" in shown
    assert [(r["episodes"], r["errors"]) for r in json.loads((tmp_path / "faulty/summary.json").read_text())] == [
        (2, 1)
    ]
    monkeypatch.undo()
    assert mempo(*call).code == 0
    assert [(r["episodes"], r["errors"]) for r in json.loads((tmp_path / "faulty/summary.json").read_text())] == [
        (3, 0)
    ]


def test_a_run_beside_the_expert(mempo: Mempo, trained: Path, tmp_path: Path) -> None:
    call = ("eval", trained, "expert", "--goals", "1", "--episodes", "2", "--context", "memory", "window-2")
    result = mempo(*call, "--out", tmp_path / "eval")
    assert result.code == 0, result.err
    rows = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert [(row["agent"], row["context"]) for row in rows] == [
        (agent, context) for agent in ("run", "expert") for context in ("memory", "window-2")
    ]
    assert rows[2]["quality"] is None
    written = [
        turn for es in read_store(tmp_path / "eval").values() for e in es for turn in e.turns if turn.memory_written
    ]
    assert all(turn.info["memory_tokens"] is not None for turn in written)
    assert result.out.count("tokens counted by the tokenizer of tiny") == 2
    again = mempo(*call, "--out", tmp_path / "eval", "--sample")
    assert 'decoding = "greedy", not "sampled"' in again.complaint


def test_a_run_keeps_its_environment(mempo: Mempo, trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    config = json.loads((other / "config.json").read_text())
    config["run"]["env_args"]["topk"] = 2
    (other / "config.json").write_text(json.dumps(config))
    assert "other was trained in another environment" in mempo("eval", trained, other).complaint
    for flags in (("--env", "MemPO-MultiGoal-v0"), ("--env-args.topk", "2"), ("--env-options", "a=1")):
        assert "in the environment it was trained in" in mempo("eval", trained, *flags).complaint
    assert "measured twice" in mempo("eval", trained, trained, "--goals", "1", "--episodes", "1").complaint


# Compare --------------------------------------------------------------------------------------------------------------


def test_runs_side_by_side_over_the_same_tasks(mempo: Mempo, trained: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(trained, twin)
    out = tmp_path / "compared.json"
    result = mempo("compare", trained, twin, "--out", out)
    assert result.code == 0, result.err
    found = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert [row["agent"] for row in found["rows"]] == ["run", "twin"]
    assert [(pair["f1"], pair["f1_interval"], pair["tasks"]) for pair in found["pairs"]] == [(0.0, [0.0, 0.0], 1)]
    assert "compared.json exists" in mempo("compare", trained, twin, "--out", out).complaint
    both = mempo("compare", trained, "--evaluations", "before", "after", "--out", tmp_path / "both.md")
    assert "run, before" in both.out
    assert "| 1 | run, after |" in (tmp_path / "both.md").read_text()
    assert "two or more" in mempo("compare", trained).complaint
    assert "named twice" in mempo("compare", trained, trained).complaint
    assert "no evaluation 'beofre'" in mempo("compare", trained, twin, "--evaluations", "beofre").complaint
    (tmp_path / "nothing").mkdir()
    assert "has no evaluation 'after'" in mempo("compare", trained, tmp_path / "nothing").complaint


def test_evaluations_are_compared_in_what_differs_and_other_tasks_never(
    mempo: Mempo, sweep: Path, tmp_path: Path
) -> None:
    for name, flags in (
        ("history", ("--context", "history")),
        ("hard", ("--env-args.two-hop-share", "0.9")),
    ):
        call = ("eval", "expert", "--goals", "2", "--episodes", "3", "--out", tmp_path / name, *flags)
        assert mempo(*call).code == 0
    single = ("eval", "expert", "--goals", "2", "--episodes", "3", "--out", tmp_path / "memory")
    assert mempo(*single).code == 0
    out = tmp_path / "a.json"
    assert mempo("compare", tmp_path / "memory", tmp_path / "history", "--out", out).code == 0
    pair = json.loads(out.read_text())["pairs"][0]
    assert (pair["row"]["context"], pair["reference"]["context"], pair["tasks"]) == ("history", "memory", 3)
    assert pair["total_tokens"] > 0
    shown = mempo("compare", tmp_path / "memory", tmp_path / "hard").out
    assert "3 seeds gave other tasks" in " ".join(shown.split())
    shown = mempo("compare", tmp_path / "memory", sweep).out
    assert "1 goals: no such row in the first" in " ".join(shown.split())
