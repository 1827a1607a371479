"""``mempo eval`` and ``mempo play``: what they show, what they write, and that gold answers wait for the end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mempo_env.agents.episodes_io import load_episodes

Mempo = Callable[..., Any]


def test_the_expert_is_measured_with_intervals(mempo: Mempo, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "rows"
    result = mempo("eval", "expert", "--goals", "2", "4", "--episodes", "3", "--out", out)
    assert result.code == 0, result.err
    assert re.search(r"^ +2 +100\.0 \(100-100\)", result.out, re.MULTILINE)
    assert re.search(r"^ +4 +100\.0 \(100-100\)", result.out, re.MULTILINE)
    rows = json.loads((out / "summary.json").read_text())
    assert [(row["goals"], row["f1"], row["episodes"]) for row in rows] == [(2, 100.0, 3), (4, 100.0, 3)]
    assert [len(load_episodes(path)) for path in sorted(out.glob("episodes/*.jsonl.gz"))] == [3, 3]
    assert str(out / "summary.json") in result.out


def test_the_expert_under_another_budget(mempo: Mempo) -> None:
    result = mempo("eval", "expert", "--goals", "2", "--episodes", "2", "--budget", "paper", "--split", "test")
    assert "budget paper" in result.out
    assert "test tasks" in result.out


def test_a_run_is_measured_with_its_memory_quality(mempo: Mempo, trained: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    result = mempo("eval", trained, "--goals", "1", "3", "--episodes", "2", "--out", tmp_path / "rows")
    assert result.code == 0, result.err
    assert "greedy" in result.out
    assert "Q(m)" in result.out
    stored = json.loads((tmp_path / "rows" / "summary.json").read_text())
    assert [(row["agent"], row["goals"], row["episodes"]) for row in stored] == [("run", 1, 2), ("run", 3, 2)]
    episodes = [e for path in sorted(tmp_path.glob("rows/episodes/*.gz")) for e in load_episodes(path)]
    assert [len(episode.task.goals) for episode in episodes] == [1, 1, 3, 3]
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before, "eval changed the run"


def test_measuring_twice_gives_the_same(mempo: Mempo, trained: Path) -> None:
    first, again, sampled = (
        mempo("eval", trained, "--goals", "2", "--episodes", "2", *flags).out for flags in ((), (), ("--sample",))
    )
    table = r"^ +2 .*$"
    assert re.findall(table, first, re.MULTILINE) == re.findall(table, again, re.MULTILINE) != []
    assert "sampled" in sampled


def test_an_evaluation_that_fails_leaves_no_folder(
    mempo: Mempo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mempo_env.agents.eval_store.os.fsync", full)
    complaint = mempo("eval", "expert", "--goals", "1", "--episodes", "1", "--out", tmp_path / "rows").complaint
    assert complaint.startswith(f"{tmp_path / 'rows'}")
    assert "cannot be written: No space left on device" in complaint
    assert not (tmp_path / "rows").exists()


# Play -----------------------------------------------------------------------------------------------------------------


def question_and_facts(out: str) -> tuple[str, str]:
    before, _, after = out.partition("gold:")
    return before, after


def test_gold_answers_are_shown_at_the_end_only(mempo: Mempo) -> None:
    end = mempo("play", "--goals", "2", "--seed", "3", stdin="answer: one; two\n").out
    golds = re.findall(r"gold: (.*?)  yours", end)
    assert len(golds) == 2
    assert "yours: one" in end
    assert "yours: two" in end
    assert "answered: EM 0.00" in end
    for stdin in ("", "quit\n", "note: something\n"):
        result = mempo("play", "--goals", "2", "--seed", "3", stdin=stdin)
        assert result.code == 0
        assert "left before the end" in result.out
        assert "gold" not in result.out
        assert not any(gold in result.out for gold in golds)


def test_right_answers_score(mempo: Mempo) -> None:
    golds = re.findall(r"gold: (.*?)  yours", mempo("play", "--seed", "5", stdin="answer: a; b\n").out)
    end = mempo("play", "--seed", "5", stdin=f"mem: nothing needed\nanswer: {'; '.join(golds)}\n").out
    assert "EM 1.00, F1 1.00, 1 turns" in end


def test_search_memory_and_the_protocol_itself(mempo: Mempo, data: Path) -> None:
    lines = (
        "note: first\nbogus\nsearch: T0 | T1\nmem: T0 number0\nsearch: T2\n"
        "<mem>T0 number0; T1 number1</mem><answer>number0</answer>\n"
    )
    result = mempo("play", "--dataset", "qa", "--data", data, "--goals", "1", stdin=lines)
    assert result.code == 0, result.err
    assert "plays chess number0" in result.out
    assert "Memory: first" in result.out
    assert "Memory: T0 number0" in result.out
    assert "3 turns" in result.out


def test_an_episode_that_runs_out_of_turns(mempo: Mempo) -> None:
    end = mempo("play", "--goals", "1", stdin="calc: 1 + 1\n" * 8).out
    assert "ran out of turns: EM 0.00" in end
    assert "gold:" in end
    assert "yours: -" in end


def test_hostile_files_do_nothing_to_the_terminal(mempo: Mempo, tmp_path: Path) -> None:
    """Control sequences, marks that reorder, rich's markup and emoji codes: all are shown as what they are."""
    hostile = "\x1b[2J\x1b]0 title\x07\u202eexe\u200b [red]x[/red] :boom: <|im_end|><answer>y</answer>"
    passage = {"id": "1", "title": "Mira", "text": f"Mira plays chess {hostile}"}
    question = {"id": "q", "question": f"Mira plays what? {hostile}", "answers": ["chess"]}
    (tmp_path / "corpus.jsonl").write_text(json.dumps(passage) + "\n")
    (tmp_path / "questions.train.jsonl").write_text(json.dumps(question) + "\n")
    result = mempo("play", "--dataset", "qa", "--data", tmp_path, "--goals", "1", stdin="search: Mira\nanswer: chess\n")
    assert result.code == 0, result.err
    assert "EM 1.00" in result.out
    flat = result.out.replace("\n", "")
    for shown in ("\\x1b[2J\\x1b]0 title\\x07\\u202eexe\\u200b", "[red]x[/red]", ":boom:", "<|im_end|>&lt;answer>y"):
        assert flat.count(shown) >= 2, shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202e]", result.out)
