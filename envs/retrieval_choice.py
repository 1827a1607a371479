"""What ``retrieval=`` of an environment may be, and the searcher that it stands for.

``"bm25"`` (embedded, the default), ``"dense:MODEL"`` (embedded, by embeddings) or the address of a search server; or
``DenseSettings``, ``SearchClientSettings`` or a searcher of one's own, for what a string cannot say.

Invariants:
    * importing this file imports nothing that an extra brings;
    * environments of one process with equal settings share index, encoder, connections and circuit breaker;
    * a task's own passages are searched by the embedded kinds; with a server they are refused, never left out.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from mempo_env.errors import UserError
from mempo_env.records import Task

from .dense import DenseIndex, DenseSettings, dense_task_index
from .retrieval import Bm25Index, task_index
from .search_client import SearchClientSettings, check_server, shared_http_searcher
from .searcher import Searcher

Retrieval = str | DenseSettings | SearchClientSettings | Searcher
"""What an environment's ``retrieval`` argument takes."""

_dense: weakref.WeakKeyDictionary[Bm25Index, dict[DenseSettings, DenseIndex]] = weakref.WeakKeyDictionary()
_dense_lock = threading.Lock()


def read_retrieval(given: Any) -> str | DenseSettings | SearchClientSettings | Searcher:
    """Understands a ``retrieval`` argument.

    Args:
        given: See ``Retrieval``.

    Returns:
        ``"bm25"``, settings, or the searcher.

    Raises:
        UserError: It is none of these.
    """
    if isinstance(given, DenseSettings | SearchClientSettings):
        return given
    if isinstance(given, str):
        if given == "bm25":
            return given
        if given.startswith(("http://", "https://")):
            return SearchClientSettings(given)
        kind, _, model = given.partition(":")
        if kind == "dense":
            return DenseSettings(model)
    elif isinstance(given, Searcher):
        return given
    raise UserError(
        f"retrieval={given!r} is unknown; use bm25, dense:MODEL or the address of a search server, http://.."
    )


def searcher_for(retrieval: Retrieval, task: Task, corpus: Bm25Index | None) -> Searcher:
    """The searcher of an episode.

    Args:
        retrieval: From ``read_retrieval``.
        task: What is played.
        corpus: The data set's shared corpus, for tasks without passages of their own.

    Returns:
        The searcher.

    Raises:
        UserError: There is nothing to search, or a server is to search a task's own passages.
    """
    if isinstance(retrieval, SearchClientSettings):
        if task.passages:
            raise UserError(
                "this task brings its own passages, which a search server does not have; drop retrieval, or use a "
                "dataset with a shared corpus, such as 'qa'"
            )
        return shared_http_searcher(retrieval)
    if not isinstance(retrieval, str | DenseSettings):
        return retrieval
    settings = retrieval if isinstance(retrieval, DenseSettings) else None
    if task.passages:
        return task_index(task.passages) if settings is None else dense_task_index(task.passages, settings)
    if corpus is None:
        raise UserError("this task has no passages and this dataset no shared corpus; give Task.passages")
    return corpus if settings is None else _shared_dense(corpus, settings)


def check_retrieval(given: Retrieval) -> None:
    """Asks a search server one question, before a job depends on it; the embedded kinds need no such check.

    Raises:
        UserError: The argument is unknown, or the server does not answer as it should.
    """
    retrieval = read_retrieval(given)
    if isinstance(retrieval, SearchClientSettings):
        check_server(retrieval)


def _shared_dense(corpus: Bm25Index, settings: DenseSettings) -> DenseIndex:
    with _dense_lock:
        known = _dense.setdefault(corpus, {})
        if settings not in known:
            known[settings] = DenseIndex.build(corpus.passages, settings)
        return known[settings]
