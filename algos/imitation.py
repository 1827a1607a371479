"""Imitation: supervised learning of demonstrated turns, the warm start before reinforcement learning.

    minimise  - mean over output tokens of log pi(token | prompt, tokens before)

Demonstrations are text; this is the one learner that tokenises them, once, by the same codec and context strategy that
the policy plays with. Only output tokens carry loss.

Invariant: the batches of step s are a function of (seed, s) and the demonstrator, never of timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mempo_env.errors import UserError
from mempo_env.records import Episode

from ..agents.base import SlotKey, TurnRequest
from ..agents.contexts import said_in
from ..agents.policy import LoraPolicy
from ..agents.recompute import layers_recomputed
from ..agents.row_batches import TokenRow, collate, micro_batches
from ..agents.scoring import output_logprobs
from .losses import cross_entropy
from .optim import Optimizer
from .out_of_memory import memory_advice, smaller_passes


def demonstration_rows(episodes: Sequence[Episode], policy: LoraPolicy, instructions: str) -> list[TokenRow]:
    """Tokenises demonstrated turns as the policy would see and write them.

    Args:
        episodes: Played by a text agent; those with an error are left out.
        policy: Whose codec and context strategy are used.
        instructions: The environment's system message.

    Returns:
        One row per turn.

    Raises:
        UserError: A prompt is longer than the policy allows.
    """
    rows = []
    for episode in episodes:
        if episode.error is not None:
            continue
        for t, turn in enumerate(episode.turns):
            key = SlotKey(episode.seed, 0, episode.group_id, episode.rollout_id, t)
            request = TurnRequest(key, turn.observation, instructions, episode.turns[:t], episode.task)
            said = said_in(turn, policy.wording.style)
            rows.append(TokenRow(policy.prompt_ids(request), tuple(policy.codec.encode_text(said))))
    return rows


def imitation_batches(
    demonstrate: Callable[[int], list[TokenRow]], tokens_per_step: int, seed: int
) -> Iterator[list[TokenRow]]:
    """Cuts demonstrations into batches at random, so that each holds short first turns and long last ones.

    Batches of one length would be cheaper to pad, but many would hold nothing that is not learned yet.

    Args:
        demonstrate: Gives the rows of chunk c.
        tokens_per_step: Tokens of a batch, at least; prompts included.
        seed: Seed of the order.

    Yields:
        Batches, without end.

    Raises:
        UserError: A chunk is empty.
    """
    chunk, tokens = 0, 0
    batch: list[TokenRow] = []
    while True:
        rows = demonstrate(chunk)
        if not rows:
            raise UserError(
                f"chunk {chunk} of the demonstrations has no turn: every episode ended on a fault; check the tools"
            )
        for index in np.random.default_rng((seed, chunk)).permutation(len(rows)):
            batch.append(rows[index])
            tokens += len(rows[index])
            if tokens >= tokens_per_step:
                yield batch
                batch, tokens = [], 0
        chunk += 1


@dataclass(frozen=True)
class ImitationStep:
    """What one optimizer step of imitation saw.

    Attributes:
        loss: Mean cross-entropy per output token, in nats.
        accuracy: Share of output tokens that had probability above one half.
        tokens: Prompt and output tokens without padding.
        grad_norm: Before clipping.
        lr: Learning rate used.
    """

    loss: float
    accuracy: float
    tokens: int
    grad_norm: float
    lr: float


def imitate(
    policy: LoraPolicy,
    optimizer: Optimizer,
    batches: Iterator[list[TokenRow]],
    steps: int,
    *,
    micro_batch_tokens: int,
    gradient_checkpointing: bool = False,
    on_step: Callable[[int, ImitationStep], None] | None = None,
) -> list[ImitationStep]:
    """Takes ``steps`` optimizer steps of imitation on the policy's trainable parameters.

    Args:
        policy: What learns.
        optimizer: Over the parameters to train.
        batches: One batch of rows per step.
        steps: How many.
        micro_batch_tokens: Padded tokens per forward and backward pass.
        gradient_checkpointing: Compute each layer again in the backward pass; the policy must be in training mode.
        on_step: Called after each step.

    Returns:
        One record per step.

    Raises:
        UserError: The memory of a GPU does not suffice, or the model cannot compute its layers again.
    """
    history = []
    advice = smaller_passes(micro_batch_tokens, keeps_layers=not gradient_checkpointing)
    for step in range(steps):
        rows = next(batches)
        n_output = sum(len(row.output_ids) for row in rows)
        optimizer.zero_grad()
        loss_sum, hits = 0.0, 0
        with memory_advice("imitating", advice), layers_recomputed(policy.model, gradient_checkpointing):
            for indices in micro_batches(rows, micro_batch_tokens):
                batch = collate([rows[i] for i in indices], policy.codec.pad_id, policy.device)
                logprobs, _ = output_logprobs(policy.model, batch)  # (B, O)
                loss = (cross_entropy(logprobs) * batch.mask).sum() / n_output
                loss.backward()
                loss_sum += loss.item()
                hits += int(((logprobs.detach().exp() > 0.5) & batch.mask).sum())
            norm, rate = optimizer.step()
        policy.weights_version += 1
        record = ImitationStep(loss_sum, hits / n_output, sum(map(len, rows)), norm, rate)
        history.append(record)
        if on_step is not None:
            on_step(step, record)
    return history
