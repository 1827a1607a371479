"""What a searcher is: queries in, the best passages with their scores out.

Three kinds keep it: BM25 (``retrieval.py``), embeddings (``dense.py``) and a server reached over HTTP
(``search_client.py``). ``tests/envs/test_searchers.py`` holds them to one contract.

Invariants of every searcher:
    * one list per query, in the queries' order; each by falling score, with at most ``topk`` entries, no passage twice;
    * a blank query finds nothing, and so does a ``topk`` below 1;
    * it may be called from several threads at once, and it pickles;
    * what fails outside the caller's control is an ``InfrastructureError``, never an empty result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mempo_env.records import Passage


@dataclass(frozen=True)
class ScoredPassage:
    """A passage and how well it fits a query; scores of different searchers cannot be compared."""

    passage: Passage
    score: float


@runtime_checkable
class Searcher(Protocol):
    """Finds passages."""

    def retrieve(self, queries: Sequence[str], topk: int) -> list[list[ScoredPassage]]:
        """Finds the best passages for each query.

        Args:
            queries: What to look for.
            topk: Most passages per query.

        Returns:
            Per query, passages by falling score.

        Raises:
            InfrastructureError: The searcher failed for good.
        """
        ...
