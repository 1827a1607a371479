"""GRPO: group relative policy optimisation (Shao et al., arXiv 2402.03300), over episodes of many turns.

For a group of N episodes tau_i of one task, with returns R^T_i (the sum of the turns' rewards):

    A^T_i = (R^T_i - mean_j R^T_j) / (std_j R^T_j + eps)                                 on every output token

    maximise  mean_i (1/|tau_i|) sum_{tokens of tau_i} [ min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)
                                                         - beta KL(pi || pi_ref) ]

with rho = pi / pi_old per token, |tau_i| the output tokens of the whole episode, and KL by the k3 estimator. Its
relatives differ by a setting each:

    Dr. GRPO   A^T_i = R^T_i - mean_j R^T_j                             ``normalise_std=False``
               1/|tau_i| becomes 1/divisor                              ``aggregation="constant"``
    RLOO       A^T_i = R^T_i - mean_{j != i} R^T_j                      ``return_baseline="leave_one_out"``
    DAPO       clip_high above clip_low                                 ``clip_high``
               mean over all tokens of the minibatch                    ``aggregation="token"``
    GSPO       rho = exp(mean over a turn's tokens of log pi/pi_old)    ``ratio="sequence"``
               mean over turns of the mean over a turn's tokens         ``aggregation="sequence"``

The mean over tokens and episodes is the updater's, with the weights of ``token_weights``, since it must not depend on
how rows are split into batches.

Invariant: A^T is computed over episodes, never over turns, so that duplicating an episode's rows changes no advantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from mempo_env.records import Group

from .advantages import group_advantages, leave_one_out_advantages
from .algorithm_config import GRPOConfig
from .base import Advantages, Algorithm, MemoryScorer, TokenBatch, TurnKey, episode_returns, valid_episodes
from .losses import clipped_surrogate, kl_k3, token_weights

G = TypeVar("G", bound=GRPOConfig)


class GroupRelative(Algorithm[G]):
    """What GRPO and its descendants share: A^T on every token, the clipped loss, the KL term."""

    compares_group = True

    def advantages(self, groups: Sequence[Group], scorer: MemoryScorer) -> Advantages:  # noqa: ARG002
        """A^T of each episode, on every output token of its turns."""
        tokens: dict[TurnKey, Tensor] = {}
        flat, sizes = 0, []
        for g, group in enumerate(groups):
            valid = valid_episodes(group)  # (N,)
            advantage = self.trajectory_advantages(episode_returns(group), valid)  # (N,)
            flat += not bool(advantage.any())
            sizes.append(int(valid.sum()))
            for i, episode in enumerate(group):
                for t, turn in enumerate(episode.turns):
                    tokens[g, i, t] = torch.full((turn.n_output,), float(advantage[i]))  # (n_output,)
        metrics = {
            "train/groups_without_variance": flat / max(len(groups), 1),
            "train/groups_of_one": sum(size < 2 for size in sizes) / max(len(groups), 1),
            "train/group_size": sum(sizes) / max(len(sizes), 1),
        }
        return Advantages(tokens, metrics)

    def trajectory_advantages(self, returns: Tensor, valid: Tensor) -> Tensor:
        """A^T of a group's episodes (N,), 0 where ``valid`` (N,) is False."""
        config = self.config
        if config.return_baseline == "leave_one_out":
            return leave_one_out_advantages(returns, valid)
        return group_advantages(returns, valid, normalise_std=config.normalise_std, eps=config.eps)

    def token_loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """-min(rho A, clip(rho) A) + beta KL, per token."""
        config = self.config
        loss, clipped = clipped_surrogate(
            batch.logprobs,
            batch.old_logprobs,
            batch.advantages,
            config.clip_low,
            config.clip_high,
            sequence_mask=batch.rows.mask if config.ratio == "sequence" else None,
        )  # (B, O), (B, O)
        logged = {"train/clip_share": clipped.float()}
        if batch.reference_logprobs is not None:
            kl = kl_k3(batch.logprobs, batch.reference_logprobs)  # (B, O)
            loss = loss + config.beta * kl
            logged["train/kl"] = kl.detach()
        return loss, logged

    def token_weights(self, lengths: Sequence[int]) -> tuple[list[float], float]:
        """1/|tau_i|, or what ``aggregation`` puts in its place."""
        return token_weights(lengths, self.config.aggregation, self.config.divisor)

    @property
    def needs_reference(self) -> bool:
        """The KL term needs pi_ref; without it the reference pass is skipped."""
        return self.config.beta > 0


class GRPO(GroupRelative[GRPOConfig]):
    """Group relative policy optimisation."""

    name = "grpo"
    config_class: ClassVar[type] = GRPOConfig
    source = "Shao et al., DeepSeekMath, arXiv 2402.03300"
