"""Rows of token ids as rectangles, with what they share taken out, and cut into batches of a bounded size.

Invariant: each row is in one batch, whose padded size keeps the budget unless the row alone is longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .shared_prefix import WORTHWHILE, Cluster, clusters, saved_tokens


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
