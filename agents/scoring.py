"""Log-probabilities of output tokens under a causal language model, without ever holding a (tokens, vocabulary) tensor.

Rows are padded on the right and no attention mask is passed: under a causal mask no real token can see a padding token
after it, so padding changes nothing and the fast attention kernels stay open.

Invariant: for each row, ``logprobs[row, o]`` is log pi(output_o | prompt, output_<o) in float32, whatever rows share
the batch and whatever the chunk size; entries beyond the row's output are exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mempo_env.errors import UserError

_HEAD_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True)
class TokenRow:
    """One turn as ids: what the model was given and what it gave."""

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)


@dataclass(frozen=True)
class RowBatch:
    """Rows padded to one rectangle.

    Attributes:
        input_ids: (B, T) prompt and output ids, padded on the right.
        positions: (B, O) position in T whose hidden state predicts output token o.
        targets: (B, O) output ids.
        mask: (B, O) True where the row has an output token.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    mask: Tensor


def collate(rows: Sequence[TokenRow], pad_id: int, device: torch.device | str = "cpu") -> RowBatch:
    """Pads rows to one rectangle.

    Args:
        rows: At least one; each needs a prompt and an output.
        pad_id: Any id of the vocabulary; no result depends on it.
        device: Where the tensors go.

    Returns:
        The batch.

    Raises:
        ValueError: A row has no prompt or no output.
    """
    if any(not row.prompt_ids or not row.output_ids for row in rows):
        raise ValueError("each row needs at least one prompt id and one output id")
    batch, width = len(rows), max(map(len, rows))
    depth = max(len(row.output_ids) for row in rows)
    input_ids = torch.full((batch, width), pad_id, dtype=torch.long)  # (B, T)
    positions = torch.zeros((batch, depth), dtype=torch.long)  # (B, O)
    targets = torch.zeros((batch, depth), dtype=torch.long)  # (B, O)
    mask = torch.zeros((batch, depth), dtype=torch.bool)  # (B, O)
    for index, row in enumerate(rows):
        n_prompt, n_output = len(row.prompt_ids), len(row.output_ids)
        input_ids[index, : n_prompt + n_output] = torch.tensor(row.prompt_ids + row.output_ids)
        positions[index, :n_output] = torch.arange(n_prompt - 1, n_prompt - 1 + n_output)
        targets[index, :n_output] = torch.tensor(row.output_ids)
        mask[index, :n_output] = True
    return RowBatch(input_ids.to(device), positions.to(device), targets.to(device), mask.to(device))


def micro_batches(rows: Sequence[TokenRow], max_tokens: int) -> Iterator[list[int]]:
    """Cuts rows into batches of similar length whose padded size stays within a budget.

    Args:
        rows: Any number.
        max_tokens: Most padded tokens (B x T) of a batch; a longer single row is a batch of its own.

    Yields:
        Indices into ``rows``; each occurs once. The order is a function of the lengths alone.
    """
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i)):
        if batch and len(rows[batch[0]]) * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def causal_lm(model: nn.Module) -> nn.Module:
    """The causal LM inside a peft wrapper, or the model itself; adapters live in its layers either way."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def output_states(model: nn.Module, batch: RowBatch) -> Tensor:
    """Hidden states from which a batch's output tokens are predicted, under the active adapter.

    Args:
        model: A causal LM of transformers, plain or under peft.
        batch: Rows of (B, T) ids with (B, O) outputs.

    Returns:
        (N, D), the states before the N output tokens of all rows, row by row; the head has not been applied.
    """
    decoder = causal_lm(model).get_decoder()  # type: ignore[operator]
    hidden = decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # (B, T, D)
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]  # (B, 1)
    selected: Tensor = hidden[rows, batch.positions][batch.mask]  # (N, D)
    return selected


def per_token(batch: RowBatch, values: Tensor) -> Tensor:
    """Puts one value per output token (N,) into (B, O), 0 beyond each row's output."""
    return values.new_zeros(batch.mask.shape).masked_scatter(batch.mask, values)  # (B, O)


def output_logprobs(
    model: nn.Module,
    batch: RowBatch,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = 1024,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of a batch's output tokens under the active adapter.

    Args:
        model: A causal LM of transformers, plain or under peft.
        batch: Rows of (B, T) ids with (B, O) outputs.
        temperature: Divides the logits, as the sampler did.
        chunk_tokens: Output tokens whose logits live at one time; they are recomputed in the backward pass. None: the
            plain path, all at once.
        entropy: Whether to return the entropy of each token's distribution too (without gradient).

    Returns:
        (B, O) float32 log-probabilities, 0 outside the mask, and the (B, O) entropies or None.

    Raises:
        UserError: The model changes its logits after the head, which the head applied here would miss.
    """
    lm = causal_lm(model)
    for name in _HEAD_CHANGES:
        if getattr(lm.config, name, None) not in (None, 1, 1.0):
            raise UserError(f"models with {name} in their config are not supported: their logits change after the head")
    selected = output_states(model, batch)  # (N, D), N output tokens of all rows
    targets = batch.targets[batch.mask]  # (N,)
    head = lm.get_output_embeddings()  # type: ignore[operator]

    def piece(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states).float() / temperature  # (n, V)
        log_all = torch.log_softmax(logits, dim=-1)  # (n, V)
        chosen = log_all.gather(-1, ids[:, None]).squeeze(-1)  # (n,)
        with torch.no_grad():
            spread = -(log_all.exp() * log_all).sum(-1) if entropy else chosen.new_zeros(chosen.shape)  # (n,)
        return chosen, spread

    if chunk_tokens is None:
        flat, flat_entropy = piece(selected, targets)
    else:
        parts = [
            checkpoint(piece, states, ids, use_reentrant=False) if torch.is_grad_enabled() else piece(states, ids)
            for states, ids in zip(torch.split(selected, chunk_tokens), torch.split(targets, chunk_tokens), strict=True)
        ]
        flat = torch.cat([part[0] for part in parts])  # (N,)
        flat_entropy = torch.cat([part[1] for part in parts])  # (N,)

    return per_token(batch, flat), per_token(batch, flat_entropy) if entropy else None


@torch.no_grad()
def score_rows(
    model: nn.Module, rows: Sequence[TokenRow], pad_id: int, *, max_tokens: int, temperature: float = 1.0
) -> list[Tensor]:
    """Log-probabilities of many rows without gradient, in the rows' order.

    Args:
        model: A causal LM.
        rows: Any number.
        pad_id: Padding id.
        max_tokens: Padded tokens per forward pass.
        temperature: Divides the logits.

    Returns:
        One float32 (n_output,) tensor per row, on the CPU.
    """
    device = next(model.parameters()).device
    results: dict[int, Tensor] = {}
    for indices in micro_batches(rows, max_tokens):
        batch = collate([rows[i] for i in indices], pad_id, device)
        logprobs = output_logprobs(model, batch, temperature=temperature)[0].cpu()  # (B, O)
        for slot, index in enumerate(indices):
            results[index] = logprobs[slot, : len(rows[index].output_ids)].clone()
    return [results[i] for i in range(len(rows))]
