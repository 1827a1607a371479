"""Ledgers: gold answers against an addition written apart, bounds that the memory rests on, and numbers as answers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mempo_env.actions import FormatErrorKind
from mempo_env.envs.closed_world import split_of
from mempo_env.envs.ledger import LEDGER_TASK, LedgerEnv
from mempo_env.envs.ledger_world import LedgerConfig, sample_ledger_task
from mempo_env.errors import UserError
from mempo_env.records import Goal, Passage, Task
from mempo_env.tokens import RegexTokenCounter


def draw(seed: int, goals: int = 4, split: str = "train", **config: Any) -> Task:
    return sample_ledger_task(np.random.default_rng(seed), goals, LedgerConfig(**config), split)


def balances(task: Task) -> tuple[dict[str, list[int]], int]:
    """Amounts per account after a reading that knows nothing of the code's own, and the most that stood at a time."""
    words = " ".join(passage.text for passage in task.passages).replace(",", "").split(" ")
    amounts: dict[str, int] = {}
    owner: dict[str, str] = {}
    most, at = 0, 0
    while at < len(words):
        if words[at] == "memo:":
            at += 1
            while not words[at].endswith("."):
                at += 1
        elif words[at] == "correction:":
            number, new, old = words[at + 2], int(words[at + 4]), int(words[at + 6].rstrip("."))
            assert abs(amounts[number]) == old != new
            amounts[number] = new if amounts[number] > 0 else -new
            at += 6
        elif words[at] == "cancelled:":
            del amounts[words[at + 2].rstrip(".")]
            at += 2
        else:
            number, owner[words[at]], verb, amount = words[at : at + 4]
            assert int(number) == len(owner)
            amounts[number] = int(amount.rstrip(".")) * (1 if verb == "gains" else -1)
            at += 3
        at += 1
        of = [owner[number] for number in amounts]
        most = max([most, *(of.count(account) for account in set(of))])
    result: dict[str, list[int]] = {}
    for number, signed in amounts.items():
        result.setdefault(owner[number], []).append(signed)
    return result, most


def by_hand(question: str, of: dict[str, list[int]]) -> int:
    a, *rest = re.findall(r"[A-Z]\w+", question)
    total = sum(of[a])
    if question.startswith("balance"):
        return total
    if question.startswith("records"):
        return len(of[a])
    other = sum(of[rest[0]])
    return {"total": total + other, "larger": max(total, other)}.get(question.split(" ")[0], total - other)


@settings(max_examples=80)
@given(
    st.integers(0, 2**40), st.integers(1, 5), st.integers(2, 5), st.integers(5, 12), st.integers(4, 8),
    st.floats(0, 1), st.floats(0, 0.5), st.sampled_from(["train", "dev", "test"]),
)  # fmt: skip
def test_what_every_ledger_keeps(
    seed: int, goals: int, batches: int, records: int, accounts: int, corrections: float, gone: float, split: str
) -> None:
    config = {"batches": (2, batches), "records": records, "accounts": accounts, "highest": 9}
    config |= {"corrections": corrections, "cancellations": gone}
    task = draw(seed, goals, split, **config)
    assert task == draw(seed, goals, split, **config)
    assert 2 <= len(task.passages) <= batches
    assert all(passage.text for passage in task.passages)
    of, most = balances(task)
    assert most <= 3
    for goal in task.goals:
        assert goal.answers == (str(by_hand(goal.question, of)),)
        assert int(goal.answers[0]) >= 0
        noted = [evidence.note.split(" ") for evidence in goal.evidence]
        assert len(noted) == sum(len(of[account]) for account in set(re.findall(r"[A-Z]\w+", goal.question)))
        assert all(int(note[3]) * (1 if note[2] == "gains" else -1) in of[note[1]] for note in noted)
    assert len({goal.question for goal in task.goals}) == goals
    assert split_of(task.goals) == split


def test_every_kind_of_question_and_line_occurs() -> None:
    kinds: dict[str, int] = {}
    text = ""
    for seed in range(200):
        task = draw(seed)
        text += " ".join(passage.text for passage in task.passages)
        for goal in task.goals:
            kinds[goal.kind] = kinds.get(goal.kind, 0) + 1
    assert set(kinds) == {"balance", "total", "difference", "larger", "count"}
    assert min(kinds.values()) > 100  # of 800
    entries = 200 * 16
    for line, share in (("correction", 0.25), ("cancelled", 0.1), ("memo", 0.25)):
        assert text.count(f"{line}: ") / entries == pytest.approx(share, abs=0.03)  # standard error 0.008


def test_splits_hold_different_tasks() -> None:
    asked = [
        {tuple(sorted((goal.question, goal.answers) for goal in draw(seed, 1, split).goals)) for seed in range(60)}
        for split in ("train", "dev", "test")
    ]
    assert not asked[0] & asked[1]
    assert not asked[0] & asked[2]
    assert not asked[1] & asked[2]
    with pytest.raises(UserError, match="split"):
        draw(0, split="validation")


def test_the_largest_ledger_fits_into_the_memory() -> None:
    env = LedgerEnv(goals=16, batches=48, records=48, accounts=16, highest=99)
    counter = RegexTokenCounter()
    assert counter.count(env.config.longest_notes) == 239 <= env.budget.memory_tokens
    assert counter.count(env.config.longest_sums(16)) == 239
    assert len(env.reset(seed=0)[1]["task"].passages) == 48


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": 1}, "batches must be a whole number from 2 to 48"),
        ({"records": 49}, "records must be a whole number from 2 to 48"),
        ({"records": [4, 8]}, "records must be a whole number"),
        ({"memos": True}, "memos=True is a probability"),
        ({"accounts": 17}, "accounts must be"),
        ({"highest": 1}, "highest must be"),
        ({"memos": -0.1}, r"memos=-0\.1 is a probability"),
        ({"records": 16, "accounts": 5}, "16 records need 6 accounts, since 3 of each can stand, not 5"),
        ({"records": 3, "accounts": 3}, "3 records cannot fill 4 batches"),
        ({"accounts": 2, "records": 6}, "2 accounts are too few for 4 different questions"),
        ({"budget": {"memory_tokens": 50}}, "may take 79 tokens .regex., but the memory holds 50; lower records"),
        ({"budget": {"memory_tokens": 80}, "goals": 8, "records": 8}, "may take 119 tokens .* ask fewer goals"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LedgerEnv(**arguments)


def task(*answers: str) -> Task:
    goals = tuple(Goal(f"balance of {at}?", (answer,)) for at, answer in enumerate(answers))
    return Task(goals, "t", (Passage("batch-1", "", "1 Ada gains 14."), Passage("batch-2", "", "2 Ada gains 20.")))


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("34; 5", 1.0), (" 34 ;5.0", 1.0), ("+34; 05", 1.0), ("34; 6", 0.5), ("5; 34", 0.0), ("-34; 5", 0.5),
        ("3.4; 5", 0.5), ("34 or 35; 5", 0.5), ("34, 5", 0.0), ("34", 0.0), ("34; 5; 34", 0.0), ("thirty-four; 5", 0.5),
        ("1e9; 5", 0.5), (f"{'9' * 10_000}; 5", 0.5), ("34 5; ", 0.0), ("; 5", 0.5), ("nan; inf", 0.0),
    ],
)  # fmt: skip
def test_an_answer_is_a_number(answer: str, right: float) -> None:
    env = LedgerEnv(outcome="fraction", goals=2)
    env.reset(options={"task": task("34", "5")})
    _, reward, terminated, _, info = env.step(f"<mem></mem><answer>{answer}</answer>")
    assert terminated
    assert (reward, info["em"], info["f1"]) == (right, right, right)


def test_a_negative_number_keeps_its_sign() -> None:
    env = LedgerEnv(outcome="fraction", goals=1)
    for answer, right in (("-34", 1.0), ("- 34", 1.0), ("34", 0.0), ("--34", 0.0)):
        env.reset(options={"task": task("-34")})
        assert env.step(f"<mem></mem><answer>{answer}</answer>")[1] == right


def test_an_episode_by_hand() -> None:
    env = LedgerEnv(goals=1, batches=2, outcome="fraction")  # a binary outcome asks for no format error either
    observation, _ = env.reset(options={"task": task("34")})
    assert observation == {
        "task": LEDGER_TASK, "memory": "", "tool_result": "", "budget": "39 tool calls, 42 turns left",
    }  # fmt: skip
    read = '<mem>1 Ada gains 14</mem><tool_call>{"name": "next_records"}</tool_call>'
    assert env.step(read)[0]["tool_result"] == "batch 1 of 2: 1 Ada gains 14."
    assert env.step(read)[0]["tool_result"] == "batch 2 of 2: 2 Ada gains 20.\nQuestions: balance of 0?"
    call = '<tool_call>{"name": "calculator", "arguments": {"expression": "14 + 20"}}</tool_call>'
    assert env.step(f"<mem>q1 = 14 + 20</mem>{call}")[0]["tool_result"] == "14 + 20 = 34"
    *_, info = env.step('<mem>m</mem><tool_call>{"name": "next_records", "arguments": {"batch": 1}}</tool_call>')
    assert info["format_error"] == FormatErrorKind.BAD_ARGUMENTS
    assert env.step("<mem>m</mem><answer>34</answer>")[1] == 1.0
