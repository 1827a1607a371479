"""The context strategy ``retrieved``: an external store of past turns, searched at every turn.

It is the row of agents that keep what happened outside of the prompt and look it up (A-MEM, arXiv 2502.12110; retrieval
of past interactions). The store is this episode's history: one entry per tool call, with the call and its result.
Similarity is BM25, so that the same request gives the same prompt on any machine; A-MEM's notes, links and embeddings
are not rebuilt.

Invariants:
    * the store is built from the request and forgotten with it; entries of equal score are ordered by turn;
    * the entries together have at most ``max_tokens`` tokens, as the regex counter counts them.
"""

from __future__ import annotations

from mempo_env.actions import ToolCall
from mempo_env.errors import UserError
from mempo_env.prompts import render_observation, render_past_turn
from mempo_env.records import Passage
from mempo_env.tokens import RegexTokenCounter

from ..envs.retrieval import Bm25Index, words
from .base import TurnRequest
from .contexts import Message

MAX_TOKENS = 1024
DEFAULT_TURNS = 3


class RetrievedContext:
    """The task, notes if any are kept, the most similar earlier turns, the last result, the budget.

    The last turn's result is shown anyway, so the store holds the calls before it. What is looked for is the task with
    the last result. The entries are shown in the order in which they happened.

    Args:
        turns: Most entries that are shown.
        max_tokens: Most tokens of all of them; one that does not fit whole is cut at its end, and those after it in
            rank are left out.

    Raises:
        UserError: A number is below 1.
    """

    needs_memory = False

    def __init__(self, turns: int = DEFAULT_TURNS, max_tokens: int = MAX_TOKENS) -> None:
        if turns < 1 or max_tokens < 1:
            raise UserError(f"retrieved-{turns} with max_tokens={max_tokens} shows nothing of the past; use 1 or more")
        self.turns = turns
        self.max_tokens = max_tokens
        self.name = f"retrieved-{turns}"
        self._counter = RegexTokenCounter()

    def messages(self, request: TurnRequest) -> list[Message]:
        """System message and one user message."""
        shown = render_observation(request.observation, earlier="\n".join(self.entries(request)), style=request.style)
        return [{"role": "system", "content": request.instructions}, {"role": "user", "content": shown}]

    def entries(self, request: TurnRequest) -> list[str]:
        """The entries that are shown, oldest first."""
        store = _store(request)
        if not store:
            return []
        sought = f"{request.observation['task']} {request.observation['tool_result']}"
        chosen: dict[str, str] = {}
        room = self.max_tokens
        for entry in Bm25Index.in_memory(store).search([sought], self.turns)[0]:
            chosen[entry.id] = self._counter.truncate(entry.text, room)
            room -= self._counter.count(chosen[entry.id])
            if chosen[entry.id] != entry.text:
                break
        return [chosen[entry.id] for entry in store if chosen.get(entry.id)]


def _store(request: TurnRequest) -> list[Passage]:
    """One entry per tool call whose result is not the one that is shown now; those without a word are left out."""
    entries = []
    for number, (turn, after) in enumerate(zip(request.history, request.history[1:], strict=False), start=1):
        if isinstance(turn.action, ToolCall):
            text = render_past_turn(number, turn.action, after.observation["tool_result"])
            entries.append(Passage(str(number), "", text))
    return [entry for entry in entries if words(entry.text)]
