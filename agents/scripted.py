"""Agents without a model: random text, and a person at a terminal.

Invariant: the random agent is a function of the request's slot; the person's agent does no input or output of its own,
it calls what it was given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mempo_env.actions import TAGS, action_end, encode_text
from mempo_env.budgets import Budget, get_budget
from mempo_env.prompts import render_observation
from mempo_env.tools import ToolSpec, escape_tags

from .base import TurnRequest
from .contexts import ContextStrategy
from .textual import TextAgent, Tokens, slot_rng

_ALPHABET = "abcXYZ019 .;:<>/{}[]\"'\\\n\té文\u202e\x00😀"
_FRAGMENTS = (
    *(f"<{tag}>" for tag in TAGS.values()),
    *(f"</{tag}>" for tag in TAGS.values()),
    "<mem",
    "</answer",
    '{"name": "search", "arguments": ',
    '{"queries": [',
    "}}",
    "<|im_end|>",
)


class RandomTextAgent(TextAgent):
    """Plays at random: characters, broken tags, valid calls and answers in equal shares.

    Args:
        budget: Bounds the queries of a valid call.
        tokens: Prices inputs and outputs.
        context: What a policy in its place would be shown.
    """

    def __init__(
        self, budget: str | Budget = "brief", *, tokens: Tokens | None = None, context: ContextStrategy | None = None
    ) -> None:
        super().__init__("random", tokens, context)
        self.budget = get_budget(budget)

    def write(self, request: TurnRequest) -> str:
        """One of four kinds of output, drawn by the slot."""
        rng = slot_rng(request.key, "random text")
        kinds = (self._characters, self._broken, self._call, self._answer)
        return kinds[int(rng.integers(len(kinds)))](rng, request)

    def _characters(self, rng: np.random.Generator, request: TurnRequest) -> str:  # noqa: ARG002
        return "".join(_ALPHABET[i] for i in rng.integers(len(_ALPHABET), size=int(rng.integers(80))))

    def _broken(self, rng: np.random.Generator, request: TurnRequest) -> str:
        parts = [_FRAGMENTS[i] for i in rng.integers(len(_FRAGMENTS), size=int(rng.integers(1, 8)))]
        return "".join(part + self._words(rng, request, int(rng.integers(3))) for part in parts)

    def _call(self, rng: np.random.Generator, request: TurnRequest) -> str:
        n = int(rng.integers(1, self.budget.queries_per_call + 1))
        queries = [self._words(rng, request, int(rng.integers(1, 4))) for _ in range(n)]
        return _output(self._words(rng, request, 6), _tool_call("search", {"queries": queries}))

    def _answer(self, rng: np.random.Generator, request: TurnRequest) -> str:
        n_goals = len(request.task.goals)
        answers = [self._words(rng, request, 1).strip(";?") or "a" for _ in range(n_goals)]
        return _output(self._words(rng, request, 6), f"<answer>{'; '.join(answers)}</answer>")

    @staticmethod
    def _words(rng: np.random.Generator, request: TurnRequest, count: int) -> str:
        """Words that stand in the observation, so that some queries find and some answers hit."""
        seen = escape_tags(f"{request.observation['task']} {request.observation['tool_result']}").split() or ["a"]
        return " ".join(seen[i] for i in rng.integers(len(seen), size=count))


_HELP = """One turn is an optional memory, an optional thought and one action. Write the protocol itself, or:
  mem: TEXT       replace the memory (if you write none, it stays as it is)
  note: TEXT      add to the memory
  think: TEXT     think
{tools}  answer: A; B    answer all questions, in order      (ends the turn)
An empty line ends a turn that is written in tags. help: this text. quit: leave."""
_COMMANDS = ("mem", "note", "think", "answer", "help", "quit", "exit")
_SHORTEST = 3  # letters of a tool's name that may stand for it, if no other tool begins with them


class PersonLeft(Exception):  # noqa: N818  (leaving is no error)
    """The person ended the game."""


class PersonAgent(TextAgent):
    """Lets a person play: shows the observation, reads lines until they make a turn.

    Args:
        read: Gives the next line for a prompt, as ``input`` does; raises ``EOFError`` at the end.
        write: Shows a text to the person.
        tools: What may be called; each tool's name, or its first letters, is a command.
        tokens: Prices inputs and outputs.
        context: What a policy in the person's place would be shown.
    """

    def __init__(
        self,
        read: Callable[[str], str],
        write: Callable[[str], None],
        tools: Sequence[ToolSpec] = (),
        *,
        tokens: Tokens | None = None,
        context: ContextStrategy | None = None,
    ) -> None:
        super().__init__("person", tokens, context)
        self._read = read
        self._show = write
        self._tools = tuple(tools)
        self.help = _HELP.format(tools="".join(f"  {_usage(spec)}\n" for spec in self._tools))

    def write(self, request: TurnRequest) -> str:
        """One turn of the person.

        Raises:
            PersonLeft: The person typed ``quit`` or closed the input.
        """
        self._show(render_observation(request.observation))
        if not request.history:
            self._show(self.help)
        memory, think, raw = request.observation["memory"], "", ""
        while True:
            try:
                line = self._read("> ")
            except EOFError:
                raise PersonLeft from None
            command, _, rest = line.partition(":")
            command, rest = command.strip().lower(), escape_tags(rest.strip())
            if raw or line.lstrip().startswith("<"):
                if not line.strip():
                    return raw
                raw = f"{raw}\n{line}" if raw else line
                if action_end(encode_text(raw)) is not None:
                    return raw
            elif command in ("quit", "exit"):
                raise PersonLeft
            elif command == "mem":
                memory = rest
            elif command == "note":
                memory = f"{memory}; {rest}" if memory else rest
            elif command == "think":
                think = rest
            elif command == "answer":
                return _output(memory, f"<answer>{rest}</answer>", think)
            elif spec := self._tool(command):
                try:
                    return _output(memory, _tool_call(spec.name, read_arguments(spec, rest)), think)
                except ValueError as error:
                    self._show(str(error))
            elif command == "help" or line.strip():
                self._show(self.help)

    def _tool(self, command: str) -> ToolSpec | None:
        if command in _COMMANDS:
            return None
        same = [spec for spec in self._tools if spec.name.lower() == command]
        near = [spec for spec in self._tools if len(command) >= _SHORTEST and spec.name.lower().startswith(command)]
        return (same or near)[0] if len(same or near) == 1 else None


def read_arguments(spec: ToolSpec, text: str) -> dict[str, Any]:
    """The arguments of a call as a person types them.

    Args:
        spec: The tool. One that takes a single argument takes it as it is typed, several values of a list with ``|``
            between them; any other takes a JSON object.
        text: What was typed.

    Returns:
        The arguments.

    Raises:
        ValueError: The text cannot be read; the message says what to type.
    """
    properties = spec.parameters.get("properties", {})
    if len(properties) != 1 or text.startswith("{"):
        try:
            arguments = json.loads(text or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise ValueError(f"{spec.name} takes a JSON object: {_usage(spec)}")
        return arguments
    name, schema = next(iter(properties.items()))
    if schema.get("type") == "array":
        items = schema.get("items", {})
        return {name: [_value(items, part.strip()) for part in text.split("|") if part.strip()]}
    return {name: _value(schema, text)}


def _value(schema: dict[str, Any], text: str) -> Any:
    if schema.get("type") in ("integer", "number", "boolean"):
        try:
            return json.loads(text)
        except ValueError:
            return text  # the tool says what is wrong with it
    return text


def _usage(spec: ToolSpec) -> str:
    """One line of the help: how a person calls a tool."""
    properties = spec.parameters.get("properties", {})
    if len(properties) == 1:
        many = next(iter(properties.values())).get("type") == "array"
        name = next(iter(properties)).upper()
        form = f"{spec.name}: {f'{name} | {name}' if many else name}"
    else:
        form = (
            f"{spec.name}: {{{', '.join(f'{json.dumps(name)}: ..' for name in properties)}}}"
            if properties
            else spec.name
        )
    return f"{form:15} {spec.description.split('.')[0]:35} (ends the turn)"


def _tool_call(name: str, arguments: dict[str, object]) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}</tool_call>"


def _output(memory: str, action: str, think: str = "") -> str:
    return f"<mem>{memory}</mem>{f'<think>{think}</think>' if think else ''}{action}"
