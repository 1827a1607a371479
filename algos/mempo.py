"""MemPO: GRPO plus a memory-level advantage on memory tokens (Li et al., arXiv 2603.00680).

    Q(m)  = exp( (1/L) sum_l log pi(a_l | task, m, a_<l) )            quality of memory m for the gold answer a
    R^M_t = Q(m_t) - b_t                                              b_t by ``baseline``
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

Where = tuple[int, int]
"""A memory of a group: (episode within the group, turn)."""


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
        memories = {g: where for g, group in enumerate(groups) if (where := _memories(group))}
        metrics = trajectory.metrics | {
            "memory/scored": float(sum(map(len, memories.values()))),
            "memory/groups_without_comparison": (len(groups) - len(memories)) / max(len(groups), 1),
        }
        if not memories:
            return replace(trajectory, metrics=metrics)
        quality, compared = self._scores([(groups[g][i], t) for g, where in memories.items() for i, t in where], scorer)
        sizes = [len(where) for where in memories.values()]
        tokens, baselines, advantages = dict(trajectory.tokens), [], []
        for (g, where), q, b in zip(
            memories.items(), torch.split(quality, sizes), torch.split(compared, sizes), strict=True
        ):
            baseline, has_baseline = self._baseline(where, q, b)  # (M,), (M,)
            advantage = self._memory_advantage(groups[g], where, q, baseline, has_baseline)  # (M,)
            for (i, t), value in zip(where, advantage.tolist(), strict=True):
                segments = torch.tensor(groups[g][i].turns[t].segments)  # (n_output,)
                tokens[g, i, t] = tokens[g, i, t] + value * (segments == Segment.MEMORY)  # (n_output,)
            baselines.append(baseline)
            advantages.append(advantage)
        every = torch.cat(advantages)
        metrics |= {
            "memory/quality": quality.mean().item(),
            "memory/quality_above_0.8": (quality > 0.8).double().mean().item(),
            "memory/baseline": torch.cat(baselines).mean().item(),
            "memory/advantage_abs": every.abs().mean().item(),
            "memory/advantage_std": every.std().item(),
        }
        return replace(trajectory, tokens=tokens, metrics=metrics)

    def _scores(self, turns: Sequence[tuple[Episode, int]], scorer: MemoryScorer) -> tuple[Tensor, Tensor]:
        """Q(m) of each turn's memory (M,), and the scores that the baseline is made of (M,), for the whole batch.

        Memories go to the scorer in one call, which computes equal questions once: most old memories are the new ones
        of the turn before.
        """
        written = [(episode, episode.turns[t].memory) for episode, t in turns]
        if self.config.baseline == "reference":
            quality = scorer.memory_quality(written)
            return quality, quality
        if self.config.baseline == "history":
            return scorer.memory_quality(written), scorer.history_quality(turns)
        old = self.config.baseline == "old_memory"
        other = [(episode, _memory_before(episode, t) if old else "") for episode, t in turns]
        both = scorer.memory_quality([*written, *other])  # (2 M,)
        return both[: len(turns)], both[len(turns) :]

    def _baseline(self, where: list[Where], quality: Tensor, compared: Tensor) -> tuple[Tensor, Tensor]:
        """The baseline b of each memory of a group (M,), and whether there is one (M,)."""
        if self.config.baseline == "reference":
            return leave_one_out_mean(quality, torch.tensor([i for i, _ in where]))
        return compared, torch.ones(len(where), dtype=torch.bool)

    def _memory_advantage(
        self, group: Group, where: list[Where], quality: Tensor, baseline: Tensor, has_baseline: Tensor
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


def _memories(group: Group) -> list[Where]:
    """The memories of a group's valid episodes; none where there is nothing to compare."""
    valid = [i for i, episode in enumerate(group) if episode.error is None]
    where = [(i, t) for i in valid for t, turn in enumerate(group[i].turns) if turn.memory_written]
    return where if len(valid) > 1 and len(where) > 1 else []


def _memory_before(episode: Episode, turn: int) -> str:
    """The memory that turn ``turn`` was shown and replaced."""
    return episode.turns[turn].observation["memory"]


class MemPOPaper(MemPO):
    """Self-memory policy optimisation in the paper's form."""

    name = "mempo-paper"
    config_class = MemPOPaperConfig
