"""The study's numbers, by hand: shares, differences, correlations, budgets, intervals, tables."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from memory_study import measures
from memory_study.cause_tables import causes, causes_by_goals, signal
from memory_study.cells import SMOKE, STUDY, Cell, eval_config, fingerprint, matrix, run_config
from memory_study.claim_tables import distances, token_distances
from memory_study.document import between, real_results, results
from memory_study.estimates import Estimate, apart, over_seeds, t_interval
from memory_study.failures import CAUSES
from memory_study.headline_tables import overview, training_differences
from memory_study.memory_tables import memories, readings
from memory_study.more_tables import collapse, costs_of, curves, estimator_table, tokens, tuning
from memory_study.plan import minutes
from memory_study.plots import by_goals, learning, quality_bins
from memory_study.real import REAL, real_matrix, with_data
from memory_study.store import read_json, write_json
from memory_study.study import Study, gather
from memory_study.tables import (
    differences,
    gaps,
    real_sections,
    scores,
    sections,
    state,
    within_seeds,
)
from rich.console import Console

from mempo_env.errors import UserError

GOALS = STUDY.test_goals


def part(f1: list[float | None], **more: Any) -> dict[str, Any]:
    """One number of goals of an evaluation."""
    n = len(f1)
    counts = ("had", "kept", "new", "noted", "notes", "notes_right", "notes_invented", "notes_repeated", "memories")
    counts += ("memories_same", "memories_full", "facts", "facts_final", "format_errors", "early", "wrong_number")
    counts += ("turns", "tool_calls", "total_tokens", "peak_tokens")
    columns: dict[str, Any] = {name: [None if v is None else 1 for v in f1] for name in counts}
    columns |= {"seed": list(range(n)), "f1": f1, "em": f1, "truncated": [None if v is None else 0.0 for v in f1]}
    columns |= {"quality": [None if v is None else [0.9, 0.5] for v in f1]}
    columns |= {"memory_tokens": [None if v is None else [10, 20] for v in f1]}
    return {"episodes": columns | more, "template_share": 0.25, "history": None}


def evaluation(f1: float, **more: Any) -> dict[str, Any]:
    """Every number of goals with two tasks of this mean."""
    return {str(n): part([f1 - 10, f1 + 10], **more) for n in GOALS}


def training(f1: list[float], output: float, cpu: float) -> dict[str, Any]:
    """The metrics of as many updates as there are values."""
    n = len(f1)
    return {
        "step": list(range(n)),
        "rollout/f1": f1,
        "rollout/episodes": [64.0] * n,
        "rollout/errors": [4.0] + [0.0] * (n - 1),
        "rollout/output_tokens": [output] * n,
        "time/cpu_s": [cpu] * n,
        "time/step_s": [2 * cpu] * n,
        "time/scoring_s": [cpu / 2] * n,
        "train/entropy": [1.0] * n,
    }


def probe() -> dict[str, Any]:
    """Four memories in two groups."""
    memories = {name: [1.0, 2.0, 3.0, 4.0] for name in measures.CIRCUMSTANCES}
    return {"memories": memories | {"group": [0, 0, 1, 1], "rollout": [0, 1] * 2, "reference": [-1.0, 1.0, -2.0, 2.0]}}


def fake_cells(seeds: tuple[int, ...] = (0, 1, 2)) -> Callable[[Cell], dict[str, Any] | None]:
    """Warm starts at 20, ceilings at 64 and 90, GRPO at 30 + seed, MemPO at 40, 41, 45, hard ones only at seed 0."""
    gains = {"grpo": (30.0, 31.0, 32.0), "mempo": (40.0, 41.0, 45.0)}

    def read(cell: Cell) -> dict[str, Any] | None:
        if cell.kind == "warm" and cell.seed in seeds and not cell.arm:
            names = {"before": 20.0, "imitation": 64.0, "expert": 90.0}
            return {
                "evaluations": {name: evaluation(value) for name, value in names.items()},
                "probes": {"easy": probe(), "hard": probe()},
            }
        if cell.kind == "train" and cell.arm in gains and cell.seed in seeds and cell.regime == "easy":
            return {
                "evaluations": {"after": evaluation(gains[cell.arm][cell.seed])},
                "training": training([0.1, 0.2, 0.3], 10.0, 1.0 if cell.arm == "grpo" else 2.0),
                "probes": {"easy": probe()},
                "diverged": "nan" if (cell.arm, cell.seed) == ("mempo", 2) else "",
                "warm_start": {"remade": True, "equal": cell.seed != 1},
            }
        if cell.kind == "tune" and (cell.arm, cell.regime) == ("grpo", "hard"):
            return {"cell": {"lr": cell.lr, "weight": cell.weight}, "evaluations": {"after": evaluation(5.0)}}
        return None

    return read


def fake_study(seeds: tuple[int, ...] = (0, 1, 2)) -> Study:
    """What these cells make."""
    return gather(matrix(full=True), fake_cells(seeds), lambda cell: cell if cell.kind != "tuned" else None)


def row(table: Any, label: str) -> tuple[str, ...]:
    """The row that begins so."""
    found = [cells for cells in table.rows if cells[0] == label]
    assert len(found) == 1, table.rows
    return tuple(found[0])


def test_intervals_over_seeds_need_three() -> None:
    # mean 2, standard deviation 1, t(2) = 4.303: 2 -+ 4.303 / sqrt(3)
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == (pytest.approx(2 - 4.303 / math.sqrt(3)), pytest.approx(2 + 4.303 / math.sqrt(3)))
    assert over_seeds([1.0, 3.0]).text() == "2.0"
    assert over_seeds([1.0, math.nan, 3.0]).n == 2
    assert over_seeds([]).text() == "-"
    assert over_seeds([1.0, 2.0, 3.0]).text(1, sign=True) == "+2.0 (-0.5 to +4.5)"


def test_intervals_are_apart_or_not() -> None:
    one, two, three = Estimate(1, 0.5, 1.5, 3), Estimate(3, 1.6, 4, 3), Estimate(2, 1.5, 3, 3)
    assert apart(one, two) is True
    assert apart(two, one) is True
    assert apart(one, three) is False
    assert apart(one, Estimate(1, math.nan, math.nan, 2)) is None
    assert (one.excludes_zero, Estimate(1, -1, 2, 3).excludes_zero) == (True, False)
    assert Estimate(1, math.nan, math.nan, 1).excludes_zero is None


def test_differences_pair_tasks_by_seed_and_leave_faults_out() -> None:
    ours = {"2": part([10.0, 20.0, None, 40.0], seed=[5, 6, 7, 8])}
    theirs = {"2": part([1.0, None, 3.0, 4.0], seed=[8, 6, 7, 5])}
    assert measures.paired(ours, theirs, 2) == [10.0 - 4.0, 40.0 - 1.0]


def test_shares_and_qualities() -> None:
    counts = {"kept": [1, None, 2], "had": [2, None, 2], "quality": [[0.9, 0.7], None, [0.85]]}
    found = {"2": part([1.0, None, 1.0], **counts), "4": part([1.0], kept=[1], had=[6], quality=[[0.2]])}
    assert measures.pooled_share(found, (2,), "kept", "had") == 0.75
    assert measures.pooled_share(found, (2, 4), "kept", "had") == 0.4
    assert math.isnan(measures.pooled_share({"2": part([1.0], had=[0])}, (2,), "kept", "had"))
    assert measures.quality(found, (2, 4)) == (pytest.approx((0.9 + 0.7 + 0.85 + 0.2) / 4), 0.5)
    assert math.isnan(measures.quality({"2": part([1.0], quality=[[]])}, (2,))[0])


def test_the_gap_is_closed_by_share_of_the_way() -> None:
    assert measures.gap_closed(20, 30, 60) == 0.25
    assert measures.gap_closed(20, 10, 60) == -0.25
    assert math.isnan(measures.gap_closed(60, 70, 60))


def test_f1_at_the_right_number_leaves_the_others_out() -> None:
    columns = {"f1": [50.0, 0.0, 100.0, None, 0.0], "wrong_number": [0, 1, 0, None, 0]}
    some = {"2": {"episodes": columns | {"truncated": [0.0, 0.0, 0.0, None, 100.0]}}}
    assert measures.at_right_number(some, 2) == 75
    none = {"2": {"episodes": {"f1": [0.0], "wrong_number": [1], "truncated": [0.0]}}}
    assert math.isnan(measures.at_right_number(none, 2))


def test_savings_are_means_over_episodes() -> None:
    found = {"2": part([1.0, 1.0])}
    found["2"]["history"] = {
        **{"episodes": 2, "calls": 3.0, "memory_total": 300, "history_total": 1200},
        **{"memory_peak": 100, "history_peak": 400, "bound": 0.5},
    }
    assert measures.saving(found, 2) == {
        **{"total": 150, "peak": 50, "history_total": 600, "history_peak": 200},
        **{"saved_total": 0.75, "saved_peak": 0.75, "bound": 0.5},
    }
    assert math.isnan(measures.saving({"2": part([1.0])}, 2)["bound"])
    assert measures.saving({"2": part([1.0])}, 2)["total"] == 1


def test_signs_of_collapse() -> None:
    counts = {"format_errors": [1, 2], "turns": [4, 2], "truncated": [100.0, 0.0], "memories": [4, 4]}
    found = {"2": part([1.0, 1.0], memories_same=[1, 3], **counts)}
    signs = measures.signs(found, (2,))
    assert (signs["format_errors"], signs["cut short"], signs["same memory"]) == (0.5, 0.5, 0.5)
    assert (signs["turns"], signs["template"], signs["memory tokens"]) == (3, 0.25, 15)


def test_correlations_are_within_groups() -> None:
    # Between groups the two rise together, within they run against each other.
    x, y = [1.0, 2.0, 11.0, 12.0], [2.0, 1.0, 12.0, 11.0]
    assert measures.correlation(x, y, [0, 0, 1, 1]) == pytest.approx(-1)
    assert measures.correlation(x, y, [0, 0, 0, 0]) > 0.9
    assert math.isnan(measures.correlation([1.0, 1.0], [1.0, 2.0], [0, 0]))
    assert math.isnan(measures.correlation([1.0, 5.0], [1.0, 2.0], [0, 1]))


def test_estimators_have_variance_and_correlations() -> None:
    found = measures.estimators(probe(), ("reference", "old_memory"))
    assert list(found) == ["reference"]
    assert found["reference"]["variance"] == pytest.approx(10 / 3)  # of -1, 1, -2, 2 about 0
    # Within groups: x = -.5, .5, -.5, .5 and y = -1, 1, -2, 2: 3 / sqrt(1 * 10)
    assert found["reference"]["calls"] == pytest.approx(3 / math.sqrt(10))
    assert math.isnan(found["reference"][measures.AT_EQUAL_TURN])  # each memory is alone at its turn
    memories = probe()["memories"] | {"turn": [0, 0, 1, 1], "group": [0] * 4, "facts_held": [1, 2, 5, 3]}
    memories |= {"rollout": [0, 1, 0, 1], "quality": [0.1, 0.3, 0.6, 0.9]}
    late = measures.estimators({"memories": memories}, ("reference", "same_turn"))
    # Less the other memory of the turn: -.2, .2, -.3, .3. Facts less the mean of their turn: -.5, .5, 1, -1.
    assert late["same_turn"]["variance"] == pytest.approx(0.26 / 3)
    assert late["same_turn"]["turn"] == pytest.approx(0)
    assert late["same_turn"][measures.AT_EQUAL_TURN] == pytest.approx(-0.4 / math.sqrt(0.26 * 2.5))
    # -1, 1, -2, 2 of reference, whose means at each turn are 0
    assert late["reference"][measures.AT_EQUAL_TURN] == pytest.approx(-3 / math.sqrt(10 * 2.5))


def test_costs_add_up_and_values_are_read_at_a_budget() -> None:
    spent = measures.costs(training([0.1, 0.2, 0.3], 10.0, 2.0))
    assert spent == {"steps": [1, 2, 3], "tokens": [600, 1240, 1880], "cpu": [2, 4, 6]}  # 60, 64, 64 episodes
    assert measures.at_budget([0.1, 0.2, 0.3], spent["tokens"], 1300, window=1) == 0.2
    assert measures.at_budget([0.1, None, 0.3], spent["cpu"], 6, window=2) == pytest.approx(0.2)
    assert math.isnan(measures.at_budget([0.1], [10], 9))
    assert measures.ends([1.0, None, 3.0, 5.0], 2) == (2.0, 4.0)


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
            "failures": {"after": {str(n): failed for n in GOALS}},
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


def test_what_is_given_is_taken_out_of_both() -> None:
    third = [0.0, 1.0, 2.0, 3.0, 0.0, 1.0]
    one = [2 * t + e for t, e in zip(third, [0.1, -0.1, -0.1, 0.1, 0.0, 0.0], strict=True)]
    two = [-t + e for t, e in zip(third, [0.1, -0.1, -0.1, 0.1, 0.0, 0.0], strict=True)]
    groups = [0, 0, 0, 0, 1, 1]
    assert measures.correlation(one, two, groups) < -0.99
    assert measures.partial_correlation(one, two, [third], groups) > 0.99
    assert math.isnan(measures.partial_correlation(third, two, [third], groups))


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


def test_the_script_lists_shows_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = importlib.import_module("memory_reward")
    out, place = ("--out", str(tmp_path)), ("--stored", str(tmp_path / "kept"))
    cell = Cell("warm", 0)
    content = {"fingerprint": fingerprint(cell, SMOKE), "evaluations": {}, "cell": {}}
    write_json(tmp_path / "cells" / "warm-0.json", content)
    assert script.main(["--smoke", "--only", "warm-*", "--list", *out, *place]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed if line.endswith("done")] == ["warm-0"]
    assert listed[-1].startswith("6 cells, about ")
    assert script.main(["--smoke", "--pack", *out, *place]) == 0
    assert read_json(tmp_path / "kept" / "warm-0.json.gz") == content | {"texts": {}, "failures": {}}
    (tmp_path / "cells" / "warm-0.json").unlink()
    assert script.main(["--smoke", "--only", "warm-0", "--list", *out, *place]) == 0
    assert "done" in capsys.readouterr().out  # a kept cell is done
    assert script.main(["--table", "--out", str(tmp_path / "none"), "--stored", str(tmp_path / "none")]) == 0
    shown = capsys.readouterr().out
    assert "0 of 5 seeds are in" in shown
    assert "|" not in shown  # no table without a cell
    with pytest.raises(UserError, match="no cell fits"):
        script.main(["--only", "no-such", *out])
