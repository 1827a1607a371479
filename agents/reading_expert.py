"""What the experts that read a text part by part share: when to read on, and the flaws of their notes.

Invariant: they tell from the shown result alone whether anything is left to read; what they cannot tell so (after a
format error, say) they find out by reading on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from mempo_env.tools import escape_tags

from ..envs.reading import PAST_END, QUESTIONS_HEAD, call_block
from .base import TurnRequest
from .expert import UNKNOWN
from .notes import fit_notes, garble, irrelevant_sentences
from .scripted_expert import ScriptedExpert
from .textual import slot_rng

_POSITION = re.compile(r"\A\w+ (\d+) of (\d+): ")


class Note(NamedTuple):
    """A note: its forms, longest first, what it is about, and its value, which a garbled note has wrong."""

    forms: tuple[str, ...]
    about: str = ""
    value: str = ""


def plain_note(text: str) -> Note:
    """A note of one form whose last word is the value."""
    about, _, value = text.rpartition(" ")
    return Note((text,), about, "" if value == UNKNOWN else value)


class ReadingExpert(ScriptedExpert):
    """Base of those experts. Its arguments are those of ``ScriptedExpert``."""

    tool = ""
    """What reads on."""

    def wants_to_read(self, request: TurnRequest) -> bool:
        """Whether something may be left to read, and a call to read it with."""
        result = request.observation["tool_result"]
        if result.startswith(PAST_END):
            return False
        shown = _POSITION.match(result)
        return not (shown and shown[1] == shown[2]) and self.may_call(request)

    def knows_questions(self, request: TurnRequest) -> bool:
        """Whether the task shows the questions already."""
        return request.observation["task"] == escape_tags(request.task.text)

    def shown_part(self, request: TurnRequest) -> str:
        """The part that the result shows, without its number and the questions after it; empty if it shows none."""
        result = request.observation["tool_result"]
        if not (shown := _POSITION.match(result)):
            return ""
        part = result[shown.end() :]
        return part if self.knows_questions(request) else part.rpartition(QUESTIONS_HEAD)[0] or part

    def may_call(self, request: TurnRequest) -> bool:
        """Whether the budget has a call left, and a turn for the answer after it."""
        spent = int(str(request.history[-1].info.get("tool_calls", 0))) if request.history else 0
        return spent < self.budget.max_tool_calls and len(request.history) < self.budget.max_turns - 1

    def read(self) -> tuple[str, str]:
        """Plan and action of a turn that reads on."""
        return "read", call_block(self.tool)

    def flawed(self, request: TurnRequest, notes: Sequence[Note], facts: Sequence[str]) -> list[str]:
        """Notes as this expert's flaws leave them, cut to the memory.

        Args:
            request: The turn; the noise is keyed by it.
            notes: What a perfect expert would write.
            facts: What no sentence of bloat holds.

        Returns:
            The notes that are written.
        """
        rng, flaws = slot_rng(request.key, "flaws"), self.flaws
        memory, result = request.observation["memory"], request.observation["tool_result"]
        kept: list[tuple[str, ...]] = []
        for note in notes:
            if rng.random() < flaws.forget:
                continue
            forms = note.forms
            if note.value and rng.random() < flaws.garble:
                forms = garble(forms, note.about, note.value, f"{result}\n{memory}", rng)
            kept.append(forms)
        if rng.random() < flaws.bloat:
            sentences = irrelevant_sentences(self.shown_part(request), (), facts)
            if sentences:
                kept.append((sentences[int(rng.integers(len(sentences)))],))
        return fit_notes(kept, self.memory_counter, self.budget.memory_tokens)
