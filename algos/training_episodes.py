"""Keeps some training episodes with what the learner made of them, for ``mempo view``.

A kept episode is an episode like every other; the ``info`` of its turns says more: ``tokens`` (the text of each output
token), ``advantages`` (one per output token), and, where a memory was written, ``quality`` and ``goal_quality``.

Invariants:
    * keeping changes nothing that is learned: it draws no noise and touches no weight;
    * what is kept is bounded: so many episodes at the first step, and at each step that ends in a checkpoint.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from mempo_env.records import Episode, Group, Turn

from ..agents.codec import ChatCodec
from ..agents.episodes_io import save_episodes
from .base import Advantages
from .noting_scorer import NotingScorer

TOKENS, ADVANTAGES = "tokens", "advantages"
"""Keys of ``Turn.info``."""


@dataclass(frozen=True)
class EpisodeKeeper:
    """Writes the first episodes of a step's groups, before the update, into a folder.

    Attributes:
        folder: Where to; made when it is needed.
        count: Episodes per step, counted through the groups: a group's size keeps one group whole.
        every: Steps between those that are kept, as between checkpoints.
        steps: Steps of the run: the last one is kept, too.
        scorer: Scores the memories that the algorithm has not asked for.
    """

    folder: Path
    count: int
    every: int
    steps: int
    scorer: NotingScorer

    def due(self, step: int) -> bool:
        """Whether episodes of this step, counted from 0, are kept."""
        return step == 0 or (step + 1) % self.every == 0 or step + 1 == self.steps

    def keep(self, step: int, groups: Sequence[Group], advantages: Advantages) -> None:
        """Writes the episodes of a step that is due, as ``step-<steps done>.episodes.jsonl.gz``.

        Every process calls this with the same groups, since they score together; the first one writes.

        Args:
            step: Counted from 0.
            groups: As played.
            advantages: Of the groups.
        """
        if self.due(step):
            places = [(g, i) for g, group in enumerate(groups) for i in range(len(group))][: self.count]
            chosen = [with_advantages(groups[g][i], (g, i), advantages, self.scorer.policy.codec) for g, i in places]
            self._score(chosen)
            with self.scorer.processes.together():
                if self.scorer.processes.is_first:
                    self.folder.mkdir(exist_ok=True)
                    path = self.folder / f"step-{step + 1:06d}.episodes.jsonl.gz"
                    save_episodes(path, self.scorer.annotated(chosen))
        self.scorer.forget()

    def _score(self, episodes: Sequence[Episode]) -> None:
        written = [(e, turn.memory) for e in episodes if e.error is None for turn in e.turns if turn.memory_written]
        if asked := [item for item in written if not self.scorer.knows(*item)]:
            self.scorer.memory_quality(asked)


def with_advantages(episode: Episode, place: tuple[int, int], advantages: Advantages, codec: ChatCodec) -> Episode:
    """The episode with the text and the advantage of each output token in its turns' ``info``.

    Args:
        episode: As played by a policy of ours.
        place: (group, episode within the group).
        advantages: Of all groups.
        codec: Of the policy.

    Returns:
        A copy; one with an ``error`` has no advantages and stays as it was.
    """
    if episode.error is not None:
        return episode
    turns = tuple(_noted(turn, advantages.tokens[(*place, t)], codec) for t, turn in enumerate(episode.turns))
    return episode.replace(turns=turns)


def token_texts(tokens: Sequence[bytes]) -> list[str]:
    r"""The text of each token; joined it is the decoded output. A character belongs to the token that completes it.

    >>> token_texts([b"a ", b"\xc3", b"\xa9b", b"\xff"])
    ['a ', '', 'éb', '\ufffd']
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts = [decoder.decode(token) for token in tokens]
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return texts


def _noted(turn: Turn, advantages: Tensor, codec: ChatCodec) -> Turn:
    # Six digits are more than a picture needs, and compress to a fraction of a float's full length.
    values = [float(f"{value:.6g}") for value in advantages.tolist()]
    return replace(turn, info=turn.info | {TOKENS: token_texts(codec.token_bytes(turn.output_ids)), ADVANTAGES: values})
