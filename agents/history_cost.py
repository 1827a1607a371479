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
from .contexts import ContextStrategy, HistoryContext, MemoryContext
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
    memory = [_costs(episode, MemoryContext(), tokens, instructions) for episode in episodes]
    history = [_costs(episode, HistoryContext(), tokens, instructions) for episode in episodes]
    # The last turn's result is shown to nobody.
    calls = [sum(bool(turn.observation["tool_result"]) for turn in episode.turns) for episode in episodes]
    shown_by_history = sum(c * (c + 1) / 2 for c in calls)
    return HistoryCost(
        episodes=len(episodes),
        calls=sum(calls) / len(calls),
        memory_total=sum(map(sum, memory)),
        history_total=sum(map(sum, history)),
        memory_peak=sum(map(max, memory)),
        history_peak=sum(map(max, history)),
        bound=1 - sum(calls) / shown_by_history if shown_by_history else 0.0,
    )


def _costs(episode: Episode, context: ContextStrategy, tokens: Tokens, instructions: str) -> list[int]:
    """Input and output tokens of each turn under a context strategy."""
    costs = []
    for t, turn in enumerate(episode.turns):
        key = SlotKey(episode.seed, 0, episode.group_id, episode.rollout_id, t)
        request = TurnRequest(key, turn.observation, instructions, episode.turns[:t], episode.task)
        costs.append(count_messages(tokens, context.messages(request)) + count_text(tokens, turn.text))
    return costs
