"""MemPO: GRPO plus a memory-level advantage on memory tokens (Li et al., arXiv 2603.00680).

    Q(m)  = exp( (1/L) sum_l log pi(a_l | task, m, a_<l) )            quality of memory m for the gold answer a
    R^M_t = Q(m_t) - b_t                                              b_t by ``baseline`` (see ``memory_baselines``)
    A^M_t = w R^M_t                                                   normalisation ``none``
    A^M_t = w (R^M_t - mean R^M) / (std R^M + eps)                    normalisation ``pooled`` or ``per_turn``
    A     = A^T + A^M on tokens of the memory segment of turn t,  A = A^T on all others

The loss is GRPO's. Each (rollout, turn) that committed a memory counts once in b, mean and std. A group with fewer than
two valid episodes or two memories has nothing to compare: A^M = 0.

Two forms have names. ``mempo`` is this project's default: Q less the mean over the memories of the group's other
episodes, not normalised. ``mempo-paper`` is the paper's equation: b from the full history, ``pooled``.

Both have a guard, which is ours; ``credit="all"`` switches it off. In a group in which no episode has an outcome above
0, A^M is w max(Q - b, 0), not normalised. There A^T tells nothing of success: it is 0 where the returns are equal, and
else it compares format penalties and step rewards, which the guard does not look at.

Invariant: with ``weight=0`` every advantage equals GRPO's to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from mempo_env.actions import Segment
from mempo_env.records import Group

from .advantages import centred_memory_advantages, guard_failed_group, standardised_memory_advantages
from .algorithm_config import MemPOConfig, MemPOPaperConfig
from .base import Advantages, MemoryScorer
from .grpo import GroupRelative
from .memory_baselines import GroupMemories, MemoryScores, comparable_memories, score_memories


class MemPO(GroupRelative[MemPOConfig]):
    """Self-memory policy optimisation."""

    name = "mempo"
    config_class: ClassVar[type] = MemPOConfig
    source = "Li et al., MemPO, arXiv 2603.00680"
    rewards_memory = True

    def advantages(self, groups: Sequence[Group], scorer: MemoryScorer) -> Advantages:
        """A^T on every token, plus A^M on the tokens of the memory segment."""
        trajectory = super().advantages(groups, scorer)
        if self.config.weight == 0:
            return trajectory
        memories = comparable_memories(groups)
        scores = self.memory_scores(memories, scorer) if memories else []
        credit = [self.memory_advantages(m, s) for m, s in zip(memories, scores, strict=True)]  # each (M,)
        tokens = dict(trajectory.tokens)
        for m, advantage in zip(memories, credit, strict=True):
            for (i, t), a in zip(m.where, advantage.tolist(), strict=True):
                segments = torch.tensor(m.group[i].turns[t].segments)  # (n_output,)
                tokens[m.index, i, t] = tokens[m.index, i, t] + a * (segments == Segment.MEMORY)  # (n_output,)
        metrics = self._metrics(len(groups), memories, scores, credit)
        return replace(trajectory, tokens=tokens, metrics=trajectory.metrics | metrics)

    def memory_scores(self, memories: Sequence[GroupMemories], scorer: MemoryScorer) -> list[MemoryScores]:
        """Q(m) and b of the memories of a batch, by ``config.baseline``; a subclass brings a b of its own here.

        It may ask the scorer about any text, at best by ``memory_baselines.compare_with_texts``, or compute b from the
        Q that ``super()`` gives.

        Args:
            memories: Those of at least one group.
            scorer: Says how probable the gold answers are.

        Returns:
            Of each group, in order, the scores of its memories.

        Raises:
            UserError: ``config.baseline`` is none that is known here.
        """
        return score_memories(memories, self.config, scorer)

    def memory_advantages(self, memories: GroupMemories, scores: MemoryScores) -> Tensor:
        """A^M of a group's memories (M,)."""
        config = self.config
        advantage = centred_memory_advantages(scores.quality, scores.baseline, scores.has_baseline)  # (M,)
        if self._guards(memories):
            return config.weight * guard_failed_group(advantage)
        if config.normalisation != "none":
            advantage = standardised_memory_advantages(advantage, memories.turns, config.normalisation, config.eps)
        if config.credit == "successes":
            advantage = advantage * memories.successes  # (M,)
        return config.weight * advantage

    def _guards(self, memories: GroupMemories) -> bool:
        return self.config.credit == "guarded" and memories.all_failed

    def _metrics(
        self, groups: int, memories: list[GroupMemories], scores: list[MemoryScores], credit: list[Tensor]
    ) -> dict[str, float]:
        """Counts of what was scored, left out and guarded; means over the memories that were scored."""
        metrics = {
            "memory/scored": float(sum(len(m.where) for m in memories)),
            "memory/groups_without_comparison": (groups - len(memories)) / max(groups, 1),
            "memory/groups_guarded": sum(map(self._guards, memories)) / max(groups, 1),
        }
        if not memories:
            return metrics
        quality, every = torch.cat([s.quality for s in scores]), torch.cat(credit)  # (M of all groups,)
        has = torch.cat([s.has_baseline for s in scores])  # (M of all groups,)
        if bool(has.any()):
            metrics["memory/baseline"] = torch.cat([s.baseline for s in scores])[has].mean().item()
        return metrics | {
            "memory/without_baseline": float((~has).sum()),
            "memory/credited": (every != 0).double().mean().item(),
            "memory/quality": quality.mean().item(),
            "memory/quality_above_0.8": (quality > 0.8).double().mean().item(),
            "memory/advantage_abs": every.abs().mean().item(),
            "memory/advantage_std": every.std().item(),
        }


class MemPOPaper(MemPO):
    """Self-memory policy optimisation by the paper's equation, with our guard (``credit="all"`` switches it off)."""

    name = "mempo-paper"
    config_class = MemPOPaperConfig
