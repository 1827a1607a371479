"""Context strategies: what the model sees at turn t.

Invariant: a strategy is a pure function of a ``TurnRequest``; policy and strategy are independent of each other.
"""

from __future__ import annotations

from typing import Protocol

from mempo_env.errors import unknown_name
from mempo_env.prompts import render_observation

from .base import TurnRequest

Message = dict[str, str]
"""A chat message: ``role`` and ``content``."""


class ContextStrategy(Protocol):
    """Turns a request into chat messages."""

    name: str

    def messages(self, request: TurnRequest) -> list[Message]:
        """The chat the model is given; the last message is the user's."""
        ...


class MemoryContext:
    """MemPO's: instructions, task, the memory just written, the last tool result, the budget. Nothing else."""

    name = "memory"

    def messages(self, request: TurnRequest) -> list[Message]:
        """System and user message of this turn alone."""
        return [
            {"role": "system", "content": request.instructions},
            {"role": "user", "content": render_observation(request.observation)},
        ]


class HistoryContext:
    """ReAct's (arXiv 2210.03629): every earlier observation and output stays in the chat.

    Earlier user messages are shown as they were, without the memory field: the outputs that wrote it are there.
    """

    name = "history"

    def messages(self, request: TurnRequest) -> list[Message]:
        """System message, then all turns so far, then the current observation without the task, which came first."""
        chat = [{"role": "system", "content": request.instructions}]
        for index, turn in enumerate(request.history):
            chat.append({"role": "user", "content": self._user(turn.observation, index)})
            chat.append({"role": "assistant", "content": turn.text})
        chat.append({"role": "user", "content": self._user(request.observation, len(request.history))})
        return chat

    @staticmethod
    def _user(observation: dict[str, str], index: int) -> str:
        return render_observation(observation, task=index == 0, memory=False)


CONTEXTS: dict[str, type[MemoryContext] | type[HistoryContext]] = {
    context.name: context for context in (MemoryContext, HistoryContext)
}


def get_context(name: str) -> ContextStrategy:
    """Looks a context strategy up.

    Args:
        name: ``memory`` or ``history``.

    Returns:
        The strategy.

    Raises:
        UserError: The name is unknown.
    """
    if name not in CONTEXTS:
        raise unknown_name("context strategy", name, CONTEXTS)
    return CONTEXTS[name]()
