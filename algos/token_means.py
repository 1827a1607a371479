"""Per-token values of rows of different length: padded to a rectangle, and their means, collected piece by piece.

Invariant: each token counts once, whatever the split; a mean over no token is left out, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class TokenMeans:
    """Means over output tokens of the rows that were trained on."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.maxima: dict[str, float] = {}

    def add(self, mask: Tensor, values: dict[str, Tensor]) -> None:
        """Adds the masked values (B, O) of one micro-batch."""
        count = int(mask.sum())
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float((value * mask).sum())
            self.counts[name] = self.counts.get(name, 0) + count

    def maximum(self, name: str, value: Tensor, mask: Tensor) -> None:
        """Keeps the largest masked value."""
        if not bool(mask.any()):
            return
        self.maxima[name] = max(self.maxima.get(name, 0.0), float((value * mask).max()))

    @classmethod
    def merged(cls, parts: Sequence[TokenMeans]) -> TokenMeans:
        """The means over the tokens of all parts."""
        whole = cls()
        for part in parts:
            for name, value in part.sums.items():
                whole.sums[name] = whole.sums.get(name, 0.0) + value
                whole.counts[name] = whole.counts.get(name, 0) + part.counts[name]
            for name, value in part.maxima.items():
                whole.maxima[name] = max(whole.maxima.get(name, 0.0), value)
        return whole

    def means(self) -> dict[str, float]:
        """Mean of each quantity that had a token, and the maxima."""
        return {name: value / self.counts[name] for name, value in self.sums.items() if self.counts[name]} | self.maxima


def pad(rows: Sequence[Tensor], depth: int) -> Tensor:
    """Stacks (n,) tensors as (B, depth), 0 beyond each row's end."""
    padded = torch.zeros((len(rows), depth))  # (B, O)
    for index, row in enumerate(rows):
        padded[index, : row.shape[0]] = row
    return padded
