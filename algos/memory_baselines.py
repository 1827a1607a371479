"""What a memory is compared with: the memories of a group, their qualities Q(m) and their baselines b.

Invariant: each (rollout, turn) of a valid episode that committed a memory counts once. A group with fewer than two
valid episodes or two memories has nothing to compare and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mempo_env.errors import UserError
from mempo_env.records import Episode, Group

from .advantages import leave_one_out_mean
from .algorithm_config import MemPOConfig
from .base import MemoryScorer

_MEANS_OF_OTHERS = ("reference", "same_turn", "leave_one_out")
"""Baselines that need nothing but the Q of the group's memories."""


@dataclass(frozen=True)
class GroupMemories:
    """The memories of one group.

    Attributes:
        index: Of the group within the batch.
        group: Its episodes.
        where: (episode within the group, turn) of each memory.
    """

    index: int
    group: Group
    where: tuple[tuple[int, int], ...]

    @property
    def items(self) -> list[tuple[Episode, int]]:
        """The episode and turn of each memory."""
        return [(self.group[i], t) for i, t in self.where]

    @property
    def turns(self) -> Tensor:
        """(M,) turn of each memory."""
        return torch.tensor([t for _, t in self.where])

    @property
    def successes(self) -> Tensor:
        """(M,) whether the memory's episode had an outcome above 0."""
        return torch.tensor([self.group[i].outcome > 0 for i, _ in self.where])

    @property
    def all_failed(self) -> bool:
        """Whether no valid episode of the group had an outcome above 0."""
        return all(episode.outcome <= 0 for episode in self.group if episode.error is None)


@dataclass(frozen=True)
class MemoryScores:
    """Of each memory of a group (M,): Q(m) and b as float64, and whether there is a b as bool.

    Raises:
        ValueError: The three are not equally long.
    """

    quality: Tensor
    baseline: Tensor
    has_baseline: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(part.shape) for part in (self.quality, self.baseline, self.has_baseline)]
        if shapes != [(self.quality.numel(),)] * 3:  # one b for all would be spread over the memories unnoticed
            raise ValueError(f"quality, baseline and has_baseline have the shapes {shapes}; give each memory its own")


def comparable_memories(groups: Sequence[Group]) -> list[GroupMemories]:
    """The memories of every group that has something to compare, in order."""
    found = []
    for g, group in enumerate(groups):
        valid = [i for i, episode in enumerate(group) if episode.error is None]
        where = tuple((i, t) for i in valid for t, turn in enumerate(group[i].turns) if turn.memory_written)
        if len(valid) > 1 and len(where) > 1:
            found.append(GroupMemories(g, group, where))
    return found


def score_memories(memories: Sequence[GroupMemories], config: MemPOConfig, scorer: MemoryScorer) -> list[MemoryScores]:
    """Q(m_t) and b_t of every memory of a batch, by ``config.baseline``.

    All goes to the scorer in as few calls as there are kinds of question; it computes equal questions once, and most
    old memories are the new ones of the turn before.

    Raises:
        UserError: Nothing here says what ``config.baseline`` is.
    """
    baseline = config.baseline
    if baseline == "old_memory":
        return compare_with_texts(memories, scorer, lambda episode, t: str(episode.turns[t].observation["memory"]))
    if baseline == "empty_memory":
        return compare_with_texts(memories, scorer, lambda _, __: "")
    if baseline not in (*_MEANS_OF_OTHERS, "frozen_reference", "history"):
        raise UserError(
            f"baseline='{baseline}' has no case in score_memories (algos/memory_baselines.py): write one there, or "
            "override memory_scores in the subclass of MemPO whose config has this name"
        )
    sizes = [len(group.where) for group in memories]
    items = [item for group in memories for item in group.items]
    quality = torch.split(scorer.memory_quality([(e, e.turns[t].memory) for e, t in items]), sizes)  # each (M,)
    if baseline == "frozen_reference":
        played = scorer.reference_quality([group.group for group in memories], config.reference_episodes)
        return [MemoryScores(q, *_mean_of_reference(q, r)) for q, r in zip(quality, played, strict=True)]
    if baseline == "history":
        seen = torch.split(scorer.history_quality(items), sizes)  # each (M,)
        return [MemoryScores(q, b, torch.ones_like(b, dtype=torch.bool)) for q, b in zip(quality, seen, strict=True)]
    return [MemoryScores(q, *mean_of_others(q, group, config)) for q, group in zip(quality, memories, strict=True)]


def compare_with_texts(
    memories: Sequence[GroupMemories], scorer: MemoryScorer, text: Callable[[Episode, int], str]
) -> list[MemoryScores]:
    """Compares every memory with another text that could have stood in its place: b is that text's Q.

    Args:
        memories: Those of a batch.
        scorer: Asked once, for the memories and the texts together.
        text: From the episode and turn of a memory to what it is compared with.

    Returns:
        Q(m) and b of each group's memories; every memory has a b.
    """
    items = [item for group in memories for item in group.items]
    asked = [(episode, episode.turns[t].memory) for episode, t in items]
    answered = scorer.memory_quality(asked + [(episode, text(episode, t)) for episode, t in items])  # (2 M,)
    sizes = [len(group.where) for group in memories]
    quality, other = torch.split(answered[: len(items)], sizes), torch.split(answered[len(items) :], sizes)  # each (M,)
    return [MemoryScores(q, b, torch.ones_like(b, dtype=torch.bool)) for q, b in zip(quality, other, strict=True)]


def mean_of_others(quality: Tensor, group: GroupMemories, config: MemPOConfig) -> tuple[Tensor, Tensor]:
    """Mean over the other episodes' memories, over those of the same turn, or over all other memories.

    Args:
        quality: (M,) Q(m) of a group's memories.
        group: The memories.
        config: Its ``baseline`` is ``reference``, ``same_turn`` or ``leave_one_out``.

    Returns:
        (M,) the mean, and (M,) whether there was anything to take it of.
    """
    if config.baseline == "leave_one_out":
        return leave_one_out_mean(quality, torch.arange(len(quality)))
    by_episode = torch.tensor([i for i, _ in group.where])  # (M,)
    return leave_one_out_mean(quality, by_episode, group.turns if config.baseline == "same_turn" else None)


def _mean_of_reference(quality: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the memories of the reference's episodes, one for the whole group; none where none was written."""
    if not len(reference):
        return torch.zeros_like(quality), torch.zeros_like(quality, dtype=torch.bool)
    equal = bool((reference == reference[0]).all())  # a mean of equal numbers is rounded
    baseline = reference[0] if equal else reference.mean()  # ()
    return baseline.expand_as(quality), torch.ones_like(quality, dtype=torch.bool)
