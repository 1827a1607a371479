"""The study's tables, by hand, of a made-up study; what a page keeps; the study on a language model."""

from __future__ import annotations

import importlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from memory_study.cause_tables import causes, causes_by_goals, signal
from memory_study.cells import STUDY, Cell, eval_config, fingerprint, matrix, run_config
from memory_study.claim_tables import distances, history_decline, token_distances
from memory_study.cost_tables import costs_of, curves, tokens
from memory_study.document import between, real_results, results
from memory_study.failures import CAUSES
from memory_study.headline_tables import overview, training_differences
from memory_study.memory_tables import memories, readings
from memory_study.plan import minutes
from memory_study.plots import by_goals, learning, quality_bins
from memory_study.real import REAL, real_matrix, with_data
from memory_study.replication_table import clipped, replication
from memory_study.sections import real_sections, sections
from memory_study.study import gather
from memory_study.tables import (
    differences,
    gaps,
    scores,
    state,
    within_seeds,
)
from memory_study.training_tables import collapse, estimator_table, tuning
from rich.console import Console

from mempo_env.errors import UserError

from .made_up_study import evaluation, fake_cells, fake_study, part, training


def row(table: Any, label: str) -> tuple[str, ...]:
    """The row that begins so."""
    found = [cells for cells in table.rows if cells[0] == label]
    assert len(found) == 1, table.rows
    return tuple(found[0])


def test_tables_hold_what_was_computed_by_hand() -> None:
    study = fake_study()
    table = scores(study, "easy")
    assert row(table, "warm start")[:3] == ("warm start", "3", "20.0 (20.0 to 20.0)")
    # 40, 41, 45: mean 42, deviation sqrt(7), 42 -+ 4.303 * sqrt(7 / 3)
    assert row(table, "mempo")[:3] == ("mempo", "3", "42.0 (35.4 to 48.6)")
    found = differences(study, "easy")
    # 10, 10, 13: mean 11, deviation sqrt(3), 11 -+ 4.303
    assert row(found, "mempo - grpo")[:3] == ("mempo - grpo", "3", "+11.0 (+6.7 to +15.3)")
    assert row(found, "mempo - grpo")[-1] == "+11.0 (+6.7 to +15.3)"
    assert row(found, "grpo - warm start")[1:3] == ("3", "+11.0 (+8.5 to +13.5)")
    closed = [cells for cells in gaps(study, "easy").rows if cells[0] == "grpo"]
    assert [(cells[1], cells[3].split()[0]) for cells in closed] == [
        ("imitation of the expert", "0.25"),  # 11 of 44
        ("expert", "0.16"),  # 11 of 70
    ]
    seen = within_seeds(study, "easy")
    assert row(seen, "mempo - grpo, seed 1")[1] == "+10.0 (+10.0 to +10.0)"
    assert row(memories(study, "easy"), "mempo")[2:4] == ("0.700 (0.700 to 0.700)", "0.500 (0.500 to 0.500)")
    claims = row(distances(study), "easy, mempo")
    assert claims[2:6] == ("+22.0 (+15.4 to +28.6)", "-4.0", "+11.0 (+6.7 to +15.3)", "+3.9")
    assert claims[6:] == ("yes", "yes")
    assert not scores(study, "hard").rows[3:]
    assert row(tokens(study, "easy"), "grpo")[2] == "1 / 1"
    assert row(collapse(study, "easy"), "grpo")[-2:] == ("1.000 -> 1.000", "-")
    assert len([cells for cells in estimator_table(study, "easy").rows if cells[1] == "reference"]) == 3
    # GRPO ends after 3 CPU seconds, when MemPO has made one update; both sample 1880 tokens.
    assert row(curves(study, "easy"), "mempo")[2:] == (
        *("20.0 (20.0 to 20.0)", "20.0 (20.0 to 20.0)"),
        "10.0 (10.0 to 10.0)",
    )
    assert row(costs_of(study, "easy"), "mempo") == ("mempo", "3", "3", "1,880", "6", "12", "25%")
    assert [cells[2] for cells in tuning(study).rows] == ["0.002", "0.001", "0.004", "0.0005"]


def test_the_replication_stands_alone_and_beside_the_seeds_it_was_found_with() -> None:
    gains = {0: 4.0, 1: 5.0, 2: 9.0, 5: -1.0, 6: 0.0, 7: 4.0}  # MemPO less GRPO; all hold every fact

    def read(cell: Cell) -> dict[str, Any] | None:
        arms = {("tuned", "grpo"): 0.0, ("tuned", "mempo"): 1.0, ("train", "clipped"): 2.0}
        if cell.regime != "hard" or (cell.kind, cell.arm) not in arms or cell.seed not in gains:
            return None
        if cell.arm == "clipped" and cell.seed == 2:
            return None
        f1 = 30.0 + gains[cell.seed] * arms[cell.kind, cell.arm]
        read_by_start = [0.5 + 0.1 * arms[cell.kind, cell.arm]]
        return {
            "evaluations": {"after": evaluation(f1)},
            "training": training([f1 / 100, f1 / 100], 10.0, 1.0),
            "reading": {str(n): {"ours by start": read_by_start} for n in (6, 8, 10)},
            "given": {str(n): {"goals": 100, "given": 40 + int(f1), "chance": 40} for n in (6, 8, 10)},
        }

    study = gather(matrix(full=True), read, lambda cell: replace(cell, lr=1e-3) if cell.kind == "tuned" else cell)
    assert list(study.arms["hard"]["mempo (tuned)"]) == [0, 1, 2]  # fresh seeds are in no other table
    assert row(overview(study), "hard, mempo (tuned)")[1] == "3"
    found = replication(study)
    assert [cells[0] for cells in found.rows] == ["0, 1, 2", "5, 6, 7", "0, 1, 2, 5, 6, 7"]
    assert found.rows[0][3:5] == ("+6.0 (-0.6 to +12.6)", "+4.0, +5.0, +9.0")
    assert found.rows[1][1:4] == ("31.0 (24.4 to 37.6)", "30.0 (30.0 to 30.0)", "+1.0 (-5.6 to +7.6)")
    assert found.rows[1][5:8] == ("+1.0 (-5.6 to +7.6)", "+0.0 (+0.0 to +0.0)", "+0.100 (+0.100 to +0.100)")
    assert found.rows[1][8:] == ("+1.0 (-5.6 to +7.6)", "-1.0, +0.0, +4.0")
    assert found.rows[2][3].startswith("+3.5 (")
    assert "Fresh seeds: 11 cells are missing." in state(study, {})  # two seeds whole, three warm starts
    found = clipped(study)
    assert [cells[0] for cells in found.rows] == ["0, 1", "5, 6, 7", "0, 1, 5, 6, 7"]
    assert found.rows[0][4:7] == ("+4.5", "+9.0", "+8.0, +10.0")  # of two seeds no interval
    assert found.rows[1][1] == "32.0 (18.9 to 45.1)"
    assert found.rows[1][4:7] == ("+1.0 (-5.6 to +7.6)", "+2.0 (-11.1 to +15.1)", "-2.0, +0.0, +8.0")
    assert found.rows[1][7:10] == ("+2.0 (-11.1 to +15.1)", "+0.0 (+0.0 to +0.0)", "+0.200 (+0.200 to +0.200)")
    assert study.fresh is not None
    study.fresh.arms["hard"]["clipped"][5]["evaluations"]["after"]["6"]["episodes"]["wrong_number"] = [1, 0]
    assert clipped(study).rows[1][2:4] == ("83, 100, 100", "100, 100, 100")  # the fixture has 1 everywhere
    study.fresh.arms.clear()
    assert replication(study).rows == []
    assert [cells[0] for cells in clipped(study).rows] == ["0, 1"]


def test_with_two_seeds_no_interval_over_seeds_is_shown() -> None:
    study = fake_study((0, 1))
    assert row(differences(study, "easy"), "mempo - grpo")[1:3] == ("2", "+10.0")
    assert row(distances(study), "easy, mempo")[6:] == ("too few seeds", "too few seeds")


def test_arms_are_compared_with_others_that_are_asked_for() -> None:
    study, others = fake_study(), ("grpo", "mempo")
    found = differences(study, "easy", others)
    # GRPO less MemPO: -10, -10, -13; the default rows are there as well, and none of an arm with itself
    assert row(found, "grpo - mempo")[:3] == ("grpo - mempo", "3", "-11.0 (-15.3 to -6.7)")
    assert row(found, "mempo - grpo") == row(differences(study, "easy"), "mempo - grpo")
    assert not [cells for cells in found.rows if cells[0] in ("grpo - grpo", "mempo - mempo")]
    assert row(within_seeds(study, "easy", others), "grpo - mempo, seed 2")[1] == "-13.0 (-13.0 to -13.0)"
    assert row(training_differences(study, "easy", others), "grpo - mempo")[1] == "3"
    shown = {table.key: table for table in sections(study, others)}
    for key, label in (
        ("differences", "grpo - mempo"),
        ("training", "grpo - mempo"),
        ("seeds", "grpo - mempo, seed 0"),
    ):
        assert row(shown[f"{key}-easy"], label)
        plain = next(table for table in sections(study) if table.key == f"{key}-easy")
        assert label not in [cells[0] for cells in plain.rows]


@pytest.mark.parametrize("seeds", [(0, 1), (0, 1, 2)])
def test_without_intervals_over_seeds_those_over_tasks_are_pointed_at(seeds: tuple[int, ...]) -> None:
    script, out = importlib.import_module("memory_reward"), io.StringIO()
    console = Console(file=out, width=200, soft_wrap=True)
    script.show_tables(matrix(full=True), STUDY, fake_cells(seeds), console, "mempo")
    shown = out.getvalue()
    pointer = "Fewer than 3 seeds have no interval over seeds; the table 'easy: F1 of each seed' below has"
    assert (pointer in shown) == (len(seeds) < 3)
    assert "\neasy: F1 of each seed, %" in shown  # there is one that begins so
    assert "| grpo - mempo, seed 1 | -10.0 (-10.0 to -10.0) |" in shown


def test_what_is_missing_diverged_or_remade_is_named() -> None:
    study, kinds = fake_study((0, 2)), {cell.name: cell.kind for cell in matrix()}
    lines = state(study, kinds)
    assert lines[0].startswith("0 of 5 seeds are in")
    assert "warm starts: 2 of 6 are in; missing: warm-100, warm-1, warm-3, warm-4." in lines[1]
    assert "untuned cells: 4 of 40 are in; the others are named by `--list`" in lines[2]
    assert any(line.startswith("Diverged") and "easy-mempo-2" in line for line in lines)
    assert any("made again" in line and "easy-grpo-1" in line for line in state(fake_study(), kinds))
    whole = fake_study()
    for arms in (whole.arms.setdefault(regime, {}) for regime in ("easy", "hard")):
        for name in ("grpo", "mempo", "mempo-paper", "shuffled"):
            arms[name] = {0: {}, 2: {}}
    assert whole.complete() == [0, 2]


def test_signals_and_causes_are_shown_with_their_seeds() -> None:
    study = fake_study()
    counts = {"episodes": 2, "goals": 8, "wrong": 4, "forgotten": 3, "misread": 1, "copied_question": 1}
    for seed, cell in study.arms["easy"]["grpo"].items():
        failed = dict.fromkeys(CAUSES, 0) | counts | {"forgotten": 3 - seed, "misread": 1 + seed}
        study.arms["easy"]["grpo"][seed] = dict(cell) | {
            "failures": {"after": {str(n): failed for n in STUDY.test_goals}},
            "training": cell["training"] | {"rollout/success": [0.1 * seed, 0.2, 0.3]},
        }
    found = row(causes(study, "easy"), "grpo")
    assert found[:3] == ("grpo", "3", "50.0 (50.0 to 50.0)")
    by_name = dict(zip(causes(study, "easy").header, found, strict=True))
    assert by_name["forgotten"].startswith("50.0 (")  # 75, 50 and 25 % of the wrong goals
    assert by_name["misread"].startswith("50.0 (")
    assert by_name["episodes that copy a question, %"] == "50.0 (50.0 to 50.0)"
    assert len(causes(study, "easy").rows) == 1  # no other cell was packed
    every = causes_by_goals(study, "easy").rows
    assert every[0][:4] == ("grpo", "2", "3", "50.0")
    assert every[0][4 + list(CAUSES).index("misread")] == "25.0"  # (1 + 2 + 3) of 24 goals
    seen = row(signal(study, "easy"), "grpo")
    assert seen[1:3] == ("3", "0.200 -> 0.200")  # three updates are both the first and the last five
    assert row(signal(study, "easy"), "mempo")[2] == "-"


def test_tokens_saved_stand_beside_the_claims() -> None:
    study = fake_study()
    assert token_distances(study).rows == []  # nothing was priced
    for seed, cell in study.arms["easy"]["mempo"].items():
        history = {
            **{"episodes": 2, "calls": 3.0, "memory_total": 500 + 100 * seed, "history_total": 1000},
            **{"memory_peak": 300, "history_peak": 400, "bound": 0.5},
        }
        ten = cell["evaluations"]["after"]["10"] | {"history": history}
        study.arms["easy"]["mempo"][seed] = dict(cell) | {"evaluations": {"after": evaluation(40.0) | {"10": ten}}}
    # 50, 40 and 30 % saved: mean 40, deviation 10, 40 -+ 4.303 * 10 / sqrt(3)
    same = ("50.0 (50.0 to 50.0)", "25.0 (25.0 to 25.0)", "50.0 (50.0 to 50.0)")
    assert token_distances(study).rows == [("easy, mempo", "3", "40.0 (15.2 to 64.8)", *same)]


def test_full_history_stands_beside_the_memory_policies_made_alike() -> None:
    study = fake_study()
    assert history_decline(study).rows == []  # no history was kept
    study.arms["easy"]["history"], study.warm["history"] = {}, {}
    for seed, cell in study.arms["easy"]["grpo"].items():  # 30 + seed at 2 and at 10 goals, 1 token each
        blocks = {"memory_tokens": [[0, 1], [], None]}
        f1 = [10.0, 20.0 + 2 * seed, None]  # the third one ended with a fault
        ten = part(f1, total_tokens=[4, 4, None], peak_tokens=[2 + seed, 2 + seed, None], **blocks)
        after = {"after": evaluation(40.0) | {"10": ten}}
        study.arms["easy"]["history"][seed] = dict(cell) | {"evaluations": after}
    start_tokens = {"total_tokens": [6, 6], "peak_tokens": [5, 5], "memory_tokens": [[1, 2], [1, 0]]}
    study.warm["history"][0] = {"evaluations": {"before": evaluation(25.0, **start_tokens)}}
    start, arm = history_decline(study).rows
    # 1 token of 6 and of 5; the blocks cost 1 + 1 + 2 and 1 + 1 of all, 3 and 1 of the largest call: of 3 and of 3.
    assert start == ("warm start", "1", "+0.0", "+0.0", "+0.0", "83.3", "80.0", "66.7", "66.7")
    # 15, 16 and 17 at 10 goals, less 40: mean -24, deviation 1, 4.303 / sqrt(3) = 2.48
    fell = "-24.0 (-26.5 to -21.5)"
    # 1 token of 2, of 3, of 4: 50, 66.7 and 75 % saved
    assert arm[:6] == ("easy, grpo", "3", "+0.0 (+0.0 to +0.0)", fell, fell, "75.0 (75.0 to 75.0)")
    assert arm[6].startswith("63.9 (")
    # 1 block of 1 token in one of two episodes that ended, written last: 1 token of 3.5, and of 1.5, 2.5 and 3.5
    assert arm[7] == "71.4 (71.4 to 71.4)"
    assert arm[8].startswith("54.9 (")
    for table in (scores, memories, collapse, tokens):  # each arm beside the warm start that it began from
        assert row(table(study, "easy"), "warm start (history)")[1] == "1"


def test_memories_and_readers_are_told_apart() -> None:
    study = fake_study()
    assert readings(study, "easy").rows == []  # no cell was packed
    for seed, cell in study.arms["easy"]["mempo"].items():
        one = {"ours by ours": [0.9, None], "ours by start": [0.5, None]}
        one |= {"start by ours": [0.4, 0.4], "start by start": [0.2, 0.2]}
        two = one | {"ours by start": [0.7 + 0.1 * seed, None]}
        study.arms["easy"]["mempo"][seed] = dict(cell) | {"reading": {"2": one, "4": two, "16": {}}}
    found = row(readings(study, "easy"), "mempo")
    assert found[:2] == ("mempo", "3")
    assert [cell.partition(" (")[0] for cell in found[2:]] == ["0.200", "0.900", "+0.450", "+0.200", "-", "-", "-"]
    for seed, cell in list(study.arms["easy"]["grpo"].items())[:2]:
        both = {"ours by ours": [0.6, 0.9], "ours by start": [0.5 - 0.1 * seed, None]}
        both |= {"start by ours": [0.2, 0.2], "start by start": [0.2, 0.2]}
        study.arms["easy"]["grpo"][seed] = dict(cell) | {"reading": {"2": both, "4": both}}
    assert row(readings(study, "easy"), "grpo")[-3:] == ("-",) * 3
    # 0.6 less 0.5, and 0.65 less 0.4; the task that one of them lacks is in neither, nor is the seed.
    assert row(readings(study, "easy"), "mempo")[-3:] == ("+0.175, 2 seeds", "-", "+0.300, 2 seeds")


def test_every_arm_has_one_line_over_the_goals_it_trains_on() -> None:
    study = fake_study()
    for seed, cell in study.arms["easy"]["mempo"].items():
        after = {n: dict(some) for n, some in cell["evaluations"]["after"].items()}
        for some in after.values():
            some["episodes"] = some["episodes"] | {"tool_calls": [0.4, 0.5 if seed == 1 else 0.7]}
            some["episodes"] |= {"facts": [4, 4], "facts_final": [3, 3]}
        f1 = [0.2, 0.3, 0.4 + 0.1 * seed]
        study.arms["easy"]["mempo"][seed] = {"evaluations": {"after": after}, "training": training(f1, 10.0, 1.0)}
    found = row(overview(study), "easy, mempo")
    assert found[:3] == ("easy, mempo", "3", "42.0 (35.4 to 48.6)")
    assert found[3:5] == ("+11.0 (+6.7 to +15.3)", "-")  # the control was not run
    # (20 + 30 + 40, 50, 60) / 3 less 20
    assert found[5].startswith("+13.3 (")
    assert found[6:] == ("75.0 (75.0 to 75.0)", "-25.0 (-25.0 to -25.0)", "1 of 3 (seed 1)")  # 0.45 calls of 1
    assert row(overview(study), "easy, grpo")[3:7] == ("-", "-", "-", "100.0 (100.0 to 100.0)")
    moved = row(training_differences(study, "easy"), "mempo - grpo")
    assert moved[2].startswith("+13.3 (")
    assert moved[3].startswith("+15.0 (")  # 30 and 40, 50, 60, less 20 and 30
    assert len(training_differences(study, "easy").rows) == 1


def test_the_study_on_a_language_model_differs_by_the_algorithm_alone() -> None:
    warm, grpo, mempo = real_matrix()
    one, two = (run_config(cell, Path("out"), REAL) for cell in (grpo, mempo))
    assert replace(one, algo="mempo", out=two.out) == two
    assert one.model == run_config(warm, Path("out"), REAL).out + "/base"
    assert (one.dataset, one.warm_start.target, one.train.optim.lr) == ("qa", "none", 2e-4)
    begun = run_config(warm, Path("out"), REAL)
    assert (begun.warm_start.target, begun.eval.split, begun.steps) == ("all", "dev", 0)
    assert eval_config(grpo, REAL).goals == (2, 4, 6)
    # Where the data set lies changes nothing, which one it is does.
    assert fingerprint(mempo, with_data(REAL, "/else/hotpotqa")) == fingerprint(mempo, REAL)
    assert fingerprint(mempo, with_data(REAL, "nq")) != fingerprint(mempo, REAL)
    assert sum(minutes(cell, REAL) for cell in real_matrix()) > 60
    empty = gather(real_matrix(), lambda cell: None, lambda cell: cell, REAL)
    assert real_results(empty).startswith("Not in yet: warm-0, hotpotqa-grpo-0, hotpotqa-mempo-0.")

    def read(cell: Cell) -> dict[str, Any]:
        if cell.kind == "warm":
            return {"evaluations": {"before": evaluation(20.0), "expert": evaluation(60.0)}}
        f1 = 30.0 if cell.arm == "grpo" else 34.0
        return {"evaluations": {"after": evaluation(f1)}, "training": training([0.1, 0.2], 10.0, 1.0)}

    tables = real_sections(gather(real_matrix(), read, lambda cell: cell, REAL))
    assert tables[0].rows[0][:3] == ("warm start", "1", "20.0")
    assert row(tables[1], "mempo - grpo")[1:3] == ("1", "+4.0")
    assert {table.key.partition("-")[0] for table in tables} >= {"f1", "signal", "costs", "seeds"}


def test_pages_keep_what_is_not_theirs(tmp_path: Any) -> None:
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb <!-- begin y --><!-- end y -->"
    once = between(page, "x", "new \\1")
    assert once == "a\n<!-- begin x -->\n\nnew \\1\n\n<!-- end x -->\nb <!-- begin y --><!-- end y -->"
    assert between(once, "x", "new \\1") == once
    for broken in ("", "<!-- end x --><!-- begin x -->", page + page):
        with pytest.raises(UserError, match="once each"):
            between(broken, "x", "new")
    study = fake_study()
    text = results(sections(study))
    assert "| mempo - grpo | 3 |" in text
    assert text.count("<details>") == text.count("</details>") > 2
    assert results(sections(fake_study(()))).startswith("**tuning")
    for draw in (by_goals, learning, quality_bins):
        draw(study, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 5000
