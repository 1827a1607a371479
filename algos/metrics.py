"""Metrics of a step, read off its episodes and its advantages: rewards by part, lengths, format errors, collapse.

docs/metrics.md lists all of them, with those that the update and the algorithms add.

Invariant: names are stable: all kinds of format errors and all segments are there at every step, at 0 where there was
none; what an episode's ``error`` takes away is counted, never averaged in.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mempo_env.actions import FormatErrorKind, Segment
from mempo_env.records import Episode, Group

from .base import Advantages


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
    metrics |= {f"rollout/format_errors/{kind}": kinds[kind] / len(turns) for kind in FormatErrorKind}
    metrics |= {f"rollout/tokens/{s.name.lower()}": segments[s] / len(turns) for s in Segment}
    return metrics


def advantage_metrics(groups: Sequence[Group], advantages: Advantages) -> dict[str, float]:
    """Mean advantage, and mean of its size, over the tokens of each segment.

    Args:
        groups: Everything that was played.
        advantages: Of the same groups; those of episodes with an error do not count.

    Returns:
        Names under ``train/advantage/`` and ``train/advantage_abs/``; a segment without a token is left out.
    """
    values: list[Tensor] = []
    segments: list[int] = []
    for g, group in enumerate(groups):
        for i, episode in enumerate(group):
            for t, turn in enumerate(episode.turns):
                if episode.error is None and turn.has_ids:
                    values.append(advantages.tokens[g, i, t])
                    segments += turn.segments
    if not segments:
        return {}
    every, owner = torch.cat(values).double(), torch.tensor(segments)  # (N,), (N,), N output tokens
    metrics = {}
    for segment in Segment:
        chosen = every[owner == segment]  # (n,)
        if len(chosen):
            metrics[f"train/advantage/{segment.name.lower()}"] = chosen.mean().item()
            metrics[f"train/advantage_abs/{segment.name.lower()}"] = chosen.abs().mean().item()
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
