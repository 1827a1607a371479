"""The summary and the tables are what the stored results give; rows, goals and reasons by hand."""

from __future__ import annotations

import copy
import json
from typing import Any

import machine
import measures
import pytest
import results_io
import summary
from measures import Goal, Measure

from mempo_env.errors import UserError

FAST = Measure("speed", "a.json", lambda result: (result["us"], result["them"], None), Goal(">=", 2, aim="3"), True)
SLOW = Measure("start, s", "b.json", lambda result: (result["s"], None, None), Goal("<", 0.5, "ours", " s"))
TOLD = Measure("share", "a.json", lambda result: (1.0, 4.0, 0.3))
MACHINE = {"cpu": "Intel(R) Xeon(R)  CPU", "cores": 2, "instructions": ["avx2", "avx512_bf16"], "threads": 1}


def made(us: float = 3.0) -> list[dict[str, Any]]:
    return summary.make_rows(
        {"a.json": {"us": us, "them": 1.5, "machine": MACHINE}, "b.json": None}, (FAST, SLOW, TOLD)
    )


def test_documents_and_summary_are_what_the_stored_results_give() -> None:
    assert summary.complaints() == []


def test_rows_have_these_keys_and_figures() -> None:
    speed, start, share = made()
    assert speed == {
        "measure": "speed",
        "ours": 3.0,
        "anchor": 1.5,
        "ratio": 2.0,
        "goal": ">= 2, aim 3",
        "met": True,
        "machine": "Intel Xeon CPU, 2 cores, avx512_bf16, 1 thread",
    }
    assert made(2.9)[0]["met"] is False
    assert share["ratio"] == 0.3, "a ratio that the file holds is taken before the quotient"
    assert share["met"] is None
    assert start == {
        "measure": "start, s",
        "ours": None,
        "anchor": None,
        "ratio": None,
        "goal": "< 0.5 s",
        "met": None,
        "machine": "not measured",
    }
    assert json.loads(summary.as_json(made())) == made()


def test_a_result_without_the_field_is_told() -> None:
    with pytest.raises(UserError, match=r"a\.json does not hold what 'speed' reads"):
        summary.make_rows({"a.json": {"us": 1.0}}, (FAST,))


@pytest.mark.parametrize(
    ("goal", "ours", "ratio", "met"),
    [
        (Goal("<=", 1.15), 9.0, 1.15, True),
        (Goal("<=", 1.15), 0.0, 1.151, False),
        (Goal(">=", 0.5), 0.0, 0.5, True),
        (Goal("<", 0.5, "ours"), 0.5, 0.1, False),
        (Goal("<", 0.5, "ours"), 0.49, None, True),
    ],
)
def test_goals(goal: Goal, ours: float, ratio: float | None, met: bool) -> None:
    assert goal.met_by(ours, ratio) is met


def test_a_goal_on_a_ratio_needs_one() -> None:
    with pytest.raises(TypeError, match="anchor"):
        Goal(">=", 1).met_by(1.0, None)


def test_tables_say_what_was_not_measured_and_leave_the_large_gpu_empty() -> None:
    table = summary.long_table(made())
    assert "| speed | 3 | 1.5 | 2 | >= 2, aim 3 | yes | A |  |" in table
    assert "| start, s | not measured |  |  | < 0.5 s |  |  |  |" in table
    assert "Machine A: Intel Xeon CPU, 2 cores" in table
    assert "nothing was measured on one" in table
    assert "start, s" not in summary.short_table(made(), (FAST, SLOW, TOLD))


def test_a_table_goes_between_its_markers() -> None:
    document = "a\n<!-- summary: begin -->\nold\n<!-- summary: end -->\nb\n"
    assert summary.with_table(document, "new\n", "x.md") == document.replace("old", "new")
    for broken in (document.replace("begin", "began"), document + document, "<!-- summary: end -->" + document):
        with pytest.raises(UserError, match=r"x\.md must have one line"):
            summary.with_table(broken, "new\n", "x.md")


def test_what_misses_its_goal_needs_a_reason_and_nothing_else_has_one() -> None:
    document = "## What stops short\n\n- **speed**: a reason.\n\n## Next\n\n- **start, s**: not here.\n"
    assert summary.reason_complaints(made(1.0), document) == []
    assert len(summary.reason_complaints(made(1.0), "## What stops short\n\n- **speed**:\n")) == 1
    assert "no row that misses" in summary.reason_complaints(made(), document)[0]


def test_every_kind_of_measure_is_named_once_and_reads_what_the_scripts_write() -> None:
    names = [measure.name for measure in measures.MEASURES]
    assert len(set(names)) == len(names)
    by_file: dict[str, Any] = {
        "learner_step.json": {
            "ours": {"tokens_per_second": 30.0},
            "trl": {"tokens_per_second": 10.0},
            "share_of_matmul_rate": 0.4,
            "matmul_gflops": 50.0,
        },
        "learner_step_wide.json": {
            "ours": {"above_model_gib": 1.0, "peak_gib": 2.0},
            "trl": {"above_model_gib": 4.0, "peak_gib": 5.0},
        },
        "rollout_speed.json": {"median": {"ours": 30.0, "generate": 10.0}, "ratio": 3.1},
    }
    rows = {row["measure"]: row for row in summary.make_rows(by_file)}
    learner = [row for name, row in rows.items() if name.startswith(measures.LEARNER)]
    assert [(row["ours"], row["anchor"], row["ratio"], row["met"]) for row in learner] == [
        (30.0, 10.0, 3.0, True),
        (20.0, 50.0, 0.4, False),
    ]
    wide = [row for name, row in rows.items() if name.startswith(measures.WIDE)]
    assert [(row["ratio"], row["met"]) for row in wide] == [(0.25, True), (0.4, None)]
    rollout = next(row for name, row in rows.items() if "rollout" in name)
    assert (rollout["ratio"], rollout["met"]) == (3.1, True)


def test_a_planted_change_of_a_result_is_found() -> None:
    results = summary.stored()
    before = summary.wanted(results)
    changed = copy.deepcopy(results)
    found = changed["startup.json"]
    assert found is not None
    found["seconds"]["import mempo_env"]["cpu"]["median"] += 1.0
    after = summary.wanted(changed)
    assert all(after[path] != before[path] for path in before)


def test_the_processor_is_read_from_its_file() -> None:
    text = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\nflags\t: sve\n"
    assert machine.read_cpuinfo(text) == ("Some CPU", ["avx2", "amx_bf16"])
    assert machine.read_cpuinfo("processor\t: 0\nFeatures\t: fp asimd bf16\n") == ("", ["asimd", "bf16"])
    assert machine.read_cpuinfo("") == ("", [])
    told = machine.describe()
    assert told["cores"] >= 1
    assert told["memory_gib"] > 0


def test_a_result_says_how_it_was_measured_and_holds_only_finite_numbers(tmp_path: Any) -> None:
    whole = results_io.facts() | {"values": [1.5, 2.0], "name": "x"}
    results_io.write(whole, tmp_path / "new" / "a.json")
    text = (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
    assert "[1.5, 2.0]" in text
    assert json.loads(text)["values"] == [1.5, 2.0]
    assert len(json.loads(text)["machine"]["load_average_after"]) == 3
    with pytest.raises(ValueError, match="must hold command"):
        results_io.write({"values": []}, None)
    with pytest.raises(ValueError, match="not JSON compliant"):
        results_io.write(results_io.facts() | {"value": float("nan")}, None)
    (tmp_path / "b.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError, match="no JSON object"):
        results_io.read(tmp_path / "b.json")
