"""What an algorithm is to the trainer, which is blind to its name.

An algorithm turns groups of episodes into per-token advantages (``advantages``) and per-token tensors into a per-token
loss (``token_loss``). One that brings a critic (PPO) adds parameters in ``setup`` and a second loss in ``critic_loss``,
which the trainer runs backward on its own, after the policy's.

Invariants:
    * ``advantages`` gives one value per output token of every turn of every episode, 0 for episodes with an ``error``;
    * class defaults are published settings; nothing outside an algorithm's own file branches on its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from mempo_env.records import Episode, Group

from ..agents.policy import LoraPolicy
from ..agents.scoring import RowBatch

TurnKey = tuple[int, int, int]
"""Names a turn in a batch of groups: (group, episode within the group, turn)."""


@dataclass(frozen=True)
class Advantages:
    """Per-token advantages of a batch of groups.

    Attributes:
        tokens: For each turn a float32 (n_output,) tensor.
        metrics: What to log: sums and shares over the batch.
    """

    tokens: dict[TurnKey, Tensor]
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch as the loss sees it; all tensors (B, O).

    Attributes:
        rows: The ids, with ``rows.mask`` True at output tokens.
        logprobs: log pi of the current weights, with gradient.
        old_logprobs: log pi that the ratio is taken against.
        reference_logprobs: log pi_ref, or None where no reference is needed.
        advantages: Per token.
    """

    rows: RowBatch
    logprobs: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor | None
    advantages: Tensor


class MemoryScorer(Protocol):
    """Scores memories and histories by the probability of the gold answers (see ``memory_reward``)."""

    def memory_quality(self, items: Sequence[tuple[Episode, str]]) -> Tensor:
        """Q(m) for each (episode, memory): float64 (M,)."""
        ...

    def history_quality(self, items: Sequence[tuple[Episode, int]]) -> Tensor:
        """P(answer | everything seen before the output of turn t) for each (episode, t): float64 (M,)."""
        ...


C = TypeVar("C")


class Algorithm(ABC, Generic[C]):
    """Base of all algorithms that learn from groups of episodes.

    Args:
        config: An instance of ``config_class``; None takes the defaults.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]
    source: ClassVar[str]

    def __init__(self, config: C | None = None) -> None:
        self.config: C = config if config is not None else self.config_class()

    @abstractmethod
    def advantages(self, groups: Sequence[Group], scorer: MemoryScorer) -> Advantages:
        """Per-token advantages of a batch of groups."""

    @abstractmethod
    def token_loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Per-token loss (B, O) to be averaged by the trainer, and (B, O) quantities to log as token means."""

    @property
    def needs_reference(self) -> bool:
        """Whether ``token_loss`` needs ``reference_logprobs``."""
        return False

    @property
    def needs_all_turns(self) -> bool:
        """Whether turns without any advantage must be trained on all the same (a KL term, an entropy bonus)."""
        return self.needs_reference

    # Where a critic plugs in ------------------------------------------------------------------------------------------

    def setup(self, policy: LoraPolicy) -> None:
        """Adds what the algorithm needs on the policy's base, such as a critic's adapter and value head."""

    def extra_parameters(self) -> Iterable[torch.nn.Parameter]:
        """Parameters beside the policy's adapter that the optimizer steps."""
        return ()

    def critic_loss(self, policy: LoraPolicy, batch: TokenBatch, keys: Sequence[TurnKey]) -> Tensor | None:  # noqa: ARG002
        """Per-token loss (B, O) of a critic, or None. Runs backward on its own: adapters must not switch in between."""
        return None

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint must hold beside the policy's adapter."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores ``state_dict``."""


def valid_episodes(group: Group) -> Tensor:
    """(N,) True for the episodes that count: those without an infrastructure fault."""
    return torch.tensor([episode.error is None for episode in group])


def episode_returns(group: Group) -> Tensor:
    """(N,) float64 returns R^T, the sums of the turns' rewards."""
    return torch.tensor([episode.episode_return for episode in group], dtype=torch.float64)
