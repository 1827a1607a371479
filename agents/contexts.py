"""Context strategies: what the model sees at turn t.

A strategy decides what is shown; how that is worded is the prompt style's matter. ``docs/contexts.md`` shows each of
them at one turn of one episode.

Invariant: a strategy is a pure function of a ``TurnRequest``, style included; it keeps nothing between calls.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Protocol

from mempo_env.actions import ACTION_SEGMENTS, encode_text, scan
from mempo_env.errors import UserError
from mempo_env.plugins import Registry
from mempo_env.prompt_styles import PromptStyle
from mempo_env.prompts import MemoryMode, render_observation
from mempo_env.records import Turn

from .base import TurnRequest

Message = dict[str, str]
"""A chat message: ``role`` and ``content``."""


class ContextStrategy(Protocol):
    """Turns a request into chat messages.

    One that cannot do without a memory says so with a class attribute ``needs_memory = True``.
    """

    name: str

    def messages(self, request: TurnRequest) -> list[Message]:
        """The chat the model is given; the last message is the user's."""
        ...


class MemoryContext:
    """MemPO's: instructions, task, the memory just written, the last tool result, the budget. Nothing else."""

    name = "memory"
    needs_memory = True

    def messages(self, request: TurnRequest) -> list[Message]:
        """System and user message of this turn alone."""
        return [
            {"role": "system", "content": request.instructions},
            {"role": "user", "content": render_observation(request.observation, style=request.style)},
        ]


class WindowContext:
    """The last k turns in full: observation and output; what lies before them is dropped.

    Earlier user messages are shown without the memory field: the outputs that wrote it are there.

    Args:
        turns: How many turns of the past are shown, at least one.

    Raises:
        UserError: It is less than one.
    """

    needs_memory = False

    def __init__(self, turns: int) -> None:
        if turns < 1:
            raise UserError(f"window-{turns} shows no turn of the past; use window-1 or more, or memory")
        self.turns = turns
        self.name = f"window-{turns}"

    def messages(self, request: TurnRequest) -> list[Message]:
        """System message, the last turns, then the current observation; the task stands in the first one shown."""
        return _dialogue(request, request.history[-self.turns :])


class HistoryContext:
    """ReAct's (arXiv 2210.03629): every earlier observation and output stays in the chat.

    Earlier user messages are shown as they were, without the memory field: the outputs that wrote it are there.
    """

    name = "history"
    needs_memory = False

    def messages(self, request: TurnRequest) -> list[Message]:
        """System message, then all turns so far, then the current observation without the task, which came first."""
        return _dialogue(request, request.history)


class Mem1Context:
    """MEM1's (arXiv 2506.15841): the task, then the last internal state, the query it asked, and what that found.

    The internal state is the memory that the environment stored, cut where it was too long. Under the prompt style
    ``mem1`` it stands in MEM1's tags; under the project's own in ``<mem>``.
    """

    name = "mem1"
    needs_memory = True

    def messages(self, request: TurnRequest) -> list[Message]:
        """System message, task, state and query as the assistant's own words, then the information."""
        chat = [{"role": "system", "content": request.instructions}]
        memory = request.observation["memory"]
        state = f"<mem>{memory}</mem>" if memory else ""
        said = request.style.write(state + (_last_action(request.history[-1]) if request.history else ""))
        shown = render_observation(request.observation, task=not said, memory=False, style=request.style)
        if said:
            only_task = dict.fromkeys(request.observation, "") | {"task": request.observation["task"]}
            chat.append({"role": "user", "content": render_observation(only_task, style=request.style)})
            chat.append({"role": "assistant", "content": said})
        return [*chat, {"role": "user", "content": shown}]


CONTEXTS: Registry[Callable[..., ContextStrategy]] = Registry("context strategy", "mempo_env.contexts")
CONTEXTS.register("memory", "mempo_env.agents.contexts:MemoryContext")
CONTEXTS.register("history", "mempo_env.agents.contexts:HistoryContext")
CONTEXTS.register("window", "mempo_env.agents.contexts:WindowContext")
CONTEXTS.register("mem1", "mempo_env.agents.contexts:Mem1Context")
CONTEXTS.register("retrieved", "mempo_env.agents.retrieved:RetrievedContext")


def get_context(name: str) -> ContextStrategy:
    """Looks a context strategy up.

    Args:
        name: A registered name or ``package.module:Class``. Where the class takes a number, such as the turns of a
            window, it follows after a hyphen: ``window-3``.

    Returns:
        The strategy.

    Raises:
        UserError: The name is unknown, the number is missing, out of place or out of range, or what the name stands for
            is no context strategy.
    """
    numbered = re.fullmatch(r"(.+)-(\d+)", name)
    plain, number = (numbered[1], int(numbered[2])) if numbered and name not in CONTEXTS.names() else (name, None)
    cls = CONTEXTS.get(plain)
    if not (isinstance(cls, type) and callable(getattr(cls, "messages", None))):
        raise UserError(f"context strategy '{name}' must be a class with a method messages(request), not {cls!r}")
    anything = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # what a protocol's heirs have
    parameters = [each for each in inspect.signature(cls).parameters.values() if each.kind not in anything]
    if number is not None and not parameters:
        raise UserError(f"context strategy '{plain}' takes no number; write --context {plain}")
    if number is None and any(parameter.default is parameter.empty for parameter in parameters):
        raise UserError(f"context strategy '{plain}' needs a number: write --context {plain}-3, for example")
    strategy: ContextStrategy = cls() if number is None else cls(number)
    return strategy


def memory_mode(context: str | ContextStrategy, asked: MemoryMode = "required") -> MemoryMode:
    """The memory mode of an environment in which a context strategy is used.

    Args:
        context: The strategy or its name.
        asked: The mode that was asked for.

    Returns:
        ``optional`` instead of ``required`` where the strategy shows the past in another way.

    Raises:
        UserError: The name is unknown.
    """
    strategy = get_context(context) if isinstance(context, str) else context
    return "optional" if asked == "required" and not getattr(strategy, "needs_memory", False) else asked


def fold_system(messages: list[Message]) -> list[Message]:
    """The same chat without a system message: its text begins the first user message."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def _dialogue(request: TurnRequest, past: tuple[Turn, ...]) -> list[Message]:
    """System message, past turns as they were, and the current observation; the first user message has the task."""
    style, chat = request.style, [{"role": "system", "content": request.instructions}]
    for index, turn in enumerate(past):
        shown = render_observation(turn.observation, task=index == 0, memory=False, style=style)
        chat.append({"role": "user", "content": shown})
        chat.append({"role": "assistant", "content": said_in(turn, style)})
    shown = render_observation(request.observation, task=not past, memory=False, style=style)
    return [*chat, {"role": "user", "content": shown}]


def said_in(turn: Turn, style: PromptStyle) -> str:
    """The output of a turn in a prompt style: as it was sampled where it was sampled in one, else written in it."""
    raw = turn.info.get("raw_text")
    return str(raw) if style.translates and raw is not None else style.write(turn.text)


def _last_action(turn: Turn) -> str:
    """The first closed action block of a turn's output, tags included; empty if there is none."""
    data = encode_text(turn.text)
    blocks = [block for block in scan(data) if block.closed and block.segment in ACTION_SEGMENTS]
    return data[blocks[0].start : blocks[0].end].decode("utf-8", errors="replace") if blocks else ""
