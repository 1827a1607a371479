"""What each estimator of the memory advantage would say of the same memories.

A policy plays groups as a training step would, on tasks that no step of training has; every memory is scored once, and
each estimator turns the same scores into A^M. Beside them stands what A^M should not depend on (length of the result
that was shown, number of calls) and what it should (facts held).

Invariant: estimators differ by baseline and normalisation alone: weight 1, and every episode's memories are credited.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mempo_env.agents.codec import CodecTokenCounter
from mempo_env.agents.policy import LoraPolicy
from mempo_env.algos.algorithm_config import MemPOConfig
from mempo_env.algos.base import MemoryScorer, episode_returns, valid_episodes
from mempo_env.algos.config import RunConfig
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.job import make_trainer
from mempo_env.algos.memory_baselines import GroupMemories, comparable_memories, score_memories
from mempo_env.algos.mempo import MemPO
from mempo_env.records import Episode, Group

from .analysis import calls_before, facts_held, facts_shown, rounded

PROBE_STEP = 1 << 19
"""Number of the step whose tasks are played: beyond every step of training, below the warm start's."""
ESTIMATORS = {
    "reference": MemPOConfig(baseline="reference", credit="all"),
    "leave_one_out": MemPOConfig(baseline="leave_one_out", credit="all"),
    "empty_memory": MemPOConfig(baseline="empty_memory", credit="all"),
    "frozen_reference": MemPOConfig(baseline="frozen_reference", credit="all"),
    "old_memory": MemPOConfig(baseline="old_memory", credit="all"),
    "old_memory, pooled": MemPOConfig(baseline="old_memory", normalisation="pooled", credit="all"),
    "old_memory, per_turn": MemPOConfig(baseline="old_memory", normalisation="per_turn", credit="all"),
}


class RememberingScorer:
    """A scorer that answers a question it was asked before from memory; for weights that do not change.

    Args:
        scorer: Who is asked.
    """

    def __init__(self, scorer: MemoryScorer) -> None:
        self.scorer = scorer
        self.known: dict[tuple[str, str], float] = {}

    def memory_quality(self, items: Sequence[tuple[Episode, str]]) -> Tensor:
        """Q(m) of each (episode, memory): float64 (M,)."""
        keys = [(episode.task.id, memory) for episode, memory in items]
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in self.known}
        if missing:
            found = self.scorer.memory_quality(list(missing.values())).tolist()
            self.known |= dict(zip(missing, found, strict=True))
        return torch.tensor([self.known[key] for key in keys], dtype=torch.float64)  # (M,)

    def history_quality(self, items: Sequence[tuple[Episode, int]]) -> Tensor:
        """Not remembered."""
        return self.scorer.history_quality(items)

    def reference_quality(self, groups: Sequence[Group], episodes: int) -> list[Tensor]:
        """Not remembered."""
        return self.scorer.reference_quality(groups, episodes)


def probe(config: RunConfig, policy: LoraPolicy, run: Path) -> dict[str, Any]:
    """Plays one step's groups and lets every estimator judge them.

    Args:
        config: A run of reinforcement learning.
        policy: Who plays, with whatever weights it has.
        run: Its folder; nothing is written.

    Returns:
        ``memories``: columns with one entry per memory; ``groups``: how many there were, how many failed throughout,
        how many had no spread in returns.
    """
    algorithm = GRPO()
    trainer = make_trainer(config, policy, algorithm, run)
    with trainer.envs:
        groups = trainer.collect(PROBE_STEP)
        memories, scorer = comparable_memories(groups), RememberingScorer(trainer.scorer)
        found: dict[str, list[Any]] = {name: [] for name in ESTIMATORS}
        quality: list[float] = []
        for name, estimator in ESTIMATORS.items():
            scores = score_memories(memories, estimator, scorer) if memories else []
            for m, s in zip(memories, scores, strict=True):
                found[name] += map(rounded, MemPO(estimator).memory_advantages(m, s).tolist())
                if name == "reference":
                    quality += map(rounded, s.quality.tolist())
    counter = CodecTokenCounter(policy.codec)
    table = [_circumstances(m, counter, algorithm) for m in memories]
    columns = {name: [value for part in table for value in part[name]] for name in (table[0] if table else {})}
    valid = [[episode for episode in group if episode.error is None] for group in groups]
    return {
        "memories": columns | {"quality": quality} | found,
        "groups": {
            "all": len(groups),
            "failed": sum(all(episode.outcome <= 0 for episode in group) for group in valid),
            "without_variance": sum(len({episode.episode_return for episode in group}) < 2 for group in valid),
        },
    }


def _circumstances(memories: GroupMemories, counter: CodecTokenCounter, algorithm: GRPO) -> dict[str, list[float]]:
    """Of each memory of a group: where it was written, what had been shown, what it holds, A^T of its episode."""
    group = memories.group
    returns = algorithm.trajectory_advantages(episode_returns(group), valid_episodes(group)).tolist()  # (N,)
    table: dict[str, list[float]] = {}
    for i, t in memories.where:
        episode, turn = group[i], group[i].turns[t]
        task, before = episode.task, episode.turns[t - 1].memory if t else ""
        shown = set[tuple[int, int]]().union(
            *(facts_shown(earlier.observation["tool_result"], task) for earlier in episode.turns[: t + 1])
        )
        held, had = facts_held(turn.memory, task), facts_held(before, task)
        row = {
            "group": memories.index,
            "rollout": i,
            "turn": t,
            "calls": calls_before(episode, t),
            "result_tokens": counter.count(turn.observation["tool_result"]),
            "memory_tokens": counter.count(turn.memory),
            "facts_shown": len(shown),
            "facts_held": len(held),
            "had": len(had),
            "kept": len(had & held),
            "trajectory": rounded(returns[i]),
        }
        for name, value in row.items():
            table.setdefault(name, []).append(value)
    return table
