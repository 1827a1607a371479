"""PPO: proximal policy optimisation (Schulman et al., arXiv 1707.06347) with a critic, over episodes of many turns.

The actions of an episode tau_i are its output tokens a_1 .. a_T, turn after turn, T = |tau_i|. Before each stands a
state s_n: what the model saw, its turn's own prompt and the output so far. A turn's reward falls on its last token:

    r_n = (reward of the turn, on its last token)  -  beta (log pi_old(a_n|s_n) - log pi_ref(a_n|s_n))     kl_in=reward

    delta_n = r_n + gamma V_old(s_{n+1}) - V_old(s_n),    V_old(s_{T+1}) = 0
    A_n     = sum_k (gamma lam)^k delta_{n+k}                                       GAE, arXiv 1506.02438, eq. 16
    R_n     = A_n + V_old(s_n)

    maximise  mean_i (1/|tau_i|) sum_n [ min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)
                                         - beta KL(pi || pi_ref) ]                                           kl_in=loss
    minimise  mean_i (1/|tau_i|) sum_n  c/2 max( (V - R)^2, (V_old + clip(V - V_old, +-value_clip) - R)^2 )

with rho = pi / pi_old and A whitened over the batch's tokens. ``_old`` is before the batch's first step. V is a linear
head on the policy's base under an adapter of its own, ``critic``. The means are the updater's, for both losses.

The last token of a turn is followed by the first of the next, whose state shows the environment's answer. After the
last of all nothing follows, V_old = 0, also where the turn limit cut the episode: the limit is part of the task (the
observation's budget line counts the calls down), such an episode has earned what it has earned; verl and TRL do so too.

Logged as token means: ``train/value_mean`` (V_old), ``train/returns_mean`` (R), ``train/critic_loss``,
``train/value_clip_share`` (where the value clip took the gradient away), ``train/kl`` (k3, for either ``kl_in``); and
``train/explained_variance``, 1 - Var(R - V_old) / Var(R), left out where R does not vary.

Invariant: an episode with an ``error`` has advantage 0 and enters neither the whitening nor the critic's loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mempo_env.records import Group

from ..agents.policy import LoraPolicy
from ..agents.row_batches import TokenRow
from ..agents.scoring import score_rows
from .base import Advantages, Algorithm, MemoryScorer, TokenBatch, TurnKey
from .critic import Critic
from .gae import clipped_value_loss, explained_variance, gae, turn_rewards, whiten
from .losses import clipped_surrogate, kl_k3
from .ppo_config import PPOConfig


class PPO(Algorithm[PPOConfig]):
    """Proximal policy optimisation."""

    name = "ppo"
    config_class: ClassVar[type] = PPOConfig
    source = "Schulman et al., PPO, arXiv 1707.06347"
    critic_adapter = "critic"

    def setup(self, policy: LoraPolicy) -> None:
        """Adds the critic."""
        self.policy, self.critic = policy, Critic(policy, self.critic_adapter)
        self.old_values: dict[TurnKey, Tensor] = {}
        self.returns: dict[TurnKey, Tensor] = {}

    def advantages(self, groups: Sequence[Group], scorer: MemoryScorer) -> Advantages:  # noqa: ARG002
        """GAE over each episode's output tokens; records V_old and R of the batch for ``critic_loss``."""
        config = self.config
        every = {(g, i): episode for g, group in enumerate(groups) for i, episode in enumerate(group)}
        valid = {where: episode for where, episode in every.items() if episode.error is None}
        keys = [(g, i, t) for (g, i), episode in valid.items() for t in range(len(episode.turns))]
        turns = [turn for episode in valid.values() for turn in episode.turns]
        rows = [TokenRow(turn.prompt_ids, turn.output_ids) for turn in turns]
        sizes = [len(row.output_ids) for row in rows]
        zero = {(g, i, t): torch.zeros(turn.n_output) for (g, i), e in every.items() for t, turn in enumerate(e.turns)}
        if not rows:
            return Advantages(zero)
        v_old = torch.cat(self.critic.score(rows, max_tokens=self.micro_batch_tokens)).double()  # (N,), all tokens
        kl, metrics = self._kl_to_reference(rows)  # (N,)
        r = turn_rewards([turn.reward for turn in turns], sizes) - config.beta * kl  # (N,)
        lengths = [episode.n_output for episode in valid.values()]
        found = [
            gae(r_i, v_i, gamma=config.gamma, lam=config.lam)  # (T,), (T,)
            for r_i, v_i in zip(torch.split(r, lengths), torch.split(v_old, lengths), strict=True)
        ]
        a, returns = (torch.cat(part) for part in zip(*found, strict=True))  # (N,), (N,)
        explained = explained_variance(v_old, returns)
        metrics |= {"train/value_mean": v_old.mean().item(), "train/returns_mean": returns.mean().item()}
        metrics |= {} if explained is None else {"train/explained_variance": explained}

        def by_turn(tokens: Tensor) -> dict[TurnKey, Tensor]:
            return dict(zip(keys, torch.split(tokens.float(), sizes), strict=True))  # (n_output,) each

        self.old_values, self.returns = by_turn(v_old), by_turn(returns)
        return Advantages(zero | by_turn(whiten(a) if config.whiten else a), metrics)

    def token_loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """-min(rho A, clip(rho) A), and with ``kl_in="loss"`` + beta KL, per token."""
        config = self.config
        loss, clipped = clipped_surrogate(
            batch.logprobs, batch.old_logprobs, batch.advantages, config.clip_low, config.clip_high
        )
        logged = {"train/clip_share": clipped.float()}
        if batch.reference_logprobs is not None:
            kl = kl_k3(batch.logprobs, batch.reference_logprobs)  # (B, O)
            loss = loss + config.beta * kl
            logged["train/kl"] = kl.detach()
        return loss, logged

    def critic_loss(
        self,
        policy: LoraPolicy,  # noqa: ARG002
        batch: TokenBatch,
        keys: Sequence[TurnKey],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped squared error of V, per token."""
        v_old, returns = (
            nn.utils.rnn.pad_sequence([turns[key] for key in keys], batch_first=True).to(batch.logprobs.device)
            for turns in (self.old_values, self.returns)
        )  # (B, O), (B, O)
        loss, clipped = clipped_value_loss(self.critic.values(batch.rows), v_old, returns, self.config.value_clip)
        return self.config.value_coef * loss, {"train/value_clip_share": clipped.float()}

    def _kl_to_reference(self, rows: Sequence[TokenRow]) -> tuple[Tensor, dict[str, float]]:
        """The reward's log pi_old - log pi_ref of each token (N,), or 0 where it takes none; and the k3 mean to log."""
        if self.config.beta == 0 or self.config.kl_in == "loss":
            return torch.zeros((), dtype=torch.float64), {}

        def logprobs() -> Tensor:
            pad, temperature = self.policy.codec.pad_id, self.policy.temperature
            with self.policy.evaluating():
                return torch.cat(
                    score_rows(
                        self.policy.model, rows, pad, max_tokens=self.micro_batch_tokens, temperature=temperature
                    )
                )  # (N,)

        old = logprobs()  # (N,)
        with self.policy.use_adapter(self.policy.reference_adapter):
            reference = logprobs()  # (N,)
        return (old - reference).double(), {"train/kl": kl_k3(old, reference).mean().item()}

    @property
    def needs_reference(self) -> bool:
        """The loss needs pi_ref only where the KL term stands in it."""
        return self.config.kl_in == "loss" and self.config.beta > 0

    @property
    def needs_all_turns(self) -> bool:
        """The critic learns from every turn."""
        return True

    # The critic's parameters and state --------------------------------------------------------------------------------

    def extra_parameters(self) -> Iterable[nn.Parameter]:
        """The value head's."""
        return self.critic.head.parameters()

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        """The value head's and the critic adapter's."""
        return self.critic.parameters()

    @property
    def critic_lr_factor(self) -> float:
        """As configured."""
        return self.config.critic_lr_factor

    def state_dict(self) -> dict[str, object]:
        """The value head."""
        return {"head": self.critic.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores ``state_dict``."""
        self.critic.load_state_dict(state["head"])  # type: ignore[arg-type]
