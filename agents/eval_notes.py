"""Notes that a played episode gets before it is stored: what only the agent's tokenizer can say of it.

Invariant: outcome, texts and token counts stay as they were. The ids go: a stored evaluation is read by people, tables
and pictures, and with full history its ids would be most of the file. What they are needed for, TT with each token
counted once, is noted first.
"""

from __future__ import annotations

import dataclasses

from mempo_env.metrics import TokenCosts, token_costs
from mempo_env.records import Episode, Turn
from mempo_env.tokens import TokenCounter

from .base import Agent
from .contexts import HistoryContext
from .eval_rows import HISTORY_TOKENS, MEMORY_TOKENS, NEW_TOKENS, TASK_TOKENS
from .history_cost import context_costs
from .textual import Tokens, count_text


def agent_tokens(agent: Agent) -> Tokens | None:
    """What prices an agent's calls: a policy's codec, a text agent's counter, or None where a server counts alone."""
    found: Tokens | None = getattr(agent, "codec", None) or getattr(agent, "tokens", None)
    return found


def noted(episode: Episode, tokens: Tokens | None, counter: TokenCounter, instructions: str) -> Episode:
    """The episode with notes in its turns' ``info``, and without ids.

    Args:
        episode: As played.
        tokens: What its calls were priced with; None notes nothing that would mix two ways of counting.
        counter: Counts memories, as the environment does.
        instructions: The environment's system message.

    Returns:
        The episode to store.
    """
    notes: list[dict[str, object]] = [{} for _ in episode.turns]
    for note, turn in zip(notes, episode.turns, strict=True):
        if turn.memory_written:
            note[MEMORY_TOKENS] = counter.count(turn.memory)
    for note, new in zip(notes, _new_tokens(episode), strict=True):
        note[NEW_TOKENS] = new
    if tokens is not None and episode.turns:
        task = count_text(tokens, episode.turns[0].observation["task"])
        history = context_costs(episode, HistoryContext(), tokens, instructions)
        for note, cost in zip(notes, history, strict=True):
            note |= {TASK_TOKENS: task, HISTORY_TOKENS: cost}
    turns = tuple(_plain(turn, note) for turn, note in zip(episode.turns, notes, strict=True))
    return episode.replace(turns=turns)


def _plain(turn: Turn, note: dict[str, object]) -> Turn:
    return dataclasses.replace(
        turn, prompt_ids=(), output_ids=(), logprobs=(), segments=(), info=dict(turn.info) | note
    )


def _new_tokens(episode: Episode) -> list[int]:
    """For each call, its tokens that the call before did not hold; they sum to TT_unique."""
    costs: list[TokenCosts] = [
        token_costs(episode.replace(turns=episode.turns[: t + 1])) for t in range(len(episode.turns))
    ]
    unique = [cost.total_unique for cost in costs]
    return [now - before for now, before in zip(unique, [0, *unique], strict=False)]
