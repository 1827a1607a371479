"""Q(m) turn by turn and goal by goal, noted in the episodes themselves, for whoever looks at them later.

The joint Q(m) is one mean over the tokens of "a1; a2; ..". Cut at the answers it is a mean for each goal, at no cost:

    Q_k(m) = exp( (1/L_k) sum over the tokens l of answer k: log pi(a_l | task, m, a_<l) )
    log Q(m) = sum_k (L_k/L) log Q_k(m)

A token belongs to the goal in which its first byte lies; the ``;`` after an answer is that answer's, the space after it
the next one's. Under ``scope="per_goal"`` Q_k is the goal's own probability, and Q is their mean.

Invariant: what is noted is the very number that was returned; an episode that was not scored is left as it was.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from mempo_env.actions import encode_text
from mempo_env.records import Episode, Goal, Task, Turn

from ..agents.row_batches import TokenRow
from .memory_reward import AnswerScorer

QUALITY, GOAL_QUALITY = "quality", "goal_quality"
"""Keys of ``Turn.info``: Q(m) of the memory that the turn wrote, and its part on each goal."""

_Noted = tuple[float, tuple[float | None, ...]]


class NotingScorer(AnswerScorer):
    """An ``AnswerScorer`` that remembers what it returned; its arguments are the same."""

    _noted: dict[tuple[tuple[Goal, ...], str], _Noted] | None = None

    def memory_quality(self, items: Sequence[tuple[Episode, str]]) -> Tensor:
        """Q(m) of each (episode, memory), as float64 (M,)."""
        quality, parts = self.token_quality([(episode.task, memory) for episode, memory in items])
        if self._noted is None:
            self._noted = {}
        for (episode, memory), value, questions in zip(items, quality.tolist(), parts, strict=True):
            self._noted[episode.task.goals, memory] = (value, self._by_goal(episode.task, questions))
        return quality

    def annotated(self, episodes: Iterable[Episode]) -> tuple[Episode, ...]:
        """The episodes with ``quality`` and ``goal_quality`` in the ``info`` of every turn that wrote a memory.

        ``goal_quality`` holds None where a goal has no token of its own, or where the tokenizer changes the text. What
        was not scored since the last call of ``forget`` is left as it was.
        """
        return tuple(
            episode.replace(turns=tuple(self._annotated(turn, episode.task) for turn in episode.turns))
            for episode in episodes
        )

    def knows(self, episode: Episode, memory: str) -> bool:
        """Whether this memory was scored since the last call of ``forget``."""
        return (episode.task.goals, memory) in (self._noted or {})

    def forget(self) -> None:
        """Drops what was noted; to be called when the weights have changed."""
        self._noted = None

    def _by_goal(self, task: Task, questions: list[tuple[TokenRow, Tensor]]) -> tuple[float | None, ...]:
        values: list[list[float]] = [[] for _ in task.goals]
        if self.scope == "per_goal":
            values = [logprobs.tolist() for _, logprobs in questions]
        else:
            (row, logprobs), answers = questions[0], [goal.answers[0] for goal in task.goals]
            owners = goals_of_tokens(self.policy.codec.token_bytes(row.output_ids), answers)
            for owner, value in zip(owners, logprobs.tolist(), strict=False):  # no owners where the text was changed
                values[owner].append(value)
        return tuple(math.exp(sum(some) / len(some)) if some else None for some in values)

    def _annotated(self, turn: Turn, task: Task) -> Turn:
        noted = (self._noted or {}).get((task.goals, turn.memory)) if turn.memory_written else None
        if noted is None:
            return turn
        return replace(turn, info=turn.info | {QUALITY: noted[0], GOAL_QUALITY: list(noted[1])})


def goals_of_tokens(tokens: Sequence[bytes], answers: Sequence[str]) -> list[int]:
    """Which answer of "a1; a2; .." each token belongs to, by its first byte.

    Args:
        tokens: The bytes of each token; joined they are the joint answer's, or that after white space.
        answers: The answers that were joined.

    Returns:
        One index per token; none where the tokens do not spell the joint answer (a tokenizer that changes its text).

    >>> goals_of_tokens([b"red", b" fox", b";", b" a", b"nt"], ["red fox", "ant"])
    [0, 0, 0, 1, 1]
    """
    text, joined = encode_text("; ".join(answers)), b"".join(tokens)
    lead = len(joined) - len(text)  # some tokenizers put a space in front
    if lead < 0 or joined[lead:] != text or joined[:lead].strip():
        return []
    starts = [lead]
    for answer in answers[:-1]:
        starts.append(starts[-1] + len(encode_text(answer)) + (1 if len(starts) == 1 else 2))
    found, position = [], 0
    for token in tokens:
        found.append(max(bisect_right(starts, position) - 1, 0))
        position += len(token)
    return found
