"""The controls of the study: MemPO with something else in the place of a memory's quality.

``ShuffledMemPO`` deals the qualities out anew among the memories of a group: noise of the same size on the same tokens,
without the link between a memory and its quality. ``TurnShuffledMemPO`` deals them out among the memories of one turn:
a late memory keeps what it has for being late, and nothing for what it says. ``ShortMemPO`` rewards a memory for being
short. Where one of them gains as much over GRPO as MemPO does, the gain of MemPO says nothing about what its memories
hold.

Invariant: in each group the shuffled multiset of qualities is what the scorer gave; who gets which depends on the
group's task and number alone, so on seed and step, and on no global random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from mempo_env.agents.codec import CodecTokenCounter
from mempo_env.agents.policy import LoraPolicy
from mempo_env.algos.algorithm_config import MemPOConfig
from mempo_env.algos.base import Advantages, MemoryScorer
from mempo_env.algos.memory_baselines import GroupMemories, MemoryScores, mean_of_others
from mempo_env.algos.mempo import MemPO
from mempo_env.budgets import BRIEF
from mempo_env.errors import UserError
from mempo_env.records import Episode, Group
from mempo_env.tokens import TokenCounter

MEMORY_CAP = BRIEF.memory_tokens
"""Tokens of the longest memory."""


class OwnMemories(MemPO):
    """MemPO that compares memories with other memories of the group alone, so that their qualities can be dealt out.

    Args:
        config: Settings of MemPO; its baseline is a mean over other memories, which is taken after the permutation.

    Raises:
        UserError: The baseline asks for the quality of other texts than the memories themselves.
    """

    def __init__(self, config: MemPOConfig | None = None) -> None:
        super().__init__(config)
        if self.config.baseline not in ("reference", "leave_one_out"):
            raise UserError(
                f"baseline='{self.config.baseline}' scores more than the memories of a group, so that shuffling would "
                "mix memories and baselines; use baseline='reference' or 'leave_one_out'"
            )


class ShuffledMemPO(OwnMemories):
    """MemPO with Q permuted among the memory turns of each group."""

    name = "shuffled-mempo"
    source = "this study"

    def advantages(self, groups: Sequence[Group], scorer: MemoryScorer) -> Advantages:
        """As MemPO's, from permuted qualities."""
        return super().advantages(groups, ShuffledScorer(scorer))


class ShuffledScorer:
    """A scorer whose memory qualities are permuted within each group.

    Args:
        scorer: Whose qualities are permuted.
    """

    def __init__(self, scorer: MemoryScorer) -> None:
        self.scorer = scorer

    def memory_quality(self, items: Sequence[tuple[Episode, str]]) -> Tensor:
        """Permuted Q(m) of each (episode, memory): float64 (M,)."""
        quality = self.scorer.memory_quality(items)  # (M,)
        groups: dict[tuple[str, int], list[int]] = {}
        for index, (episode, _) in enumerate(items):
            groups.setdefault((episode.group_id, episode.seed), []).append(index)
        shuffled = quality.clone()  # (M,)
        for (group_id, seed), where in groups.items():
            order = _order(len(where), f"{group_id}/{seed}")  # (m,)
            places = torch.tensor(where)  # (m,)
            shuffled[places] = quality[places[order]]
        return shuffled

    def history_quality(self, items: Sequence[tuple[Episode, int]]) -> Tensor:
        """Unchanged."""
        return self.scorer.history_quality(items)

    def reference_quality(self, groups: Sequence[Group], episodes: int) -> list[Tensor]:
        """Unchanged."""
        return self.scorer.reference_quality(groups, episodes)


class TurnShuffledMemPO(OwnMemories):
    """MemPO with Q permuted among the memories that a group wrote at the same turn."""

    name = "turn-shuffled-mempo"
    source = "this study"

    def memory_advantages(self, memories: GroupMemories, scores: MemoryScores) -> Tensor:
        """As MemPO's, from permuted qualities: (M,)."""
        first = memories.group[0]
        quality = scores.quality.clone()  # (M,)
        for turn in memories.turns.unique().tolist():
            places = (memories.turns == turn).nonzero().squeeze(1)  # (m,)
            order = _order(len(places), f"{first.group_id}/{first.seed}/{turn}")
            quality[places] = scores.quality[places[order]]
        baseline, has_baseline = mean_of_others(quality, memories, self.config)  # (M,), (M,)
        return super().memory_advantages(memories, MemoryScores(quality, baseline, has_baseline))


class ShortMemPO(MemPO):
    """MemPO whose quality of a memory is its shortness, 1 - tokens / cap: does brevity alone do what Q(m) does?

    Args:
        config: Settings of MemPO.
    """

    name = "short-mempo"
    source = "this study"

    def setup(self, policy: LoraPolicy) -> None:
        """Learns how the policy counts tokens."""
        super().setup(policy)
        self.counter: TokenCounter = CodecTokenCounter(policy.codec)

    def advantages(self, groups: Sequence[Group], scorer: MemoryScorer) -> Advantages:
        """As MemPO's, from lengths."""
        return super().advantages(groups, ShortnessScorer(scorer, self.counter))


class ShortnessScorer:
    """A scorer that looks at a memory's length alone.

    Args:
        scorer: For the questions that are not about memories.
        counter: Counts tokens.
    """

    def __init__(self, scorer: MemoryScorer, counter: TokenCounter) -> None:
        self.scorer = scorer
        self.counter = counter

    def memory_quality(self, items: Sequence[tuple[Episode, str]]) -> Tensor:
        """1 - tokens / cap of each (episode, memory): float64 (M,)."""
        lengths = torch.tensor([self.counter.count(memory) for _, memory in items], dtype=torch.float64)  # (M,)
        return 1 - lengths / MEMORY_CAP

    def history_quality(self, items: Sequence[tuple[Episode, int]]) -> Tensor:
        """Unchanged."""
        return self.scorer.history_quality(items)

    def reference_quality(self, groups: Sequence[Group], episodes: int) -> list[Tensor]:
        """Unchanged."""
        return self.scorer.reference_quality(groups, episodes)


def _order(count: int, name: str) -> Tensor:
    """A permutation (count,) that depends on the name alone."""
    key = hashlib.blake2b(f"shuffle/{name}".encode(), digest_size=7).digest()
    return torch.randperm(count, generator=torch.Generator().manual_seed(int.from_bytes(key, "big")))
