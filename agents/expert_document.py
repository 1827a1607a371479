"""The scripted expert of ``MemPO-LongDocument-v0``.

Of a drawn document it keeps every fact in the form in which it was read, ``Mira plays chess``, the latest value only;
where the questions are known from the start, those facts that one of them may rest on. It reads facts and questions
themselves, never the gold evidence, so that with questions at the end it cannot know which facts will be asked.

Of a document from files it keeps the extracts around the gold answers, as the expert of ``MemPO-MultiGoal-v0`` does;
so it must know the questions from the start.

Invariants:
    * a note enters a memory only when the shown result states it, or the shown memory holds it;
    * an answer rests on the memory written in the same turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mempo_env.errors import UserError
from mempo_env.records import Goal, Task

from ..envs.closed_world import NUMBER_RELATION
from ..envs.document_world import FACT
from ..envs.long_document import READ
from .base import TurnRequest
from .expert import UNKNOWN
from .notes import SEPARATOR, fact_seen, note_forms, split_memory
from .reading_expert import Note, ReadingExpert, plain_note

_ONE_HOP = re.compile(r"(\w+) (\w+) what\?")
_TWO_HOP = re.compile(r"(\w+) (\w+) someone who (\w+) what\?")
_COMPARISON = re.compile(rf"(\w+) or (\w+) {NUMBER_RELATION} more\?")

_Facts = dict[tuple[str, str], str]
"""(person, relation) to value, the latest last."""


class DocumentExpert(ReadingExpert):
    """Reads to the end, keeps what may be asked, answers from its notes; arguments as ``ScriptedExpert``."""

    tool = READ

    def remember(self, request: TurnRequest) -> list[str]:
        """What the old memory holds and the result states.

        Raises:
            UserError: A document from files, with the questions at its end.
        """
        task, known_questions = request.task, self.knows_questions(request)
        if any(goal.kind == "document" for goal in task.goals):
            if not known_questions:
                raise UserError(
                    "the scripted expert cannot keep a whole document from files: make the environment with "
                    "questions='start', or do without a warm start and ceilings"
                )
            return self._extracts(request)
        facts, others = _read_memory(request.observation["memory"])
        stated = [match.groups() for match in FACT.finditer(self.shown_part(request))]
        for person, relation, value in stated:
            if not known_questions or _may_matter(person, relation, task.goals):
                facts.pop((person, relation), None)  # the latest goes last, whether it is new or not
                facts[person, relation] = value
        notes = [plain_note(f"{person} {relation} {value}") for (person, relation), value in facts.items()]
        return self.flawed(
            request, [*notes, *(Note((other,)) for other in others)], [" ".join(fact) for fact in stated]
        )

    def decide(self, request: TurnRequest, notes: list[str]) -> tuple[str, str]:
        """The next chunk, or the answer."""
        if self.wants_to_read(request):
            return self.read()
        return "answer now", f"<answer>{_answers(request.task, notes)}</answer>"

    def answers(self, task: Task, memory: str) -> str:
        """What follows from the notes, else "unknown"."""
        return _answers(task, split_memory(memory))

    def _extracts(self, request: TurnRequest) -> list[str]:
        shown = split_memory(request.observation["memory"])
        notes, ours = [], set[str]()
        for goal in request.task.goals:
            for evidence in goal.evidence:
                forms = note_forms(evidence, goal)
                ours |= set(forms)
                held = [level for level, form in enumerate(forms) if form in shown]
                if held:
                    notes.append(Note(forms[held[0] :], evidence.query, goal.answers[0]))
                elif fact_seen(evidence, request.observation["tool_result"]):
                    notes.append(Note(forms, evidence.query, goal.answers[0]))
        others = [Note((note,)) for note in shown if note not in ours]
        return self.flawed(request, [*notes, *others], sorted(ours))


def _read_memory(memory: str) -> tuple[_Facts, list[str]]:
    """Facts of a memory, and its other notes."""
    facts: _Facts = {}
    others = []
    for note in split_memory(memory):
        if fact := FACT.fullmatch(note):
            facts[fact[1], fact[2]] = fact[3]
        else:
            others.append(note)
    return facts, others


def _may_matter(person: str, relation: str, goals: Sequence[Goal]) -> bool:
    """Whether a question can rest on such a fact, as far as the questions alone tell."""
    for goal in goals:
        if asked := _TWO_HOP.fullmatch(goal.question):
            # Whoever it is that the first hop leads to may change until the end.
            if (person, relation) == asked.group(1, 2) or relation == asked[3]:
                return True
        elif asked := _COMPARISON.fullmatch(goal.question):
            if person in asked.group(1, 2) and relation == NUMBER_RELATION:
                return True
        elif (asked := _ONE_HOP.fullmatch(goal.question)) and (person, relation) == asked.group(1, 2):
            return True
    return False


def _answers(task: Task, notes: Sequence[str]) -> str:
    facts = _read_memory(SEPARATOR.join(notes))[0]
    return SEPARATOR.join(_answer(goal, facts, notes) for goal in task.goals)


def _answer(goal: Goal, facts: Mapping[tuple[str, str], str], notes: Sequence[str]) -> str:
    if goal.kind == "document":
        known = any(form in notes for evidence in goal.evidence for form in note_forms(evidence, goal))
        return goal.answers[0] if known else UNKNOWN
    if asked := _TWO_HOP.fullmatch(goal.question):
        bridge = facts.get((asked[1], asked[2]), "")
        return facts.get((bridge, asked[3]), UNKNOWN)
    if asked := _COMPARISON.fullmatch(goal.question):
        scores = [facts.get((person, NUMBER_RELATION), "") for person in asked.groups()]
        if not all(score.isdecimal() for score in scores):
            return UNKNOWN
        return asked[1] if int(scores[0]) > int(scores[1]) else asked[2]
    if asked := _ONE_HOP.fullmatch(goal.question):
        return facts.get((asked[1], asked[2]), UNKNOWN)
    return UNKNOWN
