"""Ledgers drawn afresh: numbered records of accounts, corrections and cancellations, in batches, among memos.

``5 Ada gains 14.`` is a record; ``correction: record 5 is 40, not 14.`` replaces its amount; ``cancelled: record 5.``
takes it out. A balance begins at 0 and is what the account's records that stand add up to.

Invariants:
    * a ledger is a function of the generator it is drawn from, the number of goals, the config and the split;
    * at most ``MAX_STANDING`` records of an account stand at any time, and ``MAX_RECORDS`` in all, so that a memory can
      hold them, and afterwards a sum for each of 16 questions;
    * every answer is a whole number that is not negative, and only accounts with a standing record are asked about;
    * no question is asked twice in a task, and the splits are disjoint by the closed world's rule (``split_of``).
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mempo_env.errors import UserError, unknown_name
from mempo_env.records import MAX_GOALS, Evidence, Goal, Passage, Task

from .closed_world import NAMES, SPLITS, split_of
from .filler import filler_sentences
from .reading import NOTE_SEPARATOR, check_probability, check_whole, size_range

MAX_RECORDS, MAX_ACCOUNTS, MAX_STANDING = 48, 16, 3
MIN_BATCHES, MAX_BATCHES = 2, 48
MAX_AMOUNT = 99
GAINS, LOSES = "gains", "loses"
MEMO = "memo:"
LEDGER_WORDS = (
    *("gains", "loses", "correction", "record", "is", "not", "cancelled", "memo"),
    *("balance", "total", "larger", "minus", "records", "of", "and"),
)
_NAME = "|".join(NAMES)
RECORD = re.compile(rf"(?<!\w)(\d+) ({_NAME}) ({GAINS}|{LOSES}) (\d+)(?!\w)")
"""A record as a line states it and a note keeps it: number, account, gains or loses, amount."""
LINE = re.compile(rf"{RECORD.pattern}\.|correction: record (\d+) is (\d+), not \d+\.|cancelled: record (\d+)\.")
"""A line that changes the ledger: a record, a correction (5: number, 6: amount) or a cancellation (7: number)."""
BALANCE, TOTAL = re.compile(r"balance of (\w+)\?"), re.compile(r"total of (\w+) and (\w+)\?")
DIFFERENCE, LARGER = re.compile(r"(\w+) minus (\w+)\?"), re.compile(r"larger of (\w+) and (\w+)\?")
COUNT = re.compile(r"records of (\w+)\?")
CALLS_PER_GOAL = 2
"""Calculations that an answer needs at most: the larger of two balances needs both."""
_MAX_DRAWS = 10_000


@dataclass(frozen=True)
class LedgerConfig:
    """How ledgers are drawn.

    Attributes:
        batches: Fewest and most batches, 2 to 48.
        records: Records, 2 to 48; at least as many as batches, at most three for each account.
        accounts: Accounts, 1 to 16.
        corrections: Probability that a correction follows a record.
        cancellations: Probability that a cancellation follows it.
        memos: Probability that a memo follows it, a line that changes nothing.
        highest: Largest amount, 2 to 99; the smallest is 1.

    Raises:
        UserError: A value is out of its range.
    """

    batches: tuple[int, int] = (4, 4)
    records: int = 16
    accounts: int = 8
    corrections: float = 0.25
    cancellations: float = 0.1
    memos: float = 0.25
    highest: int = 20

    def __post_init__(self) -> None:
        size_range("batches", self.batches, MIN_BATCHES, MAX_BATCHES)
        check_whole("records", self.records, 2, MAX_RECORDS)
        check_whole("accounts", self.accounts, 1, MAX_ACCOUNTS)
        check_whole("highest", self.highest, 2, MAX_AMOUNT)
        for name in ("corrections", "cancellations", "memos"):
            check_probability(name, getattr(self, name))
        if self.records > MAX_STANDING * self.accounts:
            raise UserError(
                f"{self.records} records need {-(-self.records // MAX_STANDING)} accounts, since {MAX_STANDING} of "
                f"each can stand, not {self.accounts}; raise accounts or lower records"
            )
        if self.records < self.batches[1]:
            raise UserError(
                f"{self.records} records cannot fill {self.batches[1]} batches; raise records or lower batches"
            )

    def check_goals(self, goals: int) -> None:
        """Refuses more goals than there are different questions.

        Raises:
            UserError: There are fewer.
        """
        asked = min(self.accounts, self.records)
        # Of every pair one difference is not negative, and of every account the records can be counted.
        if asked * (asked + 1) // 2 < goals:
            raise UserError(f"{asked} accounts are too few for {goals} different questions; raise accounts and records")

    @property
    def longest_notes(self) -> str:
        """A memory of all records, written with a long name."""
        name = max(NAMES, key=len)
        return NOTE_SEPARATOR.join([f"{self.records} {name} {GAINS} {self.highest}"] * self.records)

    def longest_sums(self, goals: int) -> str:
        """A memory with a sum of the most terms for each goal."""
        return NOTE_SEPARATOR.join([f"q{MAX_GOALS} = " + " + ".join([str(self.highest)] * 2 * MAX_STANDING)] * goals)


@dataclass
class _Record:
    """A record while the ledger is drawn."""

    number: int
    account: str
    sign: int
    amount: int
    batch: int = 0

    @property
    def note(self) -> str:
        return f"{self.number} {self.account} {GAINS if self.sign > 0 else LOSES} {self.amount}"


def sample_ledger_task(rng: np.random.Generator, goals: int, config: LedgerConfig, split: str = "train") -> Task:
    """Draws a ledger and what is asked about it.

    Args:
        rng: Source of the task's seed; exactly one number is taken from it.
        goals: Number of goals.
        config: How to draw.
        split: ``train``, ``dev`` or ``test``.

    Returns:
        A task whose ``passages`` are the batches in order.

    Raises:
        UserError: The split is unknown, or there are too few accounts for the goals.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    config.check_goals(goals)
    stream = np.random.default_rng([SPLITS.index(split), int(rng.integers(2**63))])
    for _ in range(_MAX_DRAWS):
        lines, standing = _draw_lines(stream, config)
        chosen = _draw_goals(stream, goals, standing)
        if len(chosen) == goals and split_of(chosen) == split:
            break
    else:
        raise UserError(f"no {split} task of {goals} goals in {_MAX_DRAWS} draws; raise accounts and records")
    batches = int(stream.integers(config.batches[0], config.batches[1] + 1))
    texts = [[lines[int(at)] for at in part] for part in np.array_split(np.arange(len(lines)), batches)]
    passages = tuple(Passage(f"batch-{at}", "", " ".join(part)) for at, part in enumerate(texts, start=1))
    digest = hashlib.sha256(repr((chosen, passages)).encode()).hexdigest()[:16]
    return Task(goals=tuple(chosen), id=f"ledger-{digest}", passages=passages)


def _draw_lines(stream: np.random.Generator, config: LedgerConfig) -> tuple[list[str], dict[int, _Record]]:
    """The lines of a ledger in order, and the records that stand after the last one."""
    accounts = [NAMES[int(at)] for at in stream.choice(len(NAMES), size=config.accounts, replace=False)]
    lines: list[str] = []
    standing: dict[int, _Record] = {}
    held = dict.fromkeys(accounts, 0)
    for number in range(1, config.records + 1):
        free = [account for account in accounts if held[account] < MAX_STANDING]
        account = free[int(stream.integers(len(free)))]
        sign = 1 if stream.random() < 2 / 3 else -1
        record = _Record(number, account, sign, int(stream.integers(1, config.highest + 1)))
        standing[number] = record
        held[account] += 1
        lines.append(f"{record.note}.")
        if stream.random() < config.corrections:
            changed = standing[_pick(stream, list(standing))]
            before, shift = changed.amount, int(stream.integers(1, config.highest))
            changed.amount = (before - 1 + shift) % config.highest + 1  # any amount but the one before
            lines.append(f"correction: record {changed.number} is {changed.amount}, not {before}.")
        if stream.random() < config.cancellations:
            gone = standing.pop(_pick(stream, list(standing)))
            held[gone.account] -= 1
            lines.append(f"cancelled: record {gone.number}.")
        if stream.random() < config.memos:
            lines.append(f"{MEMO} {filler_sentences(stream, 1)[0]}")
    return lines, standing


def _draw_goals(stream: np.random.Generator, goals: int, standing: Mapping[int, _Record]) -> list[Goal]:
    """As many different goals as wanted, or all there are; first their kind is drawn, then whom they ask about."""
    of: dict[str, list[_Record]] = {}
    for record in standing.values():
        of.setdefault(record.account, []).append(record)
    balance = {account: sum(record.sign * record.amount for record in records) for account, records in of.items()}
    pairs = list(itertools.permutations(of, 2))
    questions: dict[str, list[tuple[str, int, tuple[str, ...]]]] = {
        "balance": [(f"balance of {a}?", balance[a], (a,)) for a in of],
        "total": [(f"total of {a} and {b}?", balance[a] + balance[b], (a, b)) for a, b in pairs],
        "difference": [(f"{a} minus {b}?", balance[a] - balance[b], (a, b)) for a, b in pairs],
        "larger": [
            (f"larger of {a} and {b}?", max(balance[a], balance[b]), (a, b))
            for a, b in pairs
            if min(balance[a], balance[b]) >= 0
        ],
        "count": [(f"records of {a}?", len(of[a]), (a,)) for a in of],
    }
    left = {kind: [each for each in some if each[1] >= 0] for kind, some in questions.items()}
    chosen: list[Goal] = []
    while len(chosen) < goals and (kinds := [kind for kind, some in left.items() if some]):
        kind = kinds[int(stream.integers(len(kinds)))]
        question, value, asked = left[kind].pop(int(stream.integers(len(left[kind]))))
        if kind in ("total", "larger"):  # the same question the other way round
            left[kind] = [each for each in left[kind] if each[2] != asked[::-1]]
        evidence = tuple(Evidence(account, record.note, "") for account in asked for record in of[account])
        chosen.append(Goal(question, (str(value),), kind, evidence, f"{kind}/{'/'.join(asked)}"))
    return chosen


def _pick(stream: np.random.Generator, numbers: Sequence[int]) -> int:
    return numbers[int(stream.integers(len(numbers)))]
