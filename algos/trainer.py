"""The loop: sample groups, turn them into advantages, update; blind to which algorithm it runs.

The way of the data, each one function in one named place:
task > env > observation > context > sampler > turn > episode (``rollout``) > group (``as_groups``) > advantages per
token (``Algorithm.advantages``) > loss (``Algorithm.token_loss``) > optimizer (``Updater.update``).

Invariants:
    * the tasks and the noise of step s are functions of (seed, s), so that a resumed run sees what the whole one would
      have;
    * what is dropped, truncated, unscored or without variance is counted in the metrics.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from mempo_env.actions import FormatErrorKind, Segment
from mempo_env.records import Episode, Group, Observation

from ..agents.policy import LoraPolicy
from ..agents.rollout import EnvPool, EpisodeSpec, as_groups, rollout
from ..agents.scoring import TokenRow, score_rows
from .base import Algorithm, MemoryScorer
from .update import Updater

EnvFactory = Callable[[], gym.Env[Observation, str]]


def task_seed(seed: int, step: int, index: int) -> int:
    """Seed of a training task, from the run's seed, the step and the task's index; collisions are 1 in 2^31.

    >>> task_seed(0, 0, 0) != task_seed(0, 0, 1)
    True
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass
class StepResult:
    """What one step gave: its groups and its metrics."""

    groups: list[Group]
    metrics: dict[str, float]


class Trainer:
    """Runs steps of reinforcement learning.

    Args:
        policy: What learns.
        algorithm: How it learns.
        envs: Environments to play in.
        scorer: Scores memories for algorithms that ask.
        updater: Applies advantages.
        groups_per_step: Tasks per step.
        group_size: Episodes per task.
        seed: Seed of tasks and noise.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        algorithm: Algorithm[Any],
        envs: EnvPool,
        scorer: MemoryScorer,
        updater: Updater,
        *,
        groups_per_step: int,
        group_size: int,
        seed: int,
    ) -> None:
        self.policy = policy
        self.algorithm = algorithm
        self.envs = envs
        self.scorer = scorer
        self.updater = updater
        self.groups_per_step = groups_per_step
        self.group_size = group_size
        self.seed = seed
        self.steps_done = 0

    def step(self) -> StepResult:
        """Takes one step.

        Returns:
            The groups that were played and the metrics, among them the seconds of each part.
        """
        started, cut_before = time.perf_counter(), self.policy.truncated_prompts
        groups = self.collect(self.steps_done)
        sampled, cut = time.perf_counter(), self.policy.truncated_prompts - cut_before
        advantages = self.algorithm.advantages(groups, self.scorer)
        scored = time.perf_counter()
        metrics = rollout_metrics(groups) | advantages.metrics | self.updater.update(groups, advantages)
        if self.steps_done == 0:
            metrics |= self._sampler_moved(groups)
        metrics |= {
            "rollout/cut_prompts": float(cut),
            "time/sampling_s": sampled - started,
            "time/scoring_s": scored - sampled,
            "time/update_s": time.perf_counter() - scored,
        }
        self.steps_done += 1
        return StepResult(groups, metrics)

    def collect(self, step: int) -> list[Group]:
        """Plays the groups of a step with the current weights."""
        specs = []
        for index in range(self.groups_per_step):
            seed = task_seed(self.seed, step, index)
            specs += [EpisodeSpec(f"{step}/{index}", i, seed) for i in range(self.group_size)]
        return as_groups(rollout(self.policy, self.envs, specs, seed=self.seed, step=step))

    def _sampler_moved(self, groups: Sequence[Group]) -> dict[str, float]:
        """Whether the first update reached the weights that sample: mean change of sampled tokens' log-probability."""
        turns = [turn for group in groups for episode in group for turn in episode.turns if turn.logprobs][:8]
        with self.policy.evaluating():
            now = score_rows(
                self.policy.model,
                [TokenRow(turn.prompt_ids, turn.output_ids) for turn in turns],
                self.policy.codec.pad_id,
                max_tokens=self.updater.micro_batch_tokens,
                temperature=self.policy.temperature,
            )
        change = [
            abs(a - b)
            for row, turn in zip(now, turns, strict=True)
            for a, b in zip(row.tolist(), turn.logprobs, strict=True)
        ]
        return {"train/sampler_moved": sum(change) / max(len(change), 1)}

    def state_dict(self) -> dict[str, Any]:
        """Task cursor, optimizer, algorithm, version of the weights."""
        return {
            "steps_done": self.steps_done,
            "weights_version": self.policy.weights_version,
            "optimizer": self.updater.optimizer.state_dict(),
            "algorithm": self.algorithm.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict``."""
        self.steps_done = int(state["steps_done"])
        self.policy.weights_version = int(state["weights_version"])
        self.updater.optimizer.load_state_dict(state["optimizer"])
        self.algorithm.load_state_dict(state["algorithm"])


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Metrics of the episodes of a step: rewards by part, scores, lengths by segment, format errors, collapse.

    Args:
        groups: Everything that was played, errors included.

    Returns:
        Names under ``rollout/`` and ``memory/``; means are over valid episodes or their turns.
    """
    episodes = [episode for group in groups for episode in group]
    valid = [episode for episode in episodes if episode.error is None]
    metrics = {
        "rollout/episodes": float(len(episodes)),
        "rollout/errors": float(len(episodes) - len(valid)),
    }
    if not valid:
        return metrics
    turns = [turn for episode in valid for turn in episode.turns]

    def per_episode(value: Callable[[Episode], float]) -> float:
        return sum(map(value, valid)) / len(valid)

    parts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    segments: Counter[int] = Counter()
    for turn in turns:
        parts.update(turn.reward_components)
        segments.update(turn.segments)
        if turn.format_error is not None:
            kinds[turn.format_error.kind] += 1
    metrics |= {
        "rollout/return": per_episode(lambda e: e.episode_return),
        "rollout/outcome": per_episode(lambda e: e.outcome),
        "rollout/em": per_episode(lambda e: e.scores.get("em", 0.0)),
        "rollout/f1": per_episode(lambda e: e.scores.get("f1", 0.0)),
        "rollout/f1_standard_error": _standard_error_over_tasks(groups),
        "rollout/success": per_episode(lambda e: e.scores.get("success", 0.0)),
        "rollout/truncated": per_episode(lambda e: float(e.truncated)),
        "rollout/turns": per_episode(lambda e: float(len(e.turns))),
        "rollout/tool_calls": per_episode(lambda e: float(str(e.turns[-1].info.get("tool_calls", 0)))),
        "rollout/output_tokens": per_episode(lambda e: float(e.n_output)),
        "rollout/prompt_tokens_per_turn": sum(turn.n_prompt for turn in turns) / len(turns),
        "rollout/format_errors": sum(kinds.values()) / len(turns),
        "rollout/cut_outputs": sum(turn.info.get("stop_reason") == "length" for turn in turns) / len(turns),
        "memory/written": sum(turn.memory_written for turn in turns) / len(turns),
        "memory/truncated": sum(bool(turn.info.get("memory_truncated")) for turn in turns) / len(turns),
        "memory/distinct": _distinct_memories(groups),
    }
    metrics |= {f"rollout/reward/{name}": value / len(valid) for name, value in parts.items()}
    metrics |= {f"rollout/format_errors/{kind}": kinds[kind] / len(turns) for kind in FormatErrorKind if kinds[kind]}
    metrics |= {f"rollout/tokens/{s.name.lower()}": segments[s] / len(turns) for s in Segment}
    return metrics


def _standard_error_over_tasks(groups: Sequence[Group]) -> float:
    """Standard error of mean F1, over tasks: episodes of one group are not independent."""
    means = []
    for group in groups:
        scores = [episode.scores.get("f1", 0.0) for episode in group if episode.error is None]
        if scores:
            means.append(sum(scores) / len(scores))
    return statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0


def _distinct_memories(groups: Sequence[Group]) -> float:
    """Share of tasks whose last memories no other task has: a collapse to a template shows here (after RAGEN-2)."""
    finals = [{episode.turns[-1].memory for episode in group if episode.turns} for group in groups]
    counts = Counter(memory for memories in finals for memory in memories)
    unshared = [memories for memories in finals if all(counts[memory] == 1 for memory in memories)]
    return len(unshared) / len(finals)
