"""Which rows begin alike, so that what they share is computed once.

The rows of a group share instructions and task, those of its first turn their whole prompt, and the questions about one
memory everything up to the answer. A cluster of such rows is read as one prefix and one suffix per row.

Invariants:
    * clusters are a partition of the rows: which rows are computed together changes no result beyond rounding;
    * a shared prefix ends before its rows' last prompt token, so that every output token is predicted in a suffix;
    * at each token where prompts part, either all rows stay together or each branch is for itself, whichever computes
      fewer tokens: never more than with one cluster, or with one for each set of equal prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WORTHWHILE = 0.2
"""Least share of the tokens that must be saved: a prefix costs a forward pass of its own, and a mask."""

SHARING_MODELS = frozenset({"llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"})
"""Kinds of models (``model_type``) of which a test holds that shared prefixes give the plain path's result; others take
that path. Some models lose on the way to their attention what says who sees whom, without an error."""

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Cluster:
    """Rows that share a prefix.

    Attributes:
        shared: Length of the prefix; 0 for a row on its own.
        rows: Their indices.
    """

    shared: int
    rows: tuple[int, ...]


def clusters(prompts: Sequence[Prompt]) -> list[Cluster]:
    """Partitions rows by what their prompts share.

    Args:
        prompts: At least one id each.

    Returns:
        The clusters, in the order of their prompts.

    >>> clusters([(1, 2, 3), (9, 9), (1, 2, 4), (1, 2, 3)])
    [Cluster(shared=2, rows=(0, 3, 2)), Cluster(shared=0, rows=(1,))]
    """
    order = sorted(range(len(prompts)), key=lambda index: (prompts[index], index))
    return _best(prompts, order)[1] if order else []


def saved_tokens(found: Sequence[Cluster]) -> int:
    """Tokens that clusters save: each prefix but once."""
    return sum(cluster.shared * (len(cluster.rows) - 1) for cluster in found)


def _best(prompts: Sequence[Prompt], order: Sequence[int]) -> tuple[int, list[Cluster]]:
    """Most tokens saved, and how, for rows in lexicographic order."""
    if len(order) == 1:
        return 0, [Cluster(0, (order[0],))]
    first, last = prompts[order[0]], prompts[order[-1]]
    shared = min(_common(first, last), min(len(prompts[index]) for index in order) - 1)
    together = (shared * (len(order) - 1), [Cluster(shared, tuple(order))])
    if first == last:
        return together
    apart = [_best(prompts, part) for part in _parts(prompts, order, shared)]
    saved = sum(gain for gain, _ in apart)
    # Where both save the same, fewer clusters do less.
    return together if together[0] >= saved and shared else (saved, [each for _, found in apart for each in found])


def _parts(prompts: Sequence[Prompt], order: Sequence[int], shared: int) -> Iterator[list[int]]:
    """Rows by the token after what all share; a prompt that ends there is a part of its own."""
    part: list[int] = []
    for index in order:
        if part and prompts[index][: shared + 1] != prompts[part[-1]][: shared + 1]:
            yield part
            part = []
        part.append(index)
    if len(part) < len(order):
        yield part
        return
    equal = [index for index in part if prompts[index] == prompts[part[0]]]  # the shortest, which all others begin with
    yield equal
    yield part[len(equal) :]


def _common(first: Prompt, second: Prompt) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # by halving: comparing slices is faster than comparing ids one by one
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
