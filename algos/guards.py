"""Guards of an update: a number that is not finite stops it before a weight changes, and its row is kept.

Invariant: whatever is not finite, in log-probabilities, loss or gradient, raises ``NonFiniteError`` before the
optimizer step, and names one turn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mempo_env.records import Group

from ..agents.codec import ChatCodec
from .base import TurnKey
from .optim import Optimizer


class NonFiniteError(FloatingPointError):
    """An update met a number that is not finite.

    Args:
        what: Which number: ``log-probability``, ``loss``, ``critic loss`` or ``gradient``.
        key: The turn it came from.
        values: Per output token of that turn, what the update knew; each (n_output,).
    """

    def __init__(self, what: str, key: TurnKey, values: dict[str, list[float]]) -> None:
        super().__init__(what, key, values)
        self.what = what
        self.key = key
        self.values = values

    def __str__(self) -> str:
        group, rollout, turn = self.key
        return (
            f"training diverged: the {self.what} at group {group}, rollout {rollout}, turn {turn} is not finite; the "
            "weights were left as they were; lower the learning rate"
        )


class NonFiniteAdvantageError(NonFiniteError):
    """An algorithm gave an advantage that is not finite: no update was begun, and no learning rate helps."""

    def __str__(self) -> str:
        group, rollout, turn = self.key
        return (
            f"advantages are not finite: the {self.what} at group {group}, rollout {rollout}, turn {turn}; the weights "
            "were left as they were; look for a division by 0 in it, and at the rewards and scores it is made of"
        )


def check_finite(
    what: str, value: Tensor, mask: Tensor, keys: Sequence[TurnKey], known: Mapping[str, Tensor | None]
) -> None:
    """Checks a micro-batch.

    Args:
        what: What ``value`` is.
        value: (B, O).
        mask: (B, O) True at output tokens; what is elsewhere does not count.
        keys: The turn of each row.
        known: Other (B, O) tensors that explain the value; all go into the error.

    Raises:
        NonFiniteError: A masked value is not finite; of the first such row.
    """
    broken = ((~value.isfinite()) & mask).any(dim=1)  # (B,)
    if not bool(broken.any()):
        return
    row = int(broken.nonzero()[0])
    raise NonFiniteError(what, keys[row], row_values(row, mask, {**known, what.replace(" ", "_"): value}))


def row_values(row: int, mask: Tensor, known: Mapping[str, Tensor | None]) -> dict[str, list[float]]:
    """What is known of one row of a micro-batch, per output token."""
    return {name: value[row][mask[row]].tolist() for name, value in known.items() if value is not None}  # (n_output,)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """The norm of all gradients together; not finite where one of them is not."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0


def row_to_blame(count: int, optimizer: Optimizer, backward: Callable[[int], None]) -> int:
    """Finds the row whose gradient is not finite; where only a sum of rows overflows, the one with the largest.

    Args:
        count: How many rows there are.
        optimizer: Whose gradients are meant; they are empty afterwards.
        backward: Adds the gradient of the row of an index.

    Returns:
        Its index.
    """
    norms = []
    for index in range(count):
        optimizer.zero_grad()
        backward(index)
        norm = gradient_norm(optimizer.all_parameters)
        norms.append(norm if math.isfinite(norm) else math.inf)
    optimizer.zero_grad()
    return max(range(count), key=norms.__getitem__)


def write_failure_row(
    folder: Path, step: int, error: NonFiniteError, groups: Sequence[Group], codec: ChatCodec
) -> Path:
    """Writes the offending row as ``folder/step-<step>.json``.

    Args:
        folder: The run's ``failures`` folder.
        step: The step that failed.
        error: Names the turn.
        groups: The batch of that step.
        codec: Decodes the ids.

    Returns:
        The file. Numbers that are not finite are the strings ``nan``, ``inf`` and ``-inf`` in it.
    """
    g, i, t = error.key
    episode = groups[g][i]
    turn = episode.turns[t]
    record = {
        "step": step,
        "not_finite": error.what,
        "task": {"id": episode.task.id, "text": episode.task.text},
        "group": episode.group_id,
        "rollout": episode.rollout_id,
        "turn": t,
        "seed": episode.seed,
        "return": episode.episode_return,
        "prompt": codec.decode(turn.prompt_ids),
        "output": codec.decode(turn.output_ids),
        "prompt_ids": list(turn.prompt_ids),
        "output_ids": list(turn.output_ids),
        "segments": list(turn.segments),
        "sampler_logprobs": list(turn.logprobs),
        **error.values,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.json"
    path.write_text(json.dumps(_plain(record), indent=1, allow_nan=False), encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    """The same with strings for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
