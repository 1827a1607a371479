"""Log-probabilities of output tokens under a causal language model, without ever holding a (tokens, vocabulary) tensor.

Rows that begin alike are read as one prefix, whose keys and values all of them use, and one suffix each (see
``shared_prefix``); with gradient, too: the rows' gradients meet in the prefix. On a CPU they are packed into one
sequence (``prefix_attention``); elsewhere, and under other attention than ``sdpa``, the suffixes follow in a pass of
their own, after a cache. Rows that share nothing are padded on the right without an attention mask: under a causal mask
no real token can see a padding token after it, so padding changes nothing and the fast kernels stay open.

Invariant: for each row, ``logprobs[row, o]`` is log pi(output_o | prompt, output_<o) in float32, whatever rows share
the batch and whatever the chunk size; entries beyond the row's output are exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from mempo_env.errors import UserError

from .head import token_logprobs
from .kv_cache import plain_cache
from .prefix_attention import Packed, packed_rows_in, takes_packed_rows
from .row_batches import PrefixBatch, RowBatch, TokenRow, collate, micro_batches
from .shared_prefix import SHARING_MODELS

_HEAD_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


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
    if batch.prefix is not None and takes_packed_rows(decoder):
        again = torch.is_grad_enabled() and decoder.training and _checkpointing(decoder)
        with packed_rows_in(decoder, stays=again):
            return _packed_states(decoder, batch, batch.prefix)
    if batch.prefix is None:
        hidden = decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # (B, T, D)
    else:
        hidden = _after_prefix(decoder, batch.input_ids, batch.prefix)  # (B, T, D)
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]  # (B, 1)
    selected: Tensor = hidden[rows, batch.positions][batch.mask]  # (N, D)
    return selected


def _packed_states(decoder: nn.Module, batch: RowBatch, prefix: PrefixBatch) -> Tensor:
    """What ``output_states`` returns, from one sequence of all prefixes and suffixes without padding.

    A row's last output token predicts nothing and is left out.
    """
    needed = batch.positions.masked_fill(~batch.mask, 0).amax(1).tolist()  # (B,) last place that predicts a token
    of_row, lengths = prefix.of_row.tolist(), prefix.lengths.tolist()
    ids, positions, spans, end = [], [], [], 0
    starts = [0] * len(needed)
    for cluster, shared in enumerate(lengths):
        begun, middle = end, end + shared
        ids.append(prefix.input_ids[cluster, :shared])  # (P,)
        positions.append(torch.arange(shared))  # (P,)
        end = middle
        for row in (row for row, place in enumerate(of_row) if place == cluster):
            starts[row], length = end, needed[row] + 1
            ids.append(batch.input_ids[row, :length])  # (t,)
            positions.append(torch.arange(shared, shared + length))  # (t,)
            end += length
        spans.append((begun, middle, end))
    first = torch.tensor(starts)[:, None]  # (B, 1)
    steps = torch.arange(max(needed) + 1)  # (T,)
    rows = torch.where(steps <= torch.tensor(needed)[:, None], first + steps, end)  # (B, T)
    hidden: Tensor = decoder(
        input_ids=torch.cat(ids)[None],
        position_ids=torch.cat(positions)[None],
        attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool),  # in four dimensions, so that none is made
        use_cache=False,
        packed=Packed(tuple(spans), rows),
    ).last_hidden_state  # (1, N, D) of all tokens
    return hidden[0, (first + batch.positions)[batch.mask]]  # (N, D) of those before an output token


def can_share(model: nn.Module) -> bool:
    """Whether shared prefixes give the plain path's result: no dropout acts, and every layer sees all positions.

    Models of kinds for which no test holds it do not share (``SHARING_MODELS``).
    Dropout would be drawn once for all rows; a sliding window cuts a prefix. Gradient checkpointing switches off the
    cache, which models need that do not take packed rows.
    """
    lm = causal_lm(model)
    config: Any = lm.config
    if config.model_type not in SHARING_MODELS:
        return False
    if model.training and any(_drops(part) for part in model.modules()):
        return False
    if model.training and _checkpointing(lm) and not takes_packed_rows(lm):
        return False
    return plain_cache(DynamicCache(config=config))


def _drops(part: nn.Module) -> bool:
    """Whether dropout acts in a module: one of its own, or a rate that attention hands to its kernel."""
    rate = part.p if isinstance(part, nn.Dropout) else getattr(part, "attention_dropout", 0.0)
    return isinstance(rate, int | float) and rate > 0


def _checkpointing(lm: nn.Module) -> bool:
    return any(getattr(part, "gradient_checkpointing", False) for part in lm.modules())


def _after_prefix(decoder: nn.Module, input_ids: Tensor, prefix: PrefixBatch) -> Tensor:
    """Hidden states (B, T, D) of suffixes (B, T) after their rows' prefixes."""
    cache = DynamicCache(config=decoder.config)
    if prefix.input_ids.shape[1]:
        decoder(input_ids=prefix.input_ids, past_key_values=cache, use_cache=True)  # (U, P)
    cache.batch_select_indices(prefix.of_row)  # (B, H, P, D) keys and values; the rows' gradients add up
    lengths = prefix.lengths[prefix.of_row, None]  # (B, 1)
    steps = torch.arange(prefix.input_ids.shape[1], device=input_ids.device)  # (P,)
    mask = torch.cat([steps < lengths, torch.ones_like(input_ids, dtype=torch.bool)], dim=1)  # (B, P + T)
    positions = lengths + torch.arange(input_ids.shape[1], device=input_ids.device)  # (B, T)
    hidden: Tensor = decoder(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state  # (B, T, D)
    return hidden


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
        chunk_tokens: Most output tokens whose logits live at one time, with gradient, too. None: the plain path, all at
            once.
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
    flat, spread = token_logprobs(
        head, selected, targets, temperature=temperature, chunk_tokens=chunk_tokens, entropy=entropy
    )  # (N,), (N,)
    return per_token(batch, flat), None if spread is None else per_token(batch, spread)


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
    device, share = next(model.parameters()).device, can_share(model)
    results: dict[int, Tensor] = {}
    for indices in micro_batches(rows, max_tokens, share=share):
        batch = collate([rows[i] for i in indices], pad_id, device, share=share)
        logprobs = output_logprobs(model, batch, temperature=temperature)[0].cpu()  # (B, O)
        for slot, index in enumerate(indices):
            results[index] = logprobs[slot, : len(rows[index].output_ids)].clone()
    return [results[i] for i in range(len(rows))]
