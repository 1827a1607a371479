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

from .base import Agent, SlotKey, TurnRequest
from .chat import ChatAgent
from .contexts import HistoryContext
from .eval_rows import HISTORY_TOKENS, MEMORY_TOKENS, NEW_TOKENS, TASK_TOKENS
from .textual import Tokens, count_messages, count_text
from .wording import OWN_WORDING, Wording


def noted(episode: Episode, agent: Agent, counter: TokenCounter, instructions: str) -> Episode:
    """The episode with notes in its turns' ``info``, and without ids.

    Args:
        episode: As played.
        agent: Who played it: its tokenizer or counter prices what was not played. A chat server's cannot be asked, and
            two ways of counting are not mixed: nothing is priced then.
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
    tokens = agent_tokens(agent)
    if tokens is not None and episode.turns:
        task = count_text(tokens, episode.turns[0].observation["task"])
        wording: Wording = getattr(agent, "wording", OWN_WORDING)
        for t, (note, turn) in enumerate(zip(notes, episode.turns, strict=True)):
            key = SlotKey(episode.seed, 0, episode.group_id, episode.rollout_id, t)
            request = TurnRequest(key, turn.observation, instructions, episode.turns[:t], episode.task)
            shown = count_messages(tokens, wording.messages(HistoryContext(), request))
            note |= {TASK_TOKENS: task, HISTORY_TOKENS: shown + turn.n_output}
    turns = tuple(_plain(turn, note) for turn, note in zip(episode.turns, notes, strict=True))
    return episode.replace(turns=turns)


def agent_tokens(agent: Agent) -> Tokens | None:
    """What prices an agent's calls: a policy's codec or a text agent's counter; None for a chat server."""
    if isinstance(agent, ChatAgent):
        return None
    found: Tokens | None = getattr(agent, "codec", None) or getattr(agent, "tokens", None)
    return found


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
