"""Log-probabilities of output tokens under a causal language model, without ever holding a (tokens, vocabulary) tensor.

Rows that begin alike are read as one prefix, whose keys and values all of them use, and one suffix each (see
``shared_prefix``); with gradient, too: the rows' gradients meet in the prefix. Rows are padded on the right and no
attention mask is passed: under a causal mask no real token can see a padding token after it, so padding changes nothing
and the fast attention kernels stay open. Only suffixes after prefixes of several lengths need a mask.

Invariant: for each row, ``logprobs[row, o]`` is log pi(output_o | prompt, output_<o) in float32, whatever rows share
the batch and whatever the chunk size; entries beyond the row's output are exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from mempo_env.errors import UserError

from .kv_cache import plain_cache
from .shared_prefix import WORTHWHILE, Cluster, clusters, saved_tokens

_HEAD_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True)
class TokenRow:
    """One turn as ids: what the model was given and what it gave."""

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)


@dataclass(frozen=True)
class PrefixBatch:
    """Beginnings that rows of a batch share.

    Attributes:
        input_ids: (U, P) ids of the distinct prefixes, padded on the right.
        lengths: (U,) ids of each.
        of_row: (B,) which of them a row begins with.
    """

    input_ids: Tensor
    lengths: Tensor
    of_row: Tensor


@dataclass(frozen=True)
class RowBatch:
    """Rows padded to one rectangle.

    Attributes:
        input_ids: (B, T) prompt and output ids, padded on the right; without what is in ``prefix``.
        positions: (B, O) position in T whose hidden state predicts output token o.
        targets: (B, O) output ids.
        mask: (B, O) True where the row has an output token.
        prefix: What comes before ``input_ids``, if rows share a beginning.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    mask: Tensor
    prefix: PrefixBatch | None = None


def collate(
    rows: Sequence[TokenRow], pad_id: int, device: torch.device | str = "cpu", *, share: bool = False
) -> RowBatch:
    """Pads rows to one rectangle.

    Args:
        rows: At least one; each needs a prompt and an output.
        pad_id: Any id of the vocabulary; no result depends on it.
        device: Where the tensors go.
        share: Whether to take out beginnings that rows have in common, where that saves enough.

    Returns:
        The batch.

    Raises:
        ValueError: A row has no prompt or no output.
    """
    if any(not row.prompt_ids or not row.output_ids for row in rows):
        raise ValueError("each row needs at least one prompt id and one output id")
    starts, prefix = [0] * len(rows), None
    if share and (found := shared_clusters(rows)) is not None:
        prefix = prefix_batch(rows, found, pad_id, device)
        for cluster in found:
            for index in cluster.rows:
                starts[index] = cluster.shared
    suffixes = [row.prompt_ids[start:] + row.output_ids for row, start in zip(rows, starts, strict=True)]
    batch, width = len(rows), max(map(len, suffixes))
    depth = max(len(row.output_ids) for row in rows)
    input_ids = torch.full((batch, width), pad_id, dtype=torch.long)  # (B, T)
    positions = torch.zeros((batch, depth), dtype=torch.long)  # (B, O)
    targets = torch.zeros((batch, depth), dtype=torch.long)  # (B, O)
    mask = torch.zeros((batch, depth), dtype=torch.bool)  # (B, O)
    for index, (row, ids) in enumerate(zip(rows, suffixes, strict=True)):
        n_output, first = len(row.output_ids), len(ids) - len(row.output_ids)
        input_ids[index, : len(ids)] = torch.tensor(ids)
        positions[index, :n_output] = torch.arange(first - 1, first - 1 + n_output)
        targets[index, :n_output] = torch.tensor(row.output_ids)
        mask[index, :n_output] = True
    return RowBatch(input_ids.to(device), positions.to(device), targets.to(device), mask.to(device), prefix)


def shared_clusters(rows: Sequence[TokenRow]) -> list[Cluster] | None:
    """The rows' clusters (see ``shared_prefix``), or None where sharing saves too little of their tokens."""
    found = clusters([row.prompt_ids for row in rows])
    return found if saved_tokens(found) >= WORTHWHILE * sum(map(len, rows)) else None


def prefix_batch(
    rows: Sequence[TokenRow], found: Sequence[Cluster], pad_id: int, device: torch.device | str
) -> PrefixBatch:
    """The prefixes of clusters, padded to one rectangle."""
    width = max(cluster.shared for cluster in found)
    ids = torch.full((len(found), width), pad_id, dtype=torch.long)  # (U, P)
    of_row = torch.zeros(len(rows), dtype=torch.long)  # (B,)
    for place, cluster in enumerate(found):
        ids[place, : cluster.shared] = torch.tensor(rows[cluster.rows[0]].prompt_ids[: cluster.shared])
        of_row[list(cluster.rows)] = place
    lengths = torch.tensor([cluster.shared for cluster in found])  # (U,)
    return PrefixBatch(ids.to(device), lengths.to(device), of_row.to(device))


def micro_batches(rows: Sequence[TokenRow], max_tokens: int, *, share: bool = False) -> Iterator[list[int]]:
    """Cuts rows into batches whose padded size stays within a budget: of similar length, or of shared beginnings.

    Args:
        rows: Any number.
        max_tokens: Most padded tokens (B x T, and U x P of the prefixes) of a batch; a longer single row is a batch of
            its own.
        share: Whether rows that begin alike are to come together, where that saves enough.

    Yields:
        Indices into ``rows``; each occurs once. The order is a function of the rows alone.
    """
    found = shared_clusters(rows) if share and len(rows) > 1 else None
    if found is None:
        batches = _by_length(rows, sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i)), max_tokens)
    else:
        batches = _by_cluster(rows, found, max_tokens)
    for batch in batches:
        yield from _within(rows, batch, max_tokens) if share else [batch]


def _within(rows: Sequence[TokenRow], batch: list[int], max_tokens: int) -> Iterator[list[int]]:
    """A batch, or its halves where other clusters than planned are best for it alone and it is padded to more."""
    chosen = [rows[index] for index in batch]
    found = shared_clusters(chosen)
    if found is None:
        padded = len(batch) * max(map(len, chosen))
    else:
        rest = max(len(chosen[index]) - cluster.shared for cluster in found for index in cluster.rows)
        padded = len(found) * max(cluster.shared for cluster in found) + len(batch) * rest
    if padded <= max_tokens or len(batch) == 1:
        yield batch
        return
    half = len(batch) // 2
    yield from _within(rows, batch[:half], max_tokens)
    yield from _within(rows, batch[half:], max_tokens)


def _by_cluster(rows: Sequence[TokenRow], found: Sequence[Cluster], max_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    prefixes = prefix = suffix = 0
    for cluster in sorted(found, key=lambda each: (-each.shared, each.rows)):
        new = True
        for index in sorted(cluster.rows, key=lambda i: (-len(rows[i]), i)):
            wider = max(suffix, len(rows[index]) - cluster.shared)
            padded = (prefixes + new) * max(prefix, cluster.shared) + (len(batch) + 1) * wider
            if batch and padded > max_tokens:
                yield batch
                batch, prefixes, prefix, suffix, new = [], 0, 0, 0, True
                wider = len(rows[index]) - cluster.shared
            batch.append(index)
            prefixes, new = prefixes + new, False
            prefix, suffix = max(prefix, cluster.shared), wider
    if batch:
        yield batch


def _by_length(rows: Sequence[TokenRow], order: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in order:
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
    if batch.prefix is None:
        hidden = decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # (B, T, D)
    else:
        hidden = _after_prefix(decoder, batch.input_ids, batch.prefix)  # (B, T, D)
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]  # (B, 1)
    selected: Tensor = hidden[rows, batch.positions][batch.mask]  # (N, D)
    return selected


def can_share(model: nn.Module) -> bool:
    """Whether shared prefixes give the plain path's result: no dropout acts, nothing is recomputed, the cache is plain.

    Dropout would be drawn once for all rows; checkpointing switches the cache off; a sliding window cuts a prefix.
    """
    lm = causal_lm(model)
    if model.training and any(_drops(part) for part in model.modules()):
        return False
    if model.training and _checkpointing(lm):
        return False
    return plain_cache(DynamicCache(config=lm.config))


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
    device, share = next(model.parameters()).device, can_share(model)
    results: dict[int, Tensor] = {}
    for indices in micro_batches(rows, max_tokens, share=share):
        batch = collate([rows[i] for i in indices], pad_id, device, share=share)
        logprobs = output_logprobs(model, batch, temperature=temperature)[0].cpu()  # (B, O)
        for slot, index in enumerate(indices):
            results[index] = logprobs[slot, : len(rows[index].output_ids)].clone()
    return [results[i] for i in range(len(rows))]
