"""Whether what an algorithm calls advantages is what ``Algorithm.advantages`` promises, checked before it is used.

Invariant: it looks and changes nothing: what passes is handed on as the same object. What is wrong is named with the
algorithm, the turn, what was expected and what was found, so that it is not searched for in the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mempo_env.errors import UserError
from mempo_env.records import Group

from .base import Advantages, TurnKey
from .guards import NonFiniteAdvantageError


def check_advantages(algorithm: str, groups: Sequence[Group], found: object) -> Advantages:
    """Checks the advantages of a batch of groups; those of episodes with an ``error`` are not read, and may be missing.

    Args:
        algorithm: Its name.
        groups: What the advantages are of.
        found: What ``Algorithm.advantages`` gave.

    Returns:
        ``found``.

    Raises:
        UserError: It is no ``Advantages``, a turn is missing or unknown, a turn's advantages are no 1-d floating tensor
            with one value per output token, or a metric is no number.
        NonFiniteAdvantageError: An advantage is not finite.
    """
    said = f"algorithm '{algorithm}': advantages() "
    if not isinstance(found, Advantages):
        raise UserError(f"{said}must return Advantages (mempo_env.algos.base), not {_kind(found)}")
    tokens: object = found.tokens
    if not isinstance(tokens, Mapping):
        raise UserError(
            f"{said}must give tokens as a mapping of (group, episode, turn) to tensors, not {_kind(tokens)}"
        )
    lengths = {
        (g, i, t): None if episode.error is not None else turn.n_output
        for g, group in enumerate(groups)
        for i, episode in enumerate(group)
        for t, turn in enumerate(episode.turns)
    }
    if unknown := [key for key in tokens if key not in lengths]:
        raise UserError(
            f"{said}gave a turn {unknown[0]!r} that was not played; expected keys (group, episode, turn), counted from "
            f"0, of {len(lengths)} turns"
        )
    for key, length in lengths.items():
        if length is not None:
            _check_turn(algorithm, said, key, length, tokens)
    _check_metrics(said, found.metrics)
    return found


def _check_turn(algorithm: str, said: str, key: TurnKey, length: int, tokens: Mapping[TurnKey, object]) -> None:
    where, wanted = f"(group, episode, turn) = {key}", f"a floating tensor of shape ({length},)"
    if key not in tokens:
        raise UserError(f"{said}gave nothing for {where}; expected {wanted}, one value per output token")
    values = tokens[key]
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.shape != (length,):
        raise UserError(f"{said}gave {_kind(values)} for {where}; expected {wanted}, one value per output token")
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteAdvantageError(f"advantage of algorithm '{algorithm}'", key, {"advantages": values.tolist()})


def _check_metrics(said: str, metrics: object) -> None:
    if not isinstance(metrics, Mapping):
        raise UserError(f"{said}must give metrics as a mapping of names to numbers, not {_kind(metrics)}")
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise UserError(f"{said}gave a metric whose name is {name!r}; expected a string")
        if not isinstance(value, int | float):
            raise UserError(f"{said}gave {_kind(value)} for the metric '{name}'; expected a number, such as x.item()")


def _kind(value: object) -> str:
    """Type of a value, of a tensor also element type and shape."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} and shape {tuple(value.shape)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"
