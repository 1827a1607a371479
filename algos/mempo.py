"""MemPO: GRPO plus a memory-level advantage on memory tokens (Li et al., arXiv 2603.00680).

    Q(m)  = exp( (1/L) sum_l log pi(a_l | task, m, a_<l) )            quality of memory m for the gold answer a
    R^M_t = Q(m_t) - b_t                                              b_t by ``baseline``
    A^M_t = w R^M_t                                                   normalisation ``none``, the brief's form
    A^M_t = w (R^M_t - mean R^M) / (std R^M + eps)                    ``pooled | per_turn``, the paper's form
    A     = A^T + A^M on tokens of the memory segment of turn t,  A = A^T on all others

The loss is GRPO's. Each (rollout, turn) that committed a memory counts once in b, mean and std.

Where every episode of a group failed A^T is 0 and A^M alone would act: ``credit="guarded"`` then takes max(Q - b, 0).

Invariant: with ``weight=0`` every advantage equals GRPO's to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mempo_env.actions import Segment
from mempo_env.records import Episode, Group

from .advantages import (
    centred_memory_advantages,
    guard_failed_group,
    leave_one_out_mean,
    standardised_memory_advantages,
)
from .algorithm_config import MemPOConfig, MemPOPaperConfig
from .base import Advantages, MemoryScorer
from .grpo import GroupRelative


class MemPO(GroupRelative[MemPOConfig]):
    """Self-memory policy optimisation."""

    name = "mempo"
    config_class = MemPOConfig
    source = "Li et al., MemPO, arXiv 2603.00680"

    def advantages(self, groups: Sequence[Group], scorer: MemoryScorer) -> Advantages:
        """A^T on every token, plus A^M on the tokens of the memory segment."""
        trajectory = super().advantages(groups, scorer)
        if self.config.weight == 0:
            return trajectory
        tokens, qualities, baselines, rewarded = dict(trajectory.tokens), [], [], []
        for g, group in enumerate(groups):
            where = [
                (i, t)
                for i, episode in enumerate(group)
                if episode.error is None
                for t, turn in enumerate(episode.turns)
                if turn.memory_written
            ]
            if len(where) < 2:  # nothing to compare
                continue
            quality = scorer.memory_quality([(group[i], group[i].turns[t].memory) for i, t in where])  # (M,)
            baseline, has_baseline = self._baseline(group, where, quality, scorer)  # (M,), (M,)
            advantage = self._memory_advantage(group, where, quality, baseline, has_baseline)  # (M,)
            for (i, t), value in zip(where, advantage.tolist(), strict=True):
                segments = torch.tensor(group[i].turns[t].segments)  # (n_output,)
                tokens[g, i, t] = tokens[g, i, t] + value * (segments == Segment.MEMORY)  # (n_output,)
            qualities.append(quality)
            baselines.append(baseline)
            rewarded.append(advantage)
        metrics = dict(trajectory.metrics)
        if qualities:
            q, b, a = torch.cat(qualities), torch.cat(baselines), torch.cat(rewarded)
            metrics |= {
                "memory/quality": q.mean().item(),
                "memory/quality_above_0.8": (q > 0.8).double().mean().item(),
                "memory/baseline": b.mean().item(),
                "memory/advantage_abs": a.abs().mean().item(),
                "memory/advantage_std": a.std().item(),
            }
        metrics["memory/scored"] = float(sum(map(len, qualities)))
        metrics["memory/groups_without_comparison"] = (len(groups) - len(qualities)) / max(len(groups), 1)
        return replace(trajectory, tokens=tokens, metrics=metrics)

    def _baseline(
        self, group: Group, where: list[tuple[int, int]], quality: Tensor, scorer: MemoryScorer
    ) -> tuple[Tensor, Tensor]:
        """B of each memory (M,), and whether there is one (M,)."""
        if self.config.baseline == "reference":
            return leave_one_out_mean(quality, torch.tensor([i for i, _ in where]))
        if self.config.baseline == "history":
            baseline = scorer.history_quality([(group[i], t) for i, t in where])
        elif self.config.baseline == "old_memory":
            baseline = scorer.memory_quality([(group[i], _memory_before(group[i], t)) for i, t in where])
        else:
            baseline = scorer.memory_quality([(group[i], "") for i, _ in where])
        return baseline, torch.ones(len(where), dtype=torch.bool)

    def _memory_advantage(
        self, group: Group, where: list[tuple[int, int]], quality: Tensor, baseline: Tensor, has_baseline: Tensor
    ) -> Tensor:
        """A^M of each memory (M,)."""
        config = self.config
        centred = centred_memory_advantages(quality, baseline, has_baseline)  # (M,)
        if bool((quality == quality[0]).all()) and config.baseline == "reference":
            return torch.zeros_like(quality)  # rounding in a mean of equal numbers is no advantage
        failed = all(episode.outcome <= 0 for episode in group if episode.error is None)
        if config.credit == "guarded" and failed:
            return config.weight * guard_failed_group(centred)
        if config.normalisation == "none":
            advantage = centred
        else:
            turns = torch.tensor([t for _, t in where])  # (M,)
            advantage = standardised_memory_advantages(centred, turns, config.normalisation, config.eps)
        if config.credit == "successes":
            advantage = advantage * torch.tensor([group[i].outcome > 0 for i, _ in where])
        return config.weight * advantage


def _memory_before(episode: Episode, turn: int) -> str:
    """The memory that turn ``turn`` was shown and replaced."""
    return episode.turns[turn].observation["memory"]


class MemPOPaper(MemPO):
    """Self-memory policy optimisation in the paper's form."""

    name = "mempo-paper"
    config_class = MemPOPaperConfig
