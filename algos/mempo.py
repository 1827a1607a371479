"""MemPO: GRPO plus a memory-level advantage on memory tokens (Li et al., arXiv 2603.00680).

    Q(m)  = exp( (1/L) sum_l log pi(a_l | task, m, a_<l) )            quality of memory m for the gold answer a
    R^M_t = Q(m_t) - b_t                                              b_t by ``baseline`` (see ``memory_baselines``)
    A^M_t = w R^M_t                                                   normalisation ``none``, the brief's form
    A^M_t = w (R^M_t - mean R^M) / (std R^M + eps)                    ``pooled | per_turn``, the paper's form
    A     = A^T + A^M on tokens of the memory segment of turn t,  A = A^T on all others

The loss is GRPO's. Each (rollout, turn) that committed a memory counts once in b, mean and std. A group with fewer than
two valid episodes or two memories has nothing to compare: A^M = 0.

Where every episode of a group failed A^T is 0 and A^M alone would act: ``credit="guarded"`` then takes max(Q - b, 0).

Invariant: with ``weight=0`` every advantage equals GRPO's to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
    config_class = MemPOConfig
    source = "Li et al., MemPO, arXiv 2603.00680"
    rewards_memory = True

    def advantages(self, groups: Sequence[Group], scorer: MemoryScorer) -> Advantages:
        """A^T on every token, plus A^M on the tokens of the memory segment."""
        trajectory = super().advantages(groups, scorer)
        if self.config.weight == 0:
            return trajectory
        memories = comparable_memories(groups)
        scores = score_memories(memories, self.config, scorer) if memories else []
        credit = [self.memory_advantages(m, s) for m, s in zip(memories, scores, strict=True)]  # each (M,)
        tokens = dict(trajectory.tokens)
        for m, advantage in zip(memories, credit, strict=True):
            for (i, t), a in zip(m.where, advantage.tolist(), strict=True):
                segments = torch.tensor(m.group[i].turns[t].segments)  # (n_output,)
                tokens[m.index, i, t] = tokens[m.index, i, t] + a * (segments == Segment.MEMORY)  # (n_output,)
        metrics = self._metrics(len(groups), memories, scores, credit)
        return replace(trajectory, tokens=tokens, metrics=trajectory.metrics | metrics)

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
    """Self-memory policy optimisation in the paper's form."""

    name = "mempo-paper"
    config_class = MemPOPaperConfig
