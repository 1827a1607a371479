"""``mempo serve-search``: one search index for many environments, over HTTP.

Invariants:
    * needs no torch for BM25;
    * what can be wrong by the user's hand is said in one line and exit code 2; a stop by SIGTERM or Ctrl-C finishes the
      requests in flight and is exit code 0.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mempo_env.cli.flags import parse_flags
from mempo_env.errors import UserError

from ..envs.search_protocol import RequestLimits

if TYPE_CHECKING:
    from ..envs.searcher import Searcher


@dataclass(frozen=True)
class ServeSearchFlags:
    """Flags of ``mempo serve-search``.

    Attributes:
        data: Data folders, whose ``corpus.jsonl`` (or ``.jsonl.gz``) are searched together.
        corpus: Or corpus files: rows of id, title and text, or of id and contents as in Search-R1.
        retriever: ``bm25``, or ``dense`` with ``--model``.
        model: Encoder for ``dense``: a sentence-transformers hub id or folder.
        index: For ``dense``: ``flat`` (exact), ``hnsw`` or ``ivf``.
        host: Address to listen on; there is no password, so think before you leave the machine.
        port: Port to listen on; 0 takes a free one.
        workers: Searches that run at a time.
        queue: Requests that wait for one of them; further ones are answered with 503.
        body_s: Seconds within which a request's body must arrive.
        grace_s: Seconds that requests in flight have at a stop.
        connections: Most connections, idle ones included; on further ones requests are answered with 503.
        limits: What one request may ask for.
    """

    data: tuple[str, ...] = ()
    corpus: tuple[str, ...] = ()
    retriever: Literal["bm25", "dense"] = "bm25"
    model: Annotated[str, tyro.conf.arg(metavar="STR")] = ""
    index: Literal["flat", "hnsw", "ivf"] = "flat"
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 4
    queue: int = 64
    body_s: float = 10.0
    grace_s: float = 30.0
    connections: int = 1024
    limits: RequestLimits = field(default_factory=RequestLimits)

    def __post_init__(self) -> None:
        if self.retriever == "dense" and not self.model:
            raise UserError("--retriever dense needs --model, such as intfloat/e5-base-v2")
        if self.retriever == "bm25" and (self.model or self.index != "flat"):
            raise UserError("--model and --index go with --retriever dense only")


def run(argv: Sequence[str]) -> None:
    """Serves until it is stopped.

    Args:
        argv: Flags.

    Raises:
        UserError: A flag, or the corpus, cannot be used; the port is taken; or an extra is not installed.
    """
    flags = parse_flags(
        ServeSearchFlags,
        argv,
        command="mempo serve-search",
        description="Serve a corpus to many environments over HTTP, in the protocol of Search-R1.",
    )
    if not flags.data and not flags.corpus:
        raise UserError("mempo serve-search needs something to search: --data FOLDER or --corpus FILE")
    from ..envs.search_server import SearchServer, ServerSettings

    settings = ServerSettings(flags.workers, flags.queue, flags.body_s, flags.grace_s, flags.connections, flags.limits)
    began = time.monotonic()

    def loaded(searcher: Searcher) -> None:
        size = len(getattr(searcher, "passages", ()))
        _say(f"ready: {size} passages by {flags.retriever}, after {time.monotonic() - began:.1f} s")

    server = SearchServer(lambda: load_searcher(flags), settings, host=flags.host, port=flags.port, on_ready=loaded)
    _say(f"listening on {server.url}, loading the index")
    server.run()
    _say("stopped")


def load_searcher(flags: ServeSearchFlags) -> Searcher:
    """Reads the corpus and loads its index, or builds and stores it.

    Raises:
        UserError: A file cannot be used, or an id occurs twice.
    """
    from ..envs.jsonl import find_file, load_corpus
    from ..envs.retrieval import Bm25Index

    files = [Path(name) for name in flags.corpus]
    for folder in flags.data:
        file = find_file(Path(folder), "corpus")
        if file is None:
            raise UserError(f"{folder} has no corpus.jsonl or corpus.jsonl.gz; give a folder that has one")
        files.append(file)
    passages = [passage for file in files for passage in load_corpus(file)]
    if len(files) > 1 and len({passage.id for passage in passages}) < len(passages):
        raise UserError(f"two of the files {', '.join(map(str, files))} use the same passage id; ids must be unique")
    if flags.retriever == "dense":
        from ..envs.dense import DenseIndex, DenseSettings

        return DenseIndex.build(passages, DenseSettings(flags.model, index=flags.index))
    return Bm25Index.build(passages)


def _say(text: str) -> None:
    sys.stdout.write(f"mempo serve-search: {text}\n")
    sys.stdout.flush()
