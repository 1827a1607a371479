"""Passages found by the similarity of embeddings: a sentence-transformers encoder and a FAISS index.

Embeddings have unit length, so that the inner product is the cosine. The exact index (``flat``) is the default;
``hnsw`` and ``ivf`` answer faster over millions of passages and may miss some. An index is cached on disk like BM25's:
in a folder named by the hash of passages, settings, the encoder's weights and vocabulary, and the versions of both
libraries, written aside and renamed.

Invariants:
    * importing this file imports neither torch nor FAISS;
    * equal scores are ordered by the passages' order; every result is one of ``flat``'s scores, never an estimate;
    * one call of the encoder at a time: fast tokenizers refuse to be shared by threads.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import shutil
import threading
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mempo_env.errors import UserError
from mempo_env.plugins import import_extra
from mempo_env.records import Passage

from .retrieval import default_cache_dir
from .searcher import ScoredPassage

logger = logging.getLogger(__name__)

_FORMAT = 1
_PREFIXES = {"none": ("", ""), "e5": ("query: ", "passage: ")}


@dataclass(frozen=True)
class DenseSettings:
    """How passages are embedded and indexed.

    Attributes:
        model: A sentence-transformers model: a hub id, such as ``intfloat/e5-base-v2``, or a folder.
        prefixes: What stands before queries and passages: ``e5`` (``query:`` and ``passage:``, which the e5 models were
            trained with), ``none``, or ``auto``: ``e5`` where the model's own name has ``e5`` in it, as in Search-R1.
        index: ``flat`` (exact), ``hnsw`` (graph) or ``ivf`` (inverted file).
        batch_size: Passages embedded at a time.
        max_tokens: Longest text embedded, in the model's tokens; 0: the model's own limit. Search-R1 uses 256.
        device: Where the encoder runs; empty: sentence-transformers' choice.
        hnsw_links: Links per passage (FAISS's M).
        hnsw_search: Passages looked at per query (efSearch); more finds more.
        ivf_lists: Lists (nlist); 0: 4 times the root of the number of passages.
        ivf_probes: Lists looked at per query (nprobe); more finds more.
    """

    model: str
    prefixes: Literal["auto", "e5", "none"] = "auto"
    index: Literal["flat", "hnsw", "ivf"] = "flat"
    batch_size: int = 64
    max_tokens: int = 0
    device: str = ""
    hnsw_links: int = 32
    hnsw_search: int = 64
    ivf_lists: int = 0
    ivf_probes: int = 16

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("dense retrieval needs a model, such as dense:intfloat/e5-base-v2")
        for name, known in (("prefixes", ("auto", "e5", "none")), ("index", ("flat", "hnsw", "ivf"))):
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}")
        for name in ("batch_size", "hnsw_links", "hnsw_search", "ivf_probes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("max_tokens", "ivf_lists"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must be at least 0")

    @property
    def affixes(self) -> tuple[str, str]:
        """What stands before a query and before a passage."""
        if self.prefixes == "auto":
            return _PREFIXES["e5" if "e5" in Path(self.model).name.lower() else "none"]
        return _PREFIXES[self.prefixes]


class Encoder:
    """Texts to embeddings of unit length; safe to use from several threads.

    Args:
        settings: Which model, and how.

    Raises:
        UserError: The extra ``dense`` is not installed, or the model cannot be loaded.
    """

    def __init__(self, settings: DenseSettings) -> None:
        library: Any = import_extra("sentence_transformers", "dense retrieval")
        try:
            self._model = library.SentenceTransformer(settings.model, device=settings.device or None)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the encoder '{settings.model}' cannot be loaded: {reason}") from error
        if settings.max_tokens:
            self._model.max_seq_length = settings.max_tokens
        self._batch_size = settings.batch_size
        self._lock = threading.Lock()
        self.fingerprint = self._fingerprint()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeds texts.

        Args:
            texts: Any strings; what UTF-8 cannot hold becomes ``?``.

        Returns:
            Unit vectors, (texts, dimensions).
        """
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        with self._lock:
            vectors = self._model.encode(
                clean,
                batch_size=self._batch_size,
                convert_to_numpy=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def _fingerprint(self) -> str:
        """Hash of what decides an embedding: modules with their settings, vocabulary and weights."""
        digest = hashlib.sha256(repr(self._model).encode())
        digest.update(json.dumps(sorted(self._model.tokenizer.get_vocab().items())).encode())
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).data)
        return digest.hexdigest()


@functools.lru_cache(maxsize=2)
def _shared_encoder(settings: DenseSettings) -> Encoder:
    return Encoder(settings)


class DenseIndex:
    """A list of passages, searchable by embeddings; make one with ``build`` (cached on disk) or ``in_memory``.

    Safe to search from several threads. Pickles as its passages and settings.
    """

    def __init__(
        self,
        passages: Sequence[Passage],
        settings: DenseSettings,
        encoder: Encoder,
        index: Any,
        cache_dir: Path | None = None,
    ) -> None:
        self.passages = tuple(passages)
        self.settings = settings
        self._encoder = encoder
        self._index = index
        self._cache_dir = cache_dir

    @classmethod
    def build(
        cls, passages: Sequence[Passage], settings: DenseSettings, cache_dir: str | Path | None = None
    ) -> DenseIndex:
        """Loads the index of these passages from the cache, or builds it and stores it there.

        A damaged cache entry is replaced, and a folder that cannot be written to means an index in memory; a warning
        says so in both cases.

        Args:
            passages: What to search, at least one.
            settings: How.
            cache_dir: Folder of the cache; by default that of BM25's indexes.

        Returns:
            The index.

        Raises:
            UserError: There are no passages, the extra ``dense`` is missing, or the model cannot be loaded.
        """
        faiss = import_extra("faiss", "dense retrieval")
        encoder = _shared_encoder(settings)
        root = default_cache_dir() if cache_dir is None else Path(cache_dir)
        folder = root / "dense" / _content_hash(faiss, passages, settings, encoder)
        if folder.exists():
            try:
                return cls(passages, settings, encoder, _load(faiss, folder, len(passages)), root)
            except (OSError, ValueError, KeyError, TypeError, RuntimeError) as problem:
                logger.warning("the search index in %s is damaged (%s); building it again", folder, problem)
                shutil.rmtree(folder, ignore_errors=True)
        index = _index(faiss, passages, settings, encoder)
        try:
            _store(faiss, index, folder)
        except (OSError, RuntimeError) as problem:  # FAISS's own writer raises RuntimeError
            logger.warning("the search index could not be kept in %s (%s); it will be built again", folder, problem)
        return cls(passages, settings, encoder, index, root)

    @classmethod
    def in_memory(cls, passages: Sequence[Passage], settings: DenseSettings) -> DenseIndex:
        """Embeds and indexes passages without touching the disk.

        Raises:
            UserError: As for ``build``.
        """
        faiss = import_extra("faiss", "dense retrieval")
        encoder = _shared_encoder(settings)
        return cls(passages, settings, encoder, _index(faiss, passages, settings, encoder))

    def retrieve(self, queries: Sequence[str], topk: int) -> list[list[ScoredPassage]]:
        """The passages most similar to each query, with their cosines; see ``Searcher.retrieve``.

        The queries of one call are embedded together, so that a score's last digits may depend on its neighbours.
        """
        asked = [at for at, query in enumerate(queries) if query.strip()] if topk >= 1 else []
        found: list[list[ScoredPassage]] = [[] for _ in queries]
        if asked:
            before = self.settings.affixes[0]
            vectors = self._encoder.encode([before + queries[at] for at in asked])
            scores, indices = self._index.search(vectors, min(topk, len(self.passages)))  # both (asked, topk)
            for at, row_scores, row in zip(asked, scores.tolist(), indices.tolist(), strict=True):
                hits = sorted((-score, index) for score, index in zip(row_scores, row, strict=True) if index >= 0)
                found[at] = [ScoredPassage(self.passages[index], -score) for score, index in hits]
        return found

    def __len__(self) -> int:
        return len(self.passages)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._cache_dir is None:
            return DenseIndex.in_memory, (self.passages, self.settings)
        return DenseIndex.build, (self.passages, self.settings, self._cache_dir)


@functools.lru_cache(maxsize=64)
def dense_task_index(passages: tuple[Passage, ...], settings: DenseSettings) -> DenseIndex:
    """The in-memory index of a task's own corpus, kept for the other episodes of its group."""
    return DenseIndex.in_memory(passages, settings)


def _index(faiss: Any, passages: Sequence[Passage], settings: DenseSettings, encoder: Encoder) -> Any:
    if not passages:
        raise UserError("there are no passages to search; give a corpus with at least one row")
    before = settings.affixes[1]
    vectors = encoder.encode([before + _embedded(passage) for passage in passages])
    n, dimensions = vectors.shape
    if settings.index == "hnsw":
        index = faiss.IndexHNSWFlat(dimensions, settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = settings.hnsw_search
    elif settings.index == "ivf":
        lists = min(settings.ivf_lists or round(4 * math.sqrt(n)), max(1, n // 39))  # k-means asks for 39 points a list
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimensions), dimensions, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.nprobe = min(settings.ivf_probes, lists)
    else:
        index = faiss.IndexFlatIP(dimensions)
    index.add(vectors)
    return index


def _embedded(passage: Passage) -> str:
    """What is embedded of a passage: title and text, as the rows of Search-R1's corpus have them."""
    title = " ".join(passage.title.split())
    return f'"{title}"\n{passage.text}' if title else passage.text


def _content_hash(faiss: Any, passages: Sequence[Passage], settings: DenseSettings, encoder: Encoder) -> str:
    versions = [version("sentence-transformers"), faiss.__version__]
    how = {name: value for name, value in asdict(settings).items() if name not in ("model", "device", "batch_size")}
    how |= {"affixes": settings.affixes}
    digest = hashlib.sha256(json.dumps([_FORMAT, versions, how, encoder.fingerprint]).encode())
    for passage in passages:
        for part in (passage.title, passage.text):
            data = part.encode("utf-8", errors="surrogatepass")
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
    return digest.hexdigest()[:32]


def _store(faiss: Any, index: Any, folder: Path) -> None:
    """Writes an index aside and renames it into place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        aside.mkdir()
        faiss.write_index(index, str(aside / "vectors.faiss"))
        size = (aside / "vectors.faiss").stat().st_size
        (aside / "manifest.json").write_text(json.dumps({"format": _FORMAT, "size": size}), encoding="utf-8")
        try:
            aside.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            # Another process stored the same content first: its index serves as well as ours.
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _load(faiss: Any, folder: Path, n_passages: int) -> Any:
    """Reads a stored index.

    Raises:
        OSError: A file is missing or cannot be read.
        ValueError: The file is not what was stored.
        RuntimeError: FAISS cannot read it.
    """
    size = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["size"]
    if (found := (folder / "vectors.faiss").stat().st_size) != size:
        raise ValueError(f"vectors.faiss has {found} bytes, {size} were written")
    index = faiss.read_index(str(folder / "vectors.faiss"))
    if index.ntotal != n_passages:
        raise ValueError(f"it has {index.ntotal} vectors for {n_passages} passages")
    return index
