"""From episodes and advantages to gradients: rows, weights, micro-batches, one optimizer step per minibatch.

Invariants:
    * the objective is the weighted mean of ``training_rows``, whatever the split into micro-batches;
    * minibatches are cut by groups; the number of optimizer steps does not depend on the number of turns;
    * a number that is not finite stops the update before the optimizer step, and its row is named (``guards``);
    * among several processes each learns from its own groups, and the summed gradient is the one of a single process.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mempo_env.records import Group

from ..agents.policy import LoraPolicy
from ..agents.recompute import layers_recomputed
from ..agents.row_batches import collate, micro_batches
from ..agents.scoring import can_share, output_logprobs, score_rows
from .base import Advantages, Algorithm, TokenBatch, TurnKey
from .guards import NonFiniteError, check_finite, gradient_norm, row_to_blame
from .losses import kl_k3
from .optim import Optimizer
from .processes import ALONE, Processes
from .token_means import TokenMeans, pad
from .training_rows import TrainingRow, training_rows


class Updater:
    """Applies a batch of groups to a policy.

    Args:
        policy: Whose active adapter is trained.
        algorithm: Gives the loss.
        optimizer: Steps the parameters.
        epochs: Passes over a batch.
        minibatches: Optimizer steps per pass.
        micro_batch_tokens: Padded tokens per forward and backward pass.
        gradient_checkpointing: Compute each layer again in the backward pass instead of keeping what it computed, a
            critic's passes included.
        chunk_tokens: Output tokens whose logits live at one time; None: the plain path.
        share_prefixes: Compute what prompts have in common once, where the model allows it and it saves enough.
        processes: Those that share the groups of a batch.
        watch_kl: Compute KL(policy || reference) for the log also where the algorithm does not need it.

    Raises:
        ValueError: The algorithm needs a reference policy, and the policy has no adapter: it would be its own.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        algorithm: Algorithm[Any],
        optimizer: Optimizer,
        *,
        epochs: int = 1,
        minibatches: int = 1,
        micro_batch_tokens: int = 16384,
        gradient_checkpointing: bool = False,
        chunk_tokens: int | None = 1024,
        share_prefixes: bool = True,
        processes: Processes = ALONE,
        watch_kl: bool = False,
    ) -> None:
        if (algorithm.needs_reference or watch_kl) and not policy.adapters:
            raise ValueError(
                f"{algorithm.name} needs a reference policy, and a policy without adapters has none; add an adapter, "
                "or set beta and stop_kl to 0"
            )
        self.policy = policy
        self.algorithm = algorithm
        self.optimizer = optimizer
        self.epochs = epochs
        self.minibatches = minibatches
        self.micro_batch_tokens = algorithm.micro_batch_tokens = micro_batch_tokens
        self.gradient_checkpointing = gradient_checkpointing
        self.chunk_tokens = chunk_tokens
        self.share_prefixes = share_prefixes
        self.processes = processes
        self.watch_kl = watch_kl

    def update(self, groups: Sequence[Group], advantages: Advantages) -> dict[str, float]:
        """Takes ``epochs x minibatches`` optimizer steps.

        Args:
            groups: One batch.
            advantages: For every turn of it.

        Returns:
            Metrics: token means of what the loss logs, gradient norm, sampler/trainer mismatch, counts.

        Raises:
            NonFiniteError: A log-probability, a loss or a gradient is not finite; that optimizer step was not taken.
            UserError: The model cannot compute its layers again, as it was asked to.
        """
        self.policy.train_mode()
        with layers_recomputed(self.policy.model, self.gradient_checkpointing):
            return self._update(groups, advantages)

    def _update(self, groups: Sequence[Group], advantages: Advantages) -> dict[str, float]:
        cuts = [round(n * len(groups) / self.minibatches) for n in range(self.minibatches + 1)]
        parts = [
            [
                row
                for row in training_rows(groups[low:high], advantages, low, self.algorithm.token_weights)
                if self._has_gradient(row)
            ]
            for low, high in itertools.pairwise(cuts)
        ]
        # Weights count the episodes of all processes, so that the sum of their gradients is the whole one.
        own = [[row for row in rows if self.processes.owns(row.key[0])] for rows in parts]
        # With one optimizer step per batch the weights that sampled are the weights that learn: the ratio is exactly 1
        # and no extra pass is needed. With more, log pi_old is computed once, before the first step.
        several = self.epochs * self.minibatches > 1
        old = [self._score(rows) if several else None for rows in own]
        reference = [self._reference(rows) for rows in own]
        log = TokenMeans()
        scalars: dict[str, list[float]] = {"train/grad_norm": [], "train/lr": []}
        for _ in range(self.epochs):
            for all_rows, rows, old_logprobs, reference_logprobs in zip(parts, own, old, reference, strict=True):
                self.optimizer.zero_grad()
                with self.processes.together():
                    self._gradient(rows, old_logprobs, reference_logprobs, log)
                if all_rows:
                    self.processes.sum_gradients(self.optimizer.all_parameters)
                    norm, rate = self.optimizer.step()
                    scalars["train/grad_norm"].append(norm)
                    scalars["train/lr"].append(rate)
                    self.policy.weights_version += 1
        total_rows = sum(len(episode.turns) for group in groups for episode in group if episode.error is None)
        metrics = TokenMeans.merged(self.processes.gather(log)).means()
        metrics |= {name: sum(values) / len(values) for name, values in scalars.items() if values}
        metrics["train/rows"] = float(sum(map(len, parts)))
        metrics["train/rows_without_gradient"] = float(total_rows) - metrics["train/rows"]
        metrics["train/minibatches_without_gradient"] = float(sum(not rows for rows in parts))
        metrics["train/optimizer_steps"] = float(self.optimizer.step_count)
        return metrics

    def _gradient(
        self,
        rows: Sequence[TrainingRow],
        old_logprobs: list[Tensor] | None,
        reference_logprobs: list[Tensor] | None,
        log: TokenMeans,
    ) -> None:
        """Adds up the gradient of a minibatch, of this process's rows; it is finite, or raises ``NonFiniteError``."""

        def backward(indices: Sequence[int], log: TokenMeans) -> None:
            self._backward(
                [rows[i] for i in indices],
                None if old_logprobs is None else [old_logprobs[i] for i in indices],
                None if reference_logprobs is None else [reference_logprobs[i] for i in indices],
                log,
            )

        for indices in micro_batches([row.row for row in rows], self.micro_batch_tokens, share=self._share):
            backward(indices, log)
        if math.isfinite(gradient_norm(self.optimizer.all_parameters)):
            return
        worst = row_to_blame(len(rows), self.optimizer, lambda index: backward([index], TokenMeans()))
        values = {"advantages": rows[worst].advantages, "logprobs": self._score([rows[worst]])[0]}
        for name, given in (("old_logprobs", old_logprobs), ("reference_logprobs", reference_logprobs)):
            values |= {} if given is None else {name: given[worst]}
        raise NonFiniteError("gradient", rows[worst].key, {name: value.tolist() for name, value in values.items()})

    def _has_gradient(self, row: TrainingRow) -> bool:
        """Rows whose advantages are all 0 add exactly nothing, unless the loss has a term without advantage."""
        return self.algorithm.needs_all_turns or bool(row.advantages.any())

    @property
    def _share(self) -> bool:
        return self.share_prefixes and can_share(self.policy.model)

    def _score(self, rows: Sequence[TrainingRow]) -> list[Tensor]:
        with self.policy.evaluating():
            return score_rows(
                self.policy.model,
                [row.row for row in rows],
                self.policy.codec.pad_id,
                max_tokens=self.micro_batch_tokens,
                temperature=self.policy.temperature,
            )

    def _reference(self, rows: Sequence[TrainingRow]) -> list[Tensor] | None:
        if not (self.algorithm.needs_reference or self.watch_kl):
            return None
        with self.policy.use_adapter(self.policy.reference_adapter):
            return self._score(rows)

    def _backward(
        self,
        rows: Sequence[TrainingRow],
        old_logprobs: list[Tensor] | None,
        reference_logprobs: list[Tensor] | None,
        log: TokenMeans,
    ) -> None:
        batch = collate([row.row for row in rows], self.policy.codec.pad_id, self.policy.device, share=self._share)
        logprobs, entropy = output_logprobs(
            self.policy.model,
            batch,
            temperature=self.policy.temperature,
            chunk_tokens=self.chunk_tokens,
            entropy=True,
        )  # (B, O), (B, O)
        depth, device = batch.mask.shape[1], logprobs.device
        reference = None if reference_logprobs is None else pad(reference_logprobs, depth).to(device)  # (B, O)
        tokens = TokenBatch(
            rows=batch,
            logprobs=logprobs,
            old_logprobs=logprobs.detach() if old_logprobs is None else pad(old_logprobs, depth).to(device),
            reference_logprobs=reference if self.algorithm.needs_reference else None,
            advantages=pad([row.advantages for row in rows], depth).to(device),
        )
        weights = torch.tensor([row.weight for row in rows], device=device)[:, None] * batch.mask  # (B, O)
        keys = [row.key for row in rows]
        known = {
            "advantages": tokens.advantages,
            "logprobs": logprobs.detach(),
            "old_logprobs": tokens.old_logprobs,
            "reference_logprobs": reference,
        }
        check_finite("log-probability", logprobs.detach(), batch.mask, keys, known)
        loss, logged = self.algorithm.token_loss(tokens)  # (B, O)
        check_finite("loss", loss.detach(), batch.mask, keys, known)
        (loss * weights).sum().backward()
        logged |= self._critic_backward(tokens, weights, keys, known)
        # Against pi_old, so that later epochs, whose policy has moved on, do not enter.
        sampler = pad([row.sampler_logprobs for row in rows], depth).to(device)  # (B, O)
        recorded = torch.tensor([len(row.sampler_logprobs) > 0 for row in rows], device=device)[:, None]
        mismatch = (tokens.old_logprobs - sampler).abs()  # (B, O)
        assert entropy is not None
        if reference is not None:
            logged = {"train/kl": kl_k3(logprobs.detach(), reference)} | logged
        log.add(
            batch.mask,
            {
                "train/loss": loss.detach(),
                "train/entropy": entropy,
                "train/ratio": (logprobs.detach() - tokens.old_logprobs).exp(),
                **logged,
            },
        )
        log.add(batch.mask & recorded, {"train/sampler_mismatch": mismatch})
        log.maximum("train/sampler_mismatch_max", mismatch, batch.mask & recorded)

    def _critic_backward(
        self, tokens: TokenBatch, weights: Tensor, keys: list[TurnKey], known: dict[str, Tensor | None]
    ) -> dict[str, Tensor]:
        """Adds a critic's gradient, forward and backward under its own adapter; returns what to log."""
        name = self.algorithm.critic_adapter
        with nullcontext() if name is None else self.policy.use_adapter(name):
            found = self.algorithm.critic_loss(self.policy, replace(tokens, logprobs=tokens.logprobs.detach()), keys)
            if found is None:
                return {}
            loss, logged = found  # (B, O)
            check_finite("critic loss", loss.detach(), tokens.rows.mask, keys, known)
            (loss * weights).sum().backward()
        return {"train/critic_loss": loss.detach(), **logged}
