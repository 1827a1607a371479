"""``MemPO-Ledger-v0``: numbered records in batches, corrected and cancelled later, and sums to be asked at the end.

Invariants:
    * what an episode asks is a function of the reset seed and the environment's arguments;
    * an answer is right if it is the gold number, and nothing else is: no text around it counts, and no sign or decimal
      point is dropped.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from mempo_env.budgets import Budget
from mempo_env.metrics import AnswerScores
from mempo_env.records import MAX_GOALS, Task, goal_range
from mempo_env.tools import Tool
from mempo_env.vector import ThreadPoolVectorEnv

from .calculator import Calculator
from .closed_world import NAMES
from .filler import filler_vocabulary
from .ledger_world import (
    CALLS_PER_GOAL,
    LEDGER_WORDS,
    MAX_BATCHES,
    MAX_STANDING,
    MIN_BATCHES,
    LedgerConfig,
    sample_ledger_task,
)
from .reading import PartReader, ReadingEnv, check_memory_room, fitted_budget, size_range

LEDGER_TASK = "Read all records of the ledger; the questions come with the last batch."
NEXT_RECORDS = "next_records"
CALCULATION_HEAD, CALCULATION_TAIL = '{"name": "calculator", "arguments": {"expression": "', '"}}'
_DESCRIPTION = (
    "Shows the next batch of the ledger; no batch is shown twice. 'gains' adds to an account's balance, 'loses' takes "
    "from it; balances begin at 0. A correction replaces a record's amount; a cancelled record no longer counts. "
    "'records of X?' asks how many of X's records stand."
)
_NUMBER = re.compile(r"([+-]?)\s*(\d{1,40}(?:\.\d{1,40})?)")


class LedgerEnv(ReadingEnv):
    """Answers questions about the balances of accounts, with a tool that reads on and a calculator.

    Args:
        goals: Number of questions, or the two ends of a range to draw it from at every reset.
        batches: Batches of a ledger, 2 to 48, or the two ends of a range.
        records: Records of a ledger, 2 to 48; corrections, cancellations and memos come beside.
        accounts: Accounts, 1 to 16, of each of which three records can stand.
        questions: ``"end"``: they come with the last batch; ``"start"``: they are known from the start.
        corrections: Probability that a correction follows a record.
        cancellations: Probability that a cancellation follows it.
        memos: Probability that a memo follows it, a line that changes nothing.
        highest: Largest amount, 2 to 99; the smallest is 1.
        split: ``"train"``, ``"dev"`` or ``"test"``.
        budget: What may be spent beside: the calls and turns of the longest ledger, and two calculations for each of 16
            questions, stand on top.
        **memory_env: Arguments of ``mempo_env.env.MemoryEnv``.

    Raises:
        UserError: An argument is unknown or out of range, or the records do not fit into the memory.
    """

    expert = "mempo_env.agents.expert_ledger:LedgerExpert"

    def __init__(
        self,
        goals: int | Sequence[int] = 4,
        batches: int | Sequence[int] = 4,
        records: int = 16,
        accounts: int = 8,
        questions: str = "end",
        corrections: float = 0.25,
        cancellations: float = 0.1,
        memos: float = 0.25,
        highest: int = 20,
        split: str = "train",
        budget: str | Budget | Mapping[str, str | int] = "brief",
        **memory_env: Any,
    ) -> None:
        parts = size_range("batches", batches, MIN_BATCHES, MAX_BATCHES)
        self.config = LedgerConfig(parts, records, accounts, corrections, cancellations, memos, highest)
        most_goals = goal_range(goals)[1]
        self.config.check_goals(most_goals)
        # For the most goals that any task has: the budget must not tell how many questions will come.
        needed = parts[1] + CALLS_PER_GOAL * MAX_GOALS
        super().__init__(goals=goals, split=split, budget=fitted_budget(budget, needed), **memory_env)
        for notes, mend in (
            (self.config.longest_notes, "lower records"),
            (self.config.longest_sums(most_goals), "ask fewer goals"),
        ):
            check_memory_room(notes, self.budget, self.token_counter, f"{mend}, or raise memory_tokens")
        self._set_up_reading(PartReader(NEXT_RECORDS, "batch", _DESCRIPTION), parts[1], questions, LEDGER_TASK)
        self._tools: tuple[Tool, ...] = (self._reader, Calculator())

    @property
    def tools(self) -> Sequence[Tool]:
        """The one that reads on, and the calculator."""
        return self._tools

    def sample_task(self, rng: np.random.Generator) -> Task:
        """Draws the number of goals, where it is a range, and a ledger."""
        return sample_ledger_task(rng, self.draw_goals(rng), self.config, self.split)

    def score(self, answers: Sequence[str], task: Task) -> AnswerScores:
        """1 for each goal whose answer is its number, else 0, as EM and as F1; a wrong count of answers scores 0."""
        right = (0.0,) * len(task.goals)
        if len(answers) == len(task.goals):
            pairs = zip(answers, task.goals, strict=True)
            right = tuple(float(any(_same(answer, gold) for gold in goal.answers)) for answer, goal in pairs)
        return AnswerScores(right, right)

    @property
    def vocabulary(self) -> Sequence[str]:
        """The words of ledgers and their results, with every number that a sum of two accounts can be."""
        numbers = map(str, range(2 * MAX_STANDING * self.config.highest + 1))
        goals = (f"q{number}" for number in range(1, MAX_GOALS + 1))  # how the expert names the sums it needs
        words = (*super().vocabulary, *NAMES, *LEDGER_WORDS, *numbers, *goals, *filler_vocabulary())
        return list(dict.fromkeys(words))

    @property
    def phrases(self) -> Sequence[str]:
        """With the signs of an expression, each with the space before it."""
        return (*super().phrases, " +", " -", " =")


vector_env = functools.partial(ThreadPoolVectorEnv, env_id="mempo_env:MemPO-Ledger-v0")
"""What ``gym.make_vec`` makes for this environment."""


def _same(answer: str, gold: str) -> bool:
    """Whether both are plain numbers, and equal ones.

    >>> _same("- 34.0", "-34"), _same("34 or 35", "34"), _same("-34", "34")
    (True, False, False)
    """
    ours, theirs = (_NUMBER.fullmatch(text.strip()) for text in (answer, gold))
    return bool(ours and theirs) and Decimal("".join(ours.groups())) == Decimal("".join(theirs.groups()))  # type: ignore[union-attr]
