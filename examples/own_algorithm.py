"""An algorithm of your own, whole: every turn is credited with the rewards that came after it, and only with those.

    G_t = sum_{s >= t} discount^(s-t) r_s          A_t = G_t - mean of G_t over the group's episodes that have a turn t

From the repository: ``PYTHONPATH=examples mempo train --algo own_algorithm:TurnReturns --turn-returns.discount 0.9``.
In a package of yours, an entry point makes it ``--algo turn-returns``:

    [project.entry-points."mempo_env.algos"]
    turn-returns = "own_algorithm:TurnReturns"

``GroupRelative`` brings GRPO's loss and flags; one that differs there too overrides ``token_loss``, or starts from
``mempo_env.algos.base.Algorithm``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mempo_env.algos.algorithm_config import GRPOConfig
from mempo_env.algos.base import Advantages, MemoryScorer
from mempo_env.algos.grpo import GroupRelative
from mempo_env.records import Episode, Group


@dataclass(frozen=True)
class TurnReturnsConfig(GRPOConfig):
    """GRPO's settings, and the discount of later rewards."""

    discount: float = 1.0


class TurnReturns(GroupRelative[TurnReturnsConfig]):
    """Reward to go, compared turn by turn."""

    name, config_class, source = "turn-returns", TurnReturnsConfig, "an example; REINFORCE with reward to go"

    def advantages(self, groups: Sequence[Group], scorer: MemoryScorer) -> Advantages:
        """A_t on every output token of turn t; episodes that ended on a fault have none."""
        tokens = super().advantages(groups, scorer).tokens  # a value for every turn, 0 where an episode has an error
        for g, group in enumerate(groups):
            returns = {i: self.returns(episode) for i, episode in enumerate(group) if episode.error is None}
            for i, own in returns.items():
                for t, value in enumerate(own):
                    same = [other[t] for other in returns.values() if t < len(other)]
                    tokens[g, i, t] = torch.full_like(tokens[g, i, t], value - sum(same) / len(same))  # (n_output,)
        return Advantages(tokens, {"train/turn_return_groups": float(len(groups))})

    def returns(self, episode: Episode) -> list[float]:
        """G_t of each turn."""
        found, after = [], 0.0
        for turn in reversed(episode.turns):
            after = turn.reward + self.config.discount * after
            found.append(after)
        return found[::-1]
