"""BM25 over passages: large corpora are indexed once and kept on disk, a task's own corpus in memory.

A cached index lives in a folder named by the hash of everything it depends on: titles and texts in order, the way words
are cut, BM25's parameters and the version of bm25s. It is written aside and renamed, so a reader sees a whole index or
none, and memory-mapped when loaded, so the workers of one machine share its pages.

Invariants:
    * results are a function of passages, queries and k: equal scores are ordered by the passages' order;
    * no word is lost: neither stop words nor single letters are removed, words are not stemmed;
    * a passage that shares no word with the query is never returned.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import unicodedata
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mempo_env.errors import UserError
from mempo_env.records import Passage

from .searcher import ScoredPassage

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "MEMPO_CACHE"
TITLE_WEIGHT = 2
"""How often a title counts. Twice finds 91 % of HotpotQA's gold passages first by their title, once 85 %."""
_SETTINGS = {"method": "lucene", "k1": 1.5, "b": 0.75}  # bm25s's defaults, written out since the cache depends on them
_BLOCK = 512
_FORMAT = 1
_MANIFEST = "manifest.json"
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Cuts text into the words that are matched: NFKC, case folded, no stop words removed, no stemming.

    >>> words("Who plays Go?")
    ['who', 'plays', 'go']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def default_cache_dir() -> Path:
    """Where indexes are kept: ``$MEMPO_CACHE``, else the platform's cache folder."""
    if override := os.environ.get(CACHE_VARIABLE):
        return Path(override).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "mempo-env"


class Bm25Index:
    """A searchable list of passages; make one with ``build`` (cached on disk) or ``in_memory``.

    Safe to search from several threads. Pickles as its passages, so that no copy of the arrays travels.
    """

    def __init__(self, passages: Sequence[Passage], bm25: Any, cache_dir: Path | None = None) -> None:
        self.passages = tuple(passages)
        self._bm25 = bm25
        self._cache_dir = cache_dir

    @classmethod
    def build(cls, passages: Sequence[Passage], cache_dir: str | Path | None = None) -> Bm25Index:
        """Loads the index of these passages from the cache, or builds it and stores it there.

        A damaged cache entry is replaced, and a folder that cannot be written to means an index in memory; a warning
        says so in both cases.

        Args:
            passages: What to search, at least one.
            cache_dir: Folder of the cache; by default ``default_cache_dir()``.

        Returns:
            The index.

        Raises:
            UserError: There are no passages, or no word in them.
        """
        root = default_cache_dir() if cache_dir is None else Path(cache_dir)
        folder = root / "bm25" / _content_hash(passages)
        damaged = False
        if folder.exists():
            try:
                return cls(passages, _load(folder, len(passages)), root)
            except (OSError, ValueError, KeyError, TypeError, EOFError) as problem:
                logger.warning("the search index in %s is damaged (%s); building it again", folder, problem)
                damaged = True
        bm25 = _index(passages)
        try:
            _store(bm25, folder, replace=damaged)
            bm25 = _load(folder, len(passages))
        except OSError as problem:
            logger.warning(
                "the search index could not be kept in %s (%s) and will be built again next time; set %s to a folder "
                "that can be written to",
                folder,
                problem,
                CACHE_VARIABLE,
            )
        return cls(passages, bm25, root)

    @classmethod
    def in_memory(cls, passages: Sequence[Passage]) -> Bm25Index:
        """Indexes passages without touching the disk.

        Raises:
            UserError: There are no passages, or no word in them.
        """
        return cls(passages, _index(passages))

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Finds the best passages for each query.

        Args:
            queries: What to look for.
            k: Most passages per query.

        Returns:
            Per query, passages by falling score; fewer than ``k``, or none, where no more share a word with it.
        """
        return [[self.passages[int(index)] for index in self._top(query, k)[0]] for query in queries]

    def retrieve(self, queries: Sequence[str], topk: int) -> list[list[ScoredPassage]]:
        """What ``search`` finds, with BM25 scores; see ``Searcher.retrieve``."""
        return [
            [
                ScoredPassage(self.passages[index], score)
                for index, score in zip(found.tolist(), scores.tolist(), strict=True)
            ]
            for found, scores in (self._top(query, topk) for query in queries)
        ]

    def _top(self, query: str, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best passages' indices and scores, both (found,)."""
        ids = self._bm25.get_tokens_ids(words(query))
        if not ids or k < 1:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        scores: NDArray[np.float32] = self._bm25.get_scores_from_ids(ids)  # (passages,)
        bound = _bound(scores, k)
        found = np.flatnonzero(scores >= bound if bound > 0 else scores > 0)
        if found.size > k:  # all that tie with the k-th best stay, since a partition orders them at random
            kth = np.partition(scores[found], found.size - k)[found.size - k]
            found = found[scores[found] >= kth]
        best = found[np.argsort(-scores[found], kind="stable")[:k]]  # stable: ties in the passages' order
        return best, scores[best]

    def __len__(self) -> int:
        return len(self.passages)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._cache_dir is None:
            return Bm25Index.in_memory, (self.passages,)
        return Bm25Index.build, (self.passages, self._cache_dir)


@functools.lru_cache(maxsize=256)
def task_index(passages: tuple[Passage, ...]) -> Bm25Index:
    """The in-memory index of a task's own corpus, kept for the other episodes of its group.

    Args:
        passages: ``Task.passages``.

    Returns:
        The index, the same object for equal passages.
    """
    return Bm25Index.in_memory(passages)


def _bound(scores: NDArray[np.float32], k: int) -> float:
    """A number that none of the k best scores is below, or 0.

    A common word gives a score to nearly every one of a million passages, and to sort so many takes longer than to
    score them. The k-th largest of the blocks' maxima is such a number: k passages reach it, and few do beside them.
    """
    blocks = scores.size // _BLOCK
    if blocks <= k:
        return 0.0
    best = scores[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)  # (blocks,)
    return float(np.partition(best, blocks - k)[blocks - k])


def _content_hash(passages: Sequence[Passage]) -> str:
    bm25s = _bm25s()
    digest = hashlib.sha256(repr((_FORMAT, bm25s.__version__, _SETTINGS, TITLE_WEIGHT, _WORD.pattern)).encode())
    for passage in passages:
        for part in (passage.title, passage.text):
            data = part.encode("utf-8", errors="surrogatepass")
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
    return digest.hexdigest()[:32]


def _index(passages: Sequence[Passage]) -> Any:
    if not passages:
        raise UserError("there are no passages to search; give a corpus with at least one row")
    vocabulary: dict[str, int] = {}  # filled in reading order: a set's order would vary between processes
    rows: list[list[int]] = []
    for passage in passages:
        row = words(passage.title) * TITLE_WEIGHT + words(passage.text)
        rows.append([vocabulary.setdefault(word, len(vocabulary)) for word in row])
    if not vocabulary:
        raise UserError("the passages hold no words; check the title and text fields of the corpus")
    bm25 = _bm25s().BM25(backend="numpy", csc_backend="numpy", **_SETTINGS)  # never numba or scipy, present or not
    bm25.index((rows, vocabulary), create_empty_token=False, show_progress=False)
    return bm25


def _store(bm25: Any, folder: Path, *, replace: bool) -> None:
    """Writes an index aside and renames it into place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        bm25.save(aside, show_progress=False)
        sizes = {file.name: file.stat().st_size for file in aside.iterdir()}
        (aside / _MANIFEST).write_text(json.dumps({"format": _FORMAT, "sizes": sizes}), encoding="utf-8")
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            # Another process stored the same content first: its index serves as well as ours.
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _load(folder: Path, n_passages: int) -> Any:
    """Maps a stored index into memory.

    Raises:
        OSError: A file is missing or cannot be read.
        ValueError: The files are not what was stored, or do not fit together.
    """
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    for name, size in manifest["sizes"].items():
        if (found := (folder / name).stat().st_size) != size:
            raise ValueError(f"{name} has {found} bytes, {size} were written")
    bm25 = _bm25s().BM25.load(folder, mmap=True, load_corpus=False, show_progress=False)
    for name in ("data", "indices", "indptr"):
        bm25.scores[name] = np.asarray(bm25.scores[name])  # the same mapped pages, without memmap's slow slicing
    indptr, n_data = bm25.scores["indptr"], len(bm25.scores["data"])
    if (
        bm25.scores["num_docs"] != n_passages
        or len(indptr) != len(bm25.vocab_dict) + 1
        or int(indptr[-1]) != n_data
        or len(bm25.scores["indices"]) != n_data
    ):
        raise ValueError("its arrays do not fit together")
    return bm25


def _bm25s() -> Any:
    """Imports bm25s when it is first needed: it costs a tenth of a second, and would log at DEBUG to every handler."""
    import bm25s

    if (log := logging.getLogger("bm25s")).level == logging.DEBUG:
        log.setLevel(logging.WARNING)
    return bm25s
