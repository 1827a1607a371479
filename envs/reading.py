"""What environments share in which a text is read part by part, and no part can be read again.

The parts are the task's ``passages``, in order; a tool without arguments hands out the next one. Questions are known
from the start, or come with the last part.

Invariants:
    * reading never uses up what a named budget allows beside it: the calls that a task needs stand on top
      (``fitted_budget``), and the budget's name says so;
    * what was read comes back in no observation: a part is shown once, in the result of its call. The questions alone
      are shown again, to whoever reads past the end. How far the text was read is the environment's state, as the
      calls that are left are; the agent carries nothing but its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from mempo_env.budgets import Budget, get_budget
from mempo_env.env import MemoryEnv
from mempo_env.errors import UserError, unknown_name
from mempo_env.records import Task
from mempo_env.spaces import SAMPLE_OUTPUTS, Unicode
from mempo_env.tokens import TokenCounter
from mempo_env.tools import ToolArgumentError, ToolSpec

Questions = Literal["end", "start"]
QUESTIONS_HEAD = "\nQuestions:"
PAST_END = "nothing is left to read."
NOTE_SEPARATOR = "; "


class PartReader:
    """The tool that hands out one part after another.

    Args:
        name: How the agent calls it.
        unit: What a part is called in results, such as ``chunk``.
        description: For the agent.
    """

    def __init__(self, name: str, unit: str, description: str) -> None:
        self.spec = ToolSpec(name, description, {"type": "object", "properties": {}, "additionalProperties": False})
        self.unit = unit
        self._parts: tuple[str, ...] = ()
        self._closing = ""
        self._position = 0

    def start(self, parts: Sequence[str], closing: str) -> None:
        """Begins a text.

        Args:
            parts: Its parts.
            closing: What follows the last one, and what a call past the end is answered with again.
        """
        self._parts, self._closing, self._position = tuple(parts), closing, 0

    def call(self, arguments: dict[str, Any]) -> str:
        """Reads on.

        Args:
            arguments: None.

        Returns:
            ``UNIT i of n: part``, and the closing after the last one.

        Raises:
            ToolArgumentError: An argument was given.
        """
        if arguments:
            raise ToolArgumentError(f"{self.spec.name} takes no arguments.")
        if self._position >= len(self._parts):
            return PAST_END + self._closing
        part = self._parts[self._position]
        self._position += 1
        last = self._position == len(self._parts)
        return f"{self.unit} {self._position} of {len(self._parts)}: {part}{self._closing if last else ''}"


class ReadingEnv(MemoryEnv):
    """Base of the environments that read; a subclass calls ``_set_up_reading`` once it is constructed."""

    stateful: ClassVar[bool] = True
    """What the tool shows depends on how often it was called."""

    def _set_up_reading(self, reader: PartReader, parts: int, questions: str, task_text: str) -> None:
        """Sets the reading up.

        Args:
            reader: The tool.
            parts: Most parts of a task.
            questions: ``end`` or ``start``.
            task_text: The task's text where the questions come at the end.

        Raises:
            UserError: The questions are neither here nor there.
        """
        if questions not in get_args(Questions):
            raise unknown_name("place of the questions", questions, get_args(Questions))
        self.questions = questions
        self.max_parts = parts
        self._reader = reader
        self._text_without_questions = task_text
        calls = [f"<mem>a note</mem>{call_block(reader.spec.name)}", call_block(reader.spec.name)]
        self.action_space = Unicode(samples=(*SAMPLE_OUTPUTS, *calls))

    def task_text(self, task: Task) -> str:
        """The questions, or what is to be done until they come."""
        return task.text if self.questions == "start" else self._text_without_questions

    def prepare(self, task: Task) -> None:
        """Opens the text at its beginning.

        Raises:
            UserError: The task has nothing to read, or more than the budget was fitted to.
        """
        if not task.passages:
            raise UserError("this task has nothing to read: give Task.passages, one passage a part, in order")
        if len(task.passages) > self.max_parts:
            raise UserError(
                f"this task has {len(task.passages)} parts to read, but the budget is fitted to {self.max_parts}; make "
                "the environment for longer texts"
            )
        closing = f"{QUESTIONS_HEAD} {task.text}" if self.questions == "end" else ""
        self._reader.start([passage.text for passage in task.passages], closing)

    @property
    def vocabulary(self) -> Sequence[str]:
        """Words of results, messages and counts that all reading shares."""
        words = f"{self._reader.unit} of {PAST_END.rstrip('.')} takes no arguments read"
        counts = map(str, range(max(self.max_parts, self.budget.max_turns) + 1))
        return list(dict.fromkeys([*words.split(), *counts]))

    @property
    def phrases(self) -> Sequence[str]:
        """The call of the reading tool, the head of the questions, and the task's text without them."""
        return (call_json(self._reader.spec.name), QUESTIONS_HEAD, f" {self._text_without_questions}")


def call_json(tool: str) -> str:
    """A call without arguments, as a model is shown to write it.

    >>> call_json("read")
    '{"name": "read", "arguments": {}}'
    """
    return f'{{"name": "{tool}", "arguments": {{}}}}'


def call_block(tool: str) -> str:
    """The same as an action block."""
    return f"<tool_call>{call_json(tool)}</tool_call>"


def fitted_budget(budget: str | Budget | Mapping[str, str | int], needed: int) -> Budget:
    """A budget in which what a task cannot do without stands on top.

    Args:
        budget: What may be spent beside: a name, a budget, or changes to a named one (``get_budget``).
        needed: Calls that every task of the environment can be finished with.

    Returns:
        ``needed`` more calls and turns, called ``NAME+NEEDED``.

    >>> fitted_budget("brief", 8)
    Budget(name='brief+8', max_tool_calls=13, max_turns=16, queries_per_call=5, memory_tokens=256)
    """
    base = get_budget(budget)
    calls, turns = base.max_tool_calls + needed, base.max_turns + needed
    return replace(base, name=f"{base.name}+{needed}", max_tool_calls=calls, max_turns=turns)


def size_range(name: str, value: object, least: int, most: int) -> tuple[int, int]:
    """The two ends of a size that is given as a number or as a range.

    Args:
        name: For messages.
        value: A whole number, or two, lowest first.
        least: Lowest allowed.
        most: Highest allowed.

    Returns:
        Both ends.

    Raises:
        UserError: It is neither, or leaves the bounds.

    >>> size_range("chunks", [4, 8], 4, 400)
    (4, 8)
    """
    given = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    ends = [int(end) for end in given if isinstance(end, int | np.integer) and not isinstance(end, bool)]
    if len(given) != 2 or len(ends) != 2 or not least <= ends[0] <= ends[1] <= most:
        raise UserError(f"{name} must be a whole number from {least} to {most}, or two, lowest first, not {value!r}")
    return ends[0], ends[1]


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Refuses what is no whole number within bounds.

    Raises:
        UserError: The value is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise UserError(f"{name} must be a whole number from {least} to {most}, not {value!r}")


def check_probability(name: str, value: object) -> None:
    """Refuses what is no number from 0 to 1.

    Raises:
        UserError: The value is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{name}={value!r} is a probability: choose a number from 0 to 1")


def check_memory_room(notes: str, budget: Budget, counter: TokenCounter, mend: str) -> None:
    """Refuses settings under which what must be kept may not fit into the memory.

    Args:
        notes: The longest memory that a task may need.
        budget: Its cap counts.
        counter: The environment's.
        mend: What to do about it.

    Raises:
        UserError: It does not fit.
    """
    if (tokens := counter.count(notes)) > budget.memory_tokens:
        raise UserError(
            f"what such a task asks to keep may take {tokens} tokens ({counter.name}), but the memory holds "
            f"{budget.memory_tokens}; {mend}"
        )
