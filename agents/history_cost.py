"""What full history would have cost for episodes that were played with a memory.

The episodes are priced twice by the same tokens: as the memory context shows them, and as if every earlier observation
and output had stayed in the chat. Beside it stands the bound of equal calls in which tool text is all that costs: over
C calls memory shows each result once, C in all, history shows 1 + 2 + .. + C, so the saving is at most 1 - 2 / (C + 1).

Invariant: both prices count the same outputs, memory blocks included; only the inputs differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mempo_env.records import Episode

from .base import SlotKey, TurnRequest
from .contexts import HistoryContext, MemoryContext
from .textual import Tokens, count_messages, count_text


@dataclass(frozen=True)
class HistoryCost:
    """Costs with memory and with full history, in tokens, summed over episodes.

    Attributes:
        episodes: How many were priced.
        calls: Mean number C of calls whose result was shown later (the bound's C).
        memory_total: Sum of TT with the memory context.
        history_total: Sum of TT with full history.
        memory_peak: Sum of PT with the memory context.
        history_peak: Sum of PT with full history.
        bound: Largest possible share of TT saved if results were all that costs, and all equally long; equals
            1 - 2 / (C + 1) where every episode has C calls.
    """

    episodes: int
    calls: float
    memory_total: int
    history_total: int
    memory_peak: int
    history_peak: int
    bound: float

    @property
    def saving_total(self) -> float:
        """Share of TT that memory saved; negative where it cost more."""
        return 1 - self.memory_total / self.history_total

    @property
    def saving_peak(self) -> float:
        """Share of PT that memory saved."""
        return 1 - self.memory_peak / self.history_peak


def saving_bound(calls: Sequence[int]) -> float:
    """Largest share of TT that can be saved, from the calls C of each episode; 0 where nobody called.

    >>> round(saving_bound([5, 5]), 4), saving_bound([0])
    (0.6667, 0.0)
    """
    shown_by_history = sum(c * (c + 1) / 2 for c in calls)
    return 1 - sum(calls) / shown_by_history if shown_by_history else 0.0


def history_cost(episodes: Sequence[Episode], tokens: Tokens, instructions: str = "") -> HistoryCost:
    """Prices episodes with memory and with full history.

    Args:
        episodes: Played with any context; those without a turn are left out.
        tokens: A token counter (contents only) or a chat codec (template included).
        instructions: The environment's system message, which both contexts repeat at every call.

    Returns:
        The costs.

    Raises:
        ValueError: There is no episode with a turn.
    """
    episodes = [episode for episode in episodes if episode.turns]
    if not episodes:
        raise ValueError("history_cost needs at least one episode with a turn")
    memory = [_memory_costs(episode, tokens, instructions) for episode in episodes]
    history = [_history_costs(episode, tokens, instructions) for episode in episodes]
    # The last turn's result is shown to nobody.
    calls = [sum(bool(turn.observation["tool_result"]) for turn in episode.turns) for episode in episodes]
    return HistoryCost(
        episodes=len(episodes),
        calls=sum(calls) / len(calls),
        memory_total=sum(map(sum, memory)),
        history_total=sum(map(sum, history)),
        memory_peak=sum(map(max, memory)),
        history_peak=sum(map(max, history)),
        bound=saving_bound(calls),
    )


def _memory_costs(episode: Episode, tokens: Tokens, instructions: str) -> list[int]:
    """Input and output tokens of each turn with the memory context."""
    context = MemoryContext()
    return [
        count_messages(tokens, context.messages(_request(episode, t, instructions))) + count_text(tokens, turn.text)
        for t, turn in enumerate(episode.turns)
    ]


def _history_costs(episode: Episode, tokens: Tokens, instructions: str) -> list[int]:
    """Input and output tokens of each turn with full history.

    The chat of a turn is the beginning of the last turn's, and a message adds as many tokens wherever it stands, so
    that each is counted once; to count every chat whole would take a time quadratic in the turns. The chats half-way
    and at the end are counted whole nevertheless; where a template does not add up, all are.
    """
    turns = len(episode.turns)
    chat = HistoryContext().messages(_request(episode, turns - 1, instructions))
    head = chat[:2]  # system and first observation; then output and observation of each later turn
    prices = [count_messages(tokens, head)]
    for t in range(1, turns):
        prices.append(prices[-1] + count_messages(tokens, head + chat[2 * t : 2 * t + 2]) - prices[0])
    if any(count_messages(tokens, chat[: 2 * t + 2]) != prices[t] for t in (turns // 2, turns - 1)):
        prices = [count_messages(tokens, chat[: 2 * t + 2]) for t in range(turns)]
    return [price + count_text(tokens, turn.text) for price, turn in zip(prices, episode.turns, strict=True)]


def _request(episode: Episode, t: int, instructions: str) -> TurnRequest:
    key = SlotKey(episode.seed, 0, episode.group_id, episode.rollout_id, t)
    return TurnRequest(key, episode.turns[t].observation, instructions, episode.turns[:t], episode.task)
