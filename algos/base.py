"""What an algorithm is to the trainer, which is blind to its name.

An algorithm turns groups of episodes into per-token advantages (``advantages``) and per-token tensors into a per-token
loss (``token_loss``). One that brings a critic (PPO) adds parameters in ``setup`` and a second loss in ``critic_loss``,
which the updater runs forward and backward on its own, after the policy's, under the critic's adapter.

Invariants:
    * ``advantages`` gives one value per output token of every turn of every episode, 0 for episodes with an ``error``;
      the trainer checks it (``advantage_check``);
    * a forward pass and its backward pass happen under one adapter: the updater switches, algorithms never do;
    * class defaults are published settings; nothing outside an algorithm's own file branches on its name.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from mempo_env.errors import UserError
from mempo_env.records import Episode, Group

from ..agents.policy import LoraPolicy
from ..agents.row_batches import RowBatch
from . import ALGORITHMS
from .losses import token_weights

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

    def reference_quality(self, groups: Sequence[Group], episodes: int) -> list[Tensor]:
        """Q of the memories that the frozen reference policy writes on each group's task, in so many episodes.

        Returns:
            Per group float64 (K,), one Q per memory; K is 0 where none was written.
        """
        ...


C = TypeVar("C")


class Algorithm(ABC, Generic[C]):
    """Base of all algorithms that learn from groups of episodes.

    Args:
        config: An instance of ``config_class``; None takes the defaults.

    Attributes:
        name: What checkpoints, flags and reports call it.
        config_class: Dataclass of its settings; the defaults are the published ones.
        source: Where it was published.
        rewards_memory: Whether it needs memories to reward; a job refuses it where the environment stores none.
        compares_group: Whether it learns from the differences within a group alone; a job refuses groups of one.
        critic_adapter: Adapter under which ``critic_loss`` runs forward and backward; None: the policy's own.
        micro_batch_tokens: Padded tokens of a forward pass of the algorithm's own; the updater sets it to its own.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]
    source: ClassVar[str]
    rewards_memory: ClassVar[bool] = False
    compares_group: ClassVar[bool] = False
    critic_adapter: str | None = None
    micro_batch_tokens: int = 16384

    def __init__(self, config: C | None = None) -> None:
        self.config: C = config if config is not None else self.config_class()

    @abstractmethod
    def advantages(self, groups: Sequence[Group], scorer: MemoryScorer) -> Advantages:
        """Per-token advantages of a batch of groups: finite, for each turn a floating tensor (n_output,)."""

    @abstractmethod
    def token_loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Per-token loss (B, O) to be averaged by the trainer, and (B, O) quantities to log as token means."""

    @property
    def needs_reference(self) -> bool:
        """Whether ``token_loss`` needs ``reference_logprobs``."""
        return False

    @property
    def needs_all_turns(self) -> bool:
        """Whether turns without any advantage must be trained on too (a KL term, an entropy bonus, a critic)."""
        return self.needs_reference

    def token_weights(self, lengths: Sequence[int]) -> tuple[list[float], float]:
        """How an episode whose turns have these lengths enters a minibatch's mean; see ``losses.token_weights``."""
        return token_weights(lengths)

    # Where a critic plugs in ------------------------------------------------------------------------------------------

    def setup(self, policy: LoraPolicy) -> None:
        """Adds what the algorithm needs, such as a critic's adapter on the policy's base and a value head.

        Whatever of an added adapter asks for a gradient is trained, and every adapter is in the checkpoints.
        """

    def extra_parameters(self) -> Iterable[torch.nn.Parameter]:
        """Parameters outside the policy's model that the optimizer steps, such as a value head's."""
        return ()

    def critic_parameters(self) -> Iterable[torch.nn.Parameter]:
        """Those of the trained parameters that are a critic's: their gradient is clipped apart from the policy's."""
        return ()

    @property
    def critic_lr_factor(self) -> float:
        """Learning rate of ``critic_parameters`` as a multiple of the policy's."""
        return 1.0

    def critic_loss(
        self,
        policy: LoraPolicy,  # noqa: ARG002
        batch: TokenBatch,  # noqa: ARG002
        keys: Sequence[TurnKey],  # noqa: ARG002
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Per-token loss (B, O) of a critic and (B, O) quantities to log as token means, or None.

        It is called under ``critic_adapter``, and run backward before the updater switches back; it must not switch
        adapters itself. The mask and the weights of the objective are the updater's.

        Args:
            policy: The model to compute with.
            batch: One micro-batch; the policy's own graph is gone by then, so its ``logprobs`` carry no gradient.
            keys: The turn of each row.
        """
        return None

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint must hold beside the adapters: tensors, numbers, strings, and lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores ``state_dict``."""


def get_algorithm(name: str) -> type[Algorithm[Any]]:
    """Looks an algorithm up and checks that it is one.

    Args:
        name: A registered name, or ``package.module:Class``.

    Returns:
        The class.

    Raises:
        UserError: The name is unknown, or what it stands for is no algorithm.
    """
    found: object = ALGORITHMS.get(name)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(
            f"algorithm '{name}' is no subclass of mempo_env.algos.base.Algorithm; give the class, or one of "
            f"{', '.join(ALGORITHMS.names())}"
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise UserError(f"algorithm '{name}' is not complete; define {missing}")
    unset = [field for field in ("name", "config_class", "source") if not hasattr(found, field)]
    if unset or not is_dataclass(found.config_class):
        raise UserError(
            f"algorithm '{name}' must set {', '.join(unset) or 'config_class to a dataclass of its settings'}"
        )
    return found


def valid_episodes(group: Group) -> Tensor:
    """(N,) True for the episodes that count: those without an infrastructure fault."""
    return torch.tensor([episode.error is None for episode in group])


def episode_returns(group: Group) -> Tensor:
    """(N,) float64 returns R^T, the sums of the turns' rewards."""
    return torch.tensor([episode.episode_return for episode in group], dtype=torch.float64)
