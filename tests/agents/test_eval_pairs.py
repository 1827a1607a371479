"""Pairs by hand: the same tasks only, faults left out, savings beside their bound."""

from __future__ import annotations

import csv
import math
from typing import Any

import pytest

from mempo_env.actions import Answer
from mempo_env.agents.eval_pairs import paired, row_pairs, same_tasks, savings
from mempo_env.agents.eval_rows import RowKey, row_of
from mempo_env.agents.eval_tables import csv_text, evaluation_tables, markdown, pairs_table, savings_table, sides_table
from mempo_env.records import Episode, Goal, Task, Turn

KEY = RowKey("a", "memory", "brief", 2)
MEMORY, HISTORY = RowKey("a", "memory", "paper", 1), RowKey("a", "history", "paper", 1)


def episode(
    seed: int,
    f1: float = 0.0,
    tokens: tuple[int, ...] = (10,),
    question: str = "",
    error: str | None = None,
    **info: Any,
) -> Episode:
    def turn(t: int, n: int) -> Turn:
        observation = {"task": "", "memory": "", "tool_result": "r" if t else "", "budget": ""}
        notes = {name: values[t] for name, values in info.items()}
        return Turn(observation, "", Answer(("a",)), 0, {}, "", False, n, 0, info={"tool_calls": 0} | notes)

    task = Task((Goal(question or f"q{seed}", ("a",)),))
    scores = {"em": float(f1 == 1), "f1": f1, "success": float(f1 == 1)}
    turns = tuple(turn(t, n) for t, n in enumerate(tokens))
    return Episode(turns, task, f"g{seed}", 0, seed, f1, True, False, error, scores)


def test_only_the_same_task_is_paired() -> None:
    ours = [episode(1, 1.0), episode(2, 0.5), episode(3), episode(4, question="ours"), episode(5, error="down")]
    theirs = [episode(2, 0.25), episode(1, 0.5), episode(4, question="theirs"), episode(5), episode(6)]
    pairs, left_out, other = same_tasks(ours, theirs)
    assert [(one.seed, two.seed) for one, two in pairs] == [(1, 1), (2, 2)]
    assert (left_out, other) == (3, 1)  # 3 alone, 5 with a fault, 6 alone
    found = paired(MEMORY, ours, HISTORY, theirs)
    assert found.tasks == 2
    assert found.differences["f1"] == pytest.approx((50 + 25) / 2)
    assert found.intervals["f1"] == (25.0, 50.0)
    assert found.differences["total_tokens"] == 0
    nothing = paired(MEMORY, ours, HISTORY, [])
    assert math.isnan(nothing.differences["f1"])
    assert nothing.flat()["f1"] is None


def test_equal_episodes_differ_by_nothing_and_a_shift_is_found_exactly() -> None:
    ours = [episode(seed, seed / 10, (10 + seed, 3)) for seed in range(10)]
    assert set(paired(MEMORY, ours, HISTORY, ours).differences.values()) == {0}
    more = [episode(seed, seed / 10, (10 + seed, 8)) for seed in range(10)]
    found = paired(MEMORY, more, HISTORY, ours)
    assert found.differences["total_tokens"] == 5
    assert found.intervals["total_tokens"] == (5, 5)


def test_contexts_are_set_against_history_and_agents_against_the_first() -> None:
    keys = [RowKey(agent, context, "brief", n) for agent in "ab" for n in (1, 2) for context in ("memory", "history")]
    rows = {key: [episode(1)] for key in keys}
    found = {(pair.row, pair.reference) for pair in row_pairs(rows)}
    assert all(row.goals == other.goals for row, other in found)
    assert (keys[0], keys[1]) in found
    assert (keys[4], keys[5]) in found
    assert (keys[4], keys[0]) in found
    assert len(found) == 4 + 4
    alone = {key: value for key, value in rows.items() if key.context == "memory"}
    assert {pair.reference.agent for pair in row_pairs(alone)} == {"a"}


def test_savings_by_hand_measured_and_priced() -> None:
    # C = 2 calls whose result was shown: bound 1 - 2 / 3. Tokens 10 + 20 + 30 against 20 + 40 + 60.
    ours = [episode(1, 1.0, (10, 20, 30), history_tokens=(10, 40, 70))]
    theirs = [episode(1, 0.5, (20, 40, 60))]
    measured = savings({MEMORY: ours, HISTORY: theirs})
    assert [saving.row for saving in measured] == [MEMORY]
    assert (measured[0].measured, measured[0].calls, measured[0].tasks) == (True, 2, 1)
    assert measured[0].total == pytest.approx(0.5)
    assert measured[0].peak == pytest.approx(0.5)
    assert measured[0].total_interval == pytest.approx((0.5, 0.5))
    assert measured[0].bound == pytest.approx(1 - 2 / 3)
    assert measured[0].f1 == 50
    several = savings(
        {
            MEMORY: [episode(n, 1.0, (cost,)) for n, cost in ((1, 10), (2, 40), (3, 90))],
            HISTORY: [episode(n, 1.0, (100,)) for n in (1, 2, 3)],
        }
    )[0]
    low, high = several.total_interval
    assert low == pytest.approx(0.1), "the dearest task drawn three times"
    assert low < several.total < high == pytest.approx(0.9)
    priced = savings({MEMORY: ours})[0]
    assert not priced.measured
    assert priced.total == pytest.approx(1 - 60 / 120)
    assert priced.peak == pytest.approx(1 - 30 / 70)
    assert savings({MEMORY: [episode(1)]}) == [], "who was not priced has saved nothing that is known"
    zero = savings({MEMORY: [episode(1, 0, (0,))], HISTORY: [episode(1, 0, (0,))]})[0]
    assert math.isnan(zero.total), "a server that counts no tokens"
    assert "-" in markdown(savings_table([zero]))


def test_tables_hold_the_numbers_and_odd_names() -> None:
    odd = RowKey("runs/[bold]a|b", "memory", "brief", 1)
    row = row_of(odd, [episode(1, 1.0, (10, 2)), episode(2, 0.0, error="down")])
    text = markdown(evaluation_tables([row])[0])
    assert "### runs/[bold]a|b, budget brief, context memory" in text
    assert "| 1 | 100.0 (100-100) | 100.0 | 100 | 12 | 10 | 2.0 | 1 + 1e |" in text
    against = paired(odd, [episode(1, 1.0)], RowKey("other", "memory", "brief", 1), [episode(1, 0.5)])
    assert "runs/[bold]a\\|b" in markdown(pairs_table([against]))
    assert "from other" in markdown(pairs_table([against]))
    broken = row_of(RowKey("a\nb\\|c", "memory", "brief", 1), [episode(1)])
    hostile = markdown(sides_table([broken])).splitlines()
    assert hostile[-1].startswith("| 1 | a b\\\\\\|c | ")
    assert markdown(evaluation_tables([broken])[0]).startswith("### a b")
    formula = row_of(RowKey('=HYPERLINK("http://x")', "memory", "brief", 1), [episode(1)])
    assert next(csv.DictReader(csv_text([formula]).splitlines()))["agent"] == '\'=HYPERLINK("http://x")'
    lines = csv_text([row, row_of(KEY, [])]).splitlines()
    header, first, second = (line.split(",") for line in lines)
    assert first[header.index("f1")] == "100.0"
    assert first[header.index("total_tokens_low")] == "12.0"
    assert second[header.index("f1")] == ""
    assert len(first) == len(second) == len(header)
