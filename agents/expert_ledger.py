"""The scripted expert of ``MemPO-Ledger-v0``.

While it reads it keeps every record that stands, as it was read, ``5 Ada gains 14`` (of the accounts asked about alone,
where the questions are known). When it has read all it writes down in their place what is to be computed for each
question, ``q1 = 14 + 20``, has the calculator compute one expression a turn, and answers when each is a number. It
reads lines and questions themselves, never the gold evidence.

Invariants:
    * a note enters a memory only when the shown result states it, or when it follows from the shown memory and result;
    * every sum in an answer is the calculator's, copied from its result; nothing is added up but what is counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mempo_env.errors import UserError
from mempo_env.records import Task

from ..envs.closed_world import NAMES
from ..envs.ledger import CALCULATION_HEAD, CALCULATION_TAIL, NEXT_RECORDS
from ..envs.ledger_world import BALANCE, COUNT, DIFFERENCE, GAINS, LARGER, LINE, RECORD, TOTAL
from .base import TurnRequest
from .expert import UNKNOWN
from .notes import SEPARATOR, split_memory
from .reading_expert import Note, ReadingExpert, plain_note

_SUM = re.compile(r"q(\d+) = (.+)")
_CALCULATED = re.compile(r"\s*([^=]+?) = (-?\d+)")
_WHOLE = re.compile(r"-?\d+")
_OPEN = re.compile(r"\d+(?: [+-] \d+)+")
_NAMES = frozenset(NAMES)


class Entry(NamedTuple):
    """A record that stands."""

    account: str
    verb: str
    amount: int


class _Memory(NamedTuple):
    """What a memory holds: records by number, what is to be computed by question, and other notes."""

    records: dict[int, Entry]
    sums: dict[int, str]
    others: list[str]


class LedgerExpert(ReadingExpert):
    """Reads to the end, keeps the records that stand, computes, answers; arguments as ``ScriptedExpert``."""

    tool = NEXT_RECORDS

    def remember(self, request: TurnRequest) -> list[str]:
        """Records while there is something to read, then what is to be computed, as far as it is computed."""
        task, result = request.task, request.observation["tool_result"]
        records, sums, others = _read(split_memory(request.observation["memory"]))
        facts: list[str] = []
        if sums:
            if done := _CALCULATED.fullmatch(result):
                sums = {question: _insert(text, done[1], done[2]) for question, text in sums.items()}
        else:
            asked = set(re.findall(r"\w+", task.text)) if self.knows_questions(request) else _NAMES
            records, facts = _apply(records, self.shown_part(request), asked)
            if not self.wants_to_read(request):
                sums = {at: to_compute(goal.question, records) for at, goal in enumerate(task.goals, start=1)}
        if sums:
            notes = [plain_note(f"q{question} = {text}") for question, text in sums.items()]
        else:
            notes = [plain_note(f"{number} {' '.join(map(str, entry))}") for number, entry in records.items()]
        return self.flawed(request, [*notes, *(Note((other,)) for other in others)], facts)

    def decide(self, request: TurnRequest, notes: list[str]) -> tuple[str, str]:
        """The next batch, a calculation, or the answer."""
        sums = _read(notes).sums
        if not sums and self.wants_to_read(request):
            return self.read()
        for text in sums.values():
            for part in text.split(", "):
                if _OPEN.fullmatch(part) and self.may_call(request):
                    call = f"{CALCULATION_HEAD}{json.dumps(part)[1:-1]}{CALCULATION_TAIL}"
                    return "compute", f"<tool_call>{call}</tool_call>"
        return "answer now", f"<answer>{self.answers(request.task, SEPARATOR.join(notes))}</answer>"

    def answers(self, task: Task, memory: str) -> str:
        """The sums that the memory holds, or that need no calculator, else "unknown"."""
        records, sums, _ = _read(split_memory(memory))
        found = []
        for at, goal in enumerate(task.goals, start=1):
            text = sums.get(at, UNKNOWN) if sums else to_compute(goal.question, records)
            found.append(text if _WHOLE.fullmatch(text) else UNKNOWN)
        return SEPARATOR.join(found)


def to_compute(question: str, records: Mapping[int, Entry]) -> str:
    """What is to be computed for a question: a number, an expression, or two of either for the larger one.

    Args:
        question: As the environment asks it.
        records: Those that stand.

    Returns:
        The text, or ``"unknown"`` where an account has no record.

    Raises:
        UserError: It is no question of a ledger.

    >>> records = {1: Entry("Ada", "gains", 14), 2: Entry("Ada", "loses", 5), 3: Entry("Ida", "loses", 2)}
    >>> to_compute("Ada minus Ida?", records), to_compute("balance of Ida?", records)
    ('14 + 2 - 5', '0 - 2')
    """
    for pattern in (BALANCE, TOTAL, DIFFERENCE, LARGER, COUNT):
        if asked := pattern.fullmatch(question):
            break
    else:
        raise UserError(f"the scripted expert knows no question of the form '{question}'")
    terms = [_terms(account, records) for account in asked.groups()]
    if not all(terms):
        return UNKNOWN
    if pattern is COUNT:
        return str(len(terms[0]))
    if pattern is LARGER:
        return _larger(f"{_expression(terms[0])}, {_expression(terms[1])}")
    if pattern is DIFFERENCE:
        return _expression([*terms[0], *(-term for term in terms[1])])
    return _expression([term for some in terms for term in some])


def _terms(account: str, records: Mapping[int, Entry]) -> list[int]:
    return [
        entry.amount if entry.verb == GAINS else -entry.amount for entry in records.values() if entry.account == account
    ]


def _expression(terms: Sequence[int]) -> str:
    """What is added first, then what is taken away."""
    plus, minus = [str(term) for term in terms if term >= 0], [str(-term) for term in terms if term < 0]
    return " - ".join([" + ".join(plus) or "0", *minus])


def _insert(text: str, expression: str, value: str) -> str:
    """Puts a result in the place of its expression."""
    return _larger(", ".join(value if part == expression else part for part in text.split(", ")))


def _larger(text: str) -> str:
    """Of several numbers the largest; anything else as it is."""
    parts = text.split(", ")
    return max(parts, key=int) if all(_WHOLE.fullmatch(part) for part in parts) else text


def _read(notes: Sequence[str]) -> _Memory:
    memory = _Memory({}, {}, [])
    for note in notes:
        if record := RECORD.fullmatch(note):
            memory.records[int(record[1])] = Entry(record[2], record[3], int(record[4]))
        elif to_do := _SUM.fullmatch(note):
            memory.sums[int(to_do[1])] = to_do[2]
        else:
            memory.others.append(note)
    return memory


def _apply(
    records: dict[int, Entry], text: str, asked: frozenset[str] | set[str]
) -> tuple[dict[int, Entry], list[str]]:
    """Records after the lines of a batch, and the lines themselves without their full stop."""
    records, facts = dict(records), []
    for line in LINE.finditer(text):
        facts.append(line[0].rstrip("."))
        if line[1]:
            if line[2] in asked:
                records[int(line[1])] = Entry(line[2], line[3], int(line[4]))
        elif line[5]:
            if (old := records.get(int(line[5]))) is not None:
                records[int(line[5])] = old._replace(amount=int(line[6]))
        else:
            records.pop(int(line[7]), None)
    return records, facts
