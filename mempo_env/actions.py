"""The action grammar: what one output of the policy means.

An output is any string. Four kinds of block are read from it, left to right, by a two-state scanner: outside a block it
looks for the next opening tag, inside a block only for that block's own closing tag. So a tag inside a memory is just
text of that memory.

Invariants, held by property tests:
    * every string parses, to a ``ToolCall``, an ``Answer`` or a ``FormatError``; nothing raises;
    * the first closed action block (``tool_call`` or ``answer``) decides, and what follows it has no effect, so that
      ``parse(text[:end_of_action]) == parse(text)`` and a sampler may stop there;
    * memory is committed if and only if ``<mem>`` was closed before the action decided; the first closed one counts
      (``memory_block``), here and for the credit that ``mempo_env.segments`` hands out;
    * a ``ToolCall`` holds what JSON can hold (finite numbers) and is nested at most ``MAX_NESTING`` deep, so that
      whoever copies, stores or prints it by recursion cannot fail on it.

Spans are byte offsets into the UTF-8 encoding. All tags are ASCII, so scanning raw bytes and scanning text that was
decoded with ``errors="replace"`` find the same blocks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import Any


class Segment(IntEnum):
    """Which part of an output a token belongs to; a tag belongs to its own segment."""

    OTHER = 0
    MEMORY = 1
    THINK = 2
    TOOL_CALL = 3
    ANSWER = 4


TAGS: dict[Segment, str] = {
    Segment.MEMORY: "mem",
    Segment.THINK: "think",
    Segment.TOOL_CALL: "tool_call",
    Segment.ANSWER: "answer",
}
ACTION_SEGMENTS = (Segment.TOOL_CALL, Segment.ANSWER)


@dataclass(frozen=True)
class TagSet:
    """The tags that outputs are read by; a prompt style may bring a set of its own.

    Attributes:
        segments: Name of each tag, ASCII, with the segment it marks; two tags may mark the same one.
    """

    segments: tuple[tuple[str, Segment], ...]

    @cached_property
    def opening(self) -> re.Pattern[bytes]:
        """Finds the next opening tag: one pass for all, since an absent tag would cost a pass of its own."""
        return re.compile(b"<(" + b"|".join(re.escape(tag.encode()) for tag, _ in self.segments) + b")>")

    @cached_property
    def segment_of(self) -> dict[bytes, Segment]:
        """Segment by the bytes of a tag's name."""
        return {tag.encode(): segment for tag, segment in self.segments}

    @cached_property
    def action_closers(self) -> tuple[str, ...]:
        """Text that can end an action block."""
        return tuple(f"</{tag}>" for tag, segment in self.segments if segment in ACTION_SEGMENTS)

    def tag_of(self, segment: Segment) -> str | None:
        """The first tag of a segment, if there is one."""
        return next((tag for tag, marked in self.segments if marked is segment), None)


OWN_TAGS = TagSet(tuple((tag, segment) for segment, tag in TAGS.items()))
"""The tags of the environment's own grammar."""
_BRACKET = re.compile(r"[][{}]")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # its end is optional: text without one costs linear time too
MAX_NESTING = 32
"""How deep a tool call may nest lists and objects. JSON of a few hundred levels parses, but cannot be stored."""
ACTION_CLOSERS = OWN_TAGS.action_closers
"""Text that can end an action block: a sampler looks for these before it runs the scanner."""


class FormatErrorKind(StrEnum):
    """Why an output was not a usable action. The first five come from the grammar, the others from the environment."""

    NO_ACTION = "no_action"
    UNCLOSED_BLOCK = "unclosed_block"
    BAD_JSON = "bad_json"
    BAD_CALL = "bad_call"
    EMPTY_ANSWER = "empty_answer"
    MISSING_MEMORY = "missing_memory"
    UNKNOWN_TOOL = "unknown_tool"
    BAD_ARGUMENTS = "bad_arguments"
    BUDGET_SPENT = "budget_spent"


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool by name with keyword arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """The final answers, one per goal in the task's order, as the agent wrote them."""

    answers: tuple[str, ...]


@dataclass(frozen=True)
class FormatError:
    """An output that is no usable action: its kind, and a sentence the agent reads in the next observation."""

    kind: FormatErrorKind
    message: str


Action = ToolCall | Answer | FormatError


@dataclass(frozen=True)
class Block:
    """One block of an output, as byte offsets: ``[start, end)`` with its tags, ``[inner_start, inner_end)`` without."""

    segment: Segment
    start: int
    inner_start: int
    inner_end: int
    end: int
    closed: bool


@dataclass(frozen=True)
class ParsedOutput:
    """What an output means: its action, the memory to commit (None: keep the old one) and its thought."""

    action: Action
    memory: str | None
    think: str | None


def scan(data: bytes, tags: TagSet = OWN_TAGS) -> list[Block]:
    """Finds the blocks of an output, up to and including the first closed action block.

    Args:
        data: The output's UTF-8 bytes; invalid sequences are allowed.
        tags: What opens and closes a block.

    Returns:
        Blocks in order, none overlapping; only the last one can be unclosed.
    """
    blocks: list[Block] = []
    position = 0
    while True:
        opening = tags.opening.search(data, position)
        if opening is None:
            return blocks
        start, inner_start, closer = opening.start(), opening.end(), b"</" + opening[1] + b">"
        segment = tags.segment_of[opening[1]]
        inner_end = data.find(closer, inner_start)
        if inner_end < 0:
            blocks.append(Block(segment, start, inner_start, len(data), len(data), closed=False))
            return blocks
        position = inner_end + len(closer)
        blocks.append(Block(segment, start, inner_start, inner_end, position, closed=True))
        if segment in ACTION_SEGMENTS:
            return blocks


def memory_block(blocks: Sequence[Block]) -> Block | None:
    """The block whose text is committed: the first closed ``mem``; None where the old memory stays.

    >>> memory_block(scan(b"<mem>a</mem><mem>b</mem><answer>x</answer>")).end
    12
    """
    return _first_closed(blocks, Segment.MEMORY)


def action_end(data: bytes, tags: TagSet = OWN_TAGS) -> int | None:
    """Returns the byte offset after the first closed action block, or None while there is none.

    >>> action_end(b"<mem></answer></mem><answer>a</answer>tail")
    38
    """
    blocks = scan(data, tags)
    if blocks and blocks[-1].closed and blocks[-1].segment in ACTION_SEGMENTS:
        return blocks[-1].end
    return None


def parse(text: str) -> ParsedOutput:
    r"""Reads an output.

    Args:
        text: Anything.

    Returns:
        The action with the memory and the thought that came before it.

    >>> parse('<mem>a is 1</mem><tool_call>{"name": "search", "arguments": {"queries": ["b"]}}</tool_call>').action
    ToolCall(name='search', arguments={'queries': ['b']})
    >>> parse("<mem>a is 1</mem><answer>1; 2</answer>")
    ParsedOutput(action=Answer(answers=('1', '2')), memory='a is 1', think=None)
    >>> parse("hello").action.kind
    <FormatErrorKind.NO_ACTION: 'no_action'>
    """
    data = encode_text(text)
    blocks = scan(data)
    last = blocks[-1] if blocks else None
    if last is not None and not last.closed:
        tag = TAGS[last.segment]
        action: Action = FormatError(FormatErrorKind.UNCLOSED_BLOCK, f"The {tag} block was never closed.")
    elif last is not None and last.segment is Segment.TOOL_CALL:
        action = _read_tool_call(_inner(data, last))
    elif last is not None and last.segment is Segment.ANSWER:
        action = _read_answer(_inner(data, last))
    else:
        action = FormatError(FormatErrorKind.NO_ACTION, "The output had neither a tool_call block nor an answer block.")
    memory, think = memory_block(blocks), _first_closed(blocks, Segment.THINK)
    return ParsedOutput(
        action,
        None if memory is None else _inner(data, memory).strip(),
        None if think is None else _inner(data, think).strip(),
    )


def encode_text(text: str) -> bytes:
    """UTF-8 bytes of any string; lone surrogates (no tokenizer emits them, but users may) become ``?``."""
    return text.encode("utf-8", errors="replace")


def split_answers(body: str) -> tuple[str, ...]:
    """Splits ``a1; a2; ..`` into answers, in order; empty parts stay, since a place is a goal.

    >>> split_answers(" red ; ;blue")
    ('red', '', 'blue')
    """
    return tuple(part.strip() for part in body.split(";"))


def _first_closed(blocks: Sequence[Block], segment: Segment) -> Block | None:
    for block in blocks:
        if block.segment is segment and block.closed:
            return block
    return None


def _inner(data: bytes, block: Block) -> str:
    return data[block.inner_start : block.inner_end].decode("utf-8", errors="replace")


def _read_answer(body: str) -> Action:
    if not body.strip(" ;\t\r\n"):
        return FormatError(FormatErrorKind.EMPTY_ANSWER, "The answer was empty.")
    return Answer(split_answers(body))


def _read_tool_call(body: str) -> Action:
    try:
        call = _decode(body)
    except ValueError as problem:
        return FormatError(FormatErrorKind.BAD_JSON, f"The tool call {problem}.")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return FormatError(
            FormatErrorKind.BAD_CALL, 'A tool call is one JSON object: {"name": "..", "arguments": {..}}.'
        )
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):  # some models write the arguments as a JSON string
        try:
            arguments = _decode(arguments)
        except ValueError as problem:
            return FormatError(
                FormatErrorKind.BAD_JSON, f"The tool call's arguments {problem}.".replace(" was ", " were ")
            )
    if not isinstance(arguments, dict):
        return FormatError(FormatErrorKind.BAD_CALL, "The tool call's arguments must be a JSON object.")
    return ToolCall(call["name"], arguments)


def _decode(text: str) -> Any:
    """Reads JSON.

    Raises:
        ValueError: It is none, or nested too deeply; the message completes a sentence.
    """
    # Told from the text: how deep the parser itself can go depends on how deep the stack is when it is called.
    if text.count("[") + text.count("{") > MAX_NESTING and _nesting(text) > MAX_NESTING:
        raise ValueError(f"was nested more than {MAX_NESTING} deep")
    try:
        return _JSON.decode(text)
    except ValueError:
        raise ValueError("was not valid JSON") from None


def _nesting(text: str) -> int:
    """Deepest nesting of brackets outside strings, or the first depth beyond ``MAX_NESTING``."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
        if deepest > MAX_NESTING:
            break
    return deepest


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):  # "1e999" is JSON, but what it would be read as is none
        raise ValueError(f"{literal} is too large")
    return number


_JSON = json.JSONDecoder(parse_constant=_reject_constant, parse_float=_finite)
