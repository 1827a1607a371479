"""The turns of a minibatch as rows to train on, each with the weight of its tokens in the objective.

Invariants:
    * the objective is a weighted mean over the output tokens of a minibatch's valid episodes, with weights of the
      algorithm that are fixed before the split into micro-batches; by default the mean over episodes of the mean over
      an episode's tokens (method: 1/|tau_i| counts the whole episode);
    * rows are the ids that the sampler saw and produced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mempo_env.records import Group, Turn

from ..agents.row_batches import TokenRow
from .base import Advantages, TurnKey
from .losses import token_weights

TokenWeights = Callable[[Sequence[int]], tuple[list[float], float]]


@dataclass(frozen=True)
class TrainingRow:
    """One turn as the update sees it.

    Attributes:
        key: Names the turn.
        row: Its ids.
        advantages: (n_output,) per token.
        sampler_logprobs: (n_output,) as the sampler recorded them.
        weight: Weight of each of its tokens in the objective.
    """

    key: TurnKey
    row: TokenRow
    advantages: Tensor
    sampler_logprobs: Tensor
    weight: float


def training_rows(
    groups: Sequence[Group], advantages: Advantages, offset: int = 0, weigh: TokenWeights = token_weights
) -> list[TrainingRow]:
    """Turns of the valid episodes as rows, each token with its weight in the minibatch's mean.

    Args:
        groups: The groups of one minibatch.
        advantages: Of the whole batch.
        offset: Index of the first group within the batch.
        weigh: See ``losses.token_weights``.

    Returns:
        Rows in the order of groups, episodes and turns.

    Raises:
        ValueError: A turn has no ids: it came from a text-only agent.
    """
    total, rows = 0.0, []
    for g, group in enumerate(groups, start=offset):
        for i, episode in enumerate(group):
            if episode.error is not None:
                continue
            weights, mass = weigh([turn.n_output for turn in episode.turns])
            total += mass
            for t, (turn, weight) in enumerate(zip(episode.turns, weights, strict=True)):
                rows.append(_training_row((g, i, t), turn, advantages.tokens[g, i, t], weight))
    return [replace(row, weight=row.weight / total) for row in rows]


def _training_row(key: TurnKey, turn: Turn, advantages: Tensor, weight: float) -> TrainingRow:
    if not turn.has_ids:
        raise ValueError(
            f"turn {key} has no ids: text-only agents cannot be learned from by reinforcement; use imitation"
        )
    return TrainingRow(
        key, TokenRow(turn.prompt_ids, turn.output_ids), advantages.float(), torch.tensor(turn.logprobs), weight
    )
