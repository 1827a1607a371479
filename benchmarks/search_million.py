"""An index over a million passages, built and served on the spot, and how fast it answers under load.

The corpus is made on the spot and is the same for the same seed: words from a vocabulary with Zipf-Mandelbrot
frequencies, as in natural text, so that queries meet posting lists of every length up to nearly all passages; titles
of rare words; 60 to 100 words a passage. A query is the title of some passage and five words of its text, common ones
included.

`mempo serve-search` runs as a process of its own and builds the index (cold start), is stopped, and starts again from
the stored index (warm start). Then this process, the second one, asks with 1, 8 and 32 threads that share one client,
each thread with one request at a time. Nothing is asserted; the numbers go into a file:

    python benchmarks/search_million.py --out benchmarks/results/search_million.json

Needs the extras `search` and `serve`, psutil, and for a million passages about 5 GB of memory and 2 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mempo_env.envs.jsonl import load_corpus
from mempo_env.envs.retrieval import CACHE_VARIABLE, Bm25Index, words
from mempo_env.envs.search_client import HttpSearcher, SearchClientSettings
from mempo_env.records import Passage

logger = logging.getLogger("search_million")

VOCABULARY = 400_000
RARE = 200
"""Titles have no word among the commonest so many."""
_SYLLABLES = ("ba", "ko", "ri", "ta", "mun", "sel", "do", "ven", "ar", "is", "lo", "gra", "ti", "ne", "sha", "per")
_BLOCK = 10_000


def vocabulary(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Distinct made-up words, the commoner ones shorter, (VOCABULARY,)."""
    found: dict[str, None] = {}
    while len(found) < VOCABULARY:
        length = 1 + int(np.log(len(found) + 1) / 3) + int(rng.integers(0, 2))
        found["".join(_SYLLABLES[at] for at in rng.integers(0, len(_SYLLABLES), size=length))] = None
    return np.array(list(found), dtype=object)


def corpus(n: int, seed: int) -> Iterator[Passage]:
    """The passages."""
    rng = np.random.default_rng(seed)
    known = vocabulary(rng)
    frequency = 1 / (np.arange(VOCABULARY) + 2.7) ** 1.05  # Mandelbrot's shift keeps the commonest word near 5 %
    cumulated = np.cumsum(frequency / frequency.sum())
    for start in range(0, n, _BLOCK):
        count = min(_BLOCK, n - start)
        lengths, title_lengths = rng.integers(60, 101, size=count), rng.integers(1, 5, size=count)
        drawn = np.minimum(np.searchsorted(cumulated, rng.random(int(lengths.sum()))), VOCABULARY - 1)
        texts = np.split(known[drawn], np.cumsum(lengths)[:-1])
        rare = known[rng.integers(RARE, VOCABULARY, size=int(title_lengths.sum()))]
        titles = np.split(rare, np.cumsum(title_lengths)[:-1])
        for at, (title, text) in enumerate(zip(titles, texts, strict=True)):
            yield Passage(str(start + at), " ".join(title.tolist()), " ".join(text.tolist()))


def write_corpus(path: Path, n: int, seed: int, queries: int) -> list[str]:
    """Writes the passages as a corpus file; returns queries for some of them."""
    rng = np.random.default_rng([seed, 1])
    chosen = set(rng.choice(n, size=min(queries, n), replace=False).tolist())
    asked = []
    with path.open("w", encoding="utf-8") as file:
        for at, passage in enumerate(corpus(n, seed)):
            file.write(json.dumps({"id": passage.id, "title": passage.title, "text": passage.text}) + "\n")
            if at in chosen:
                text = passage.text.split()
                asked.append(" ".join([passage.title, *(text[int(i)] for i in rng.integers(len(text), size=5))]))
    order = rng.permutation(len(asked))
    return [asked[int(at)] for at in order]


class Server:
    """``mempo serve-search`` as a process."""

    def __init__(self, file: Path, cache: Path, log: Path) -> None:
        began = time.perf_counter()
        command = [sys.executable, "-m", "mempo_env.cli", "serve-search", "--corpus", str(file), "--port", "0"]
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                env=os.environ | {CACHE_VARIABLE: str(cache), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().split("listening on ")[1].split(",")[0]
        ready = self._process.stdout.readline()
        if "ready" not in ready:
            raise RuntimeError(f"the server did not start; see {log}")
        self.ready_s = time.perf_counter() - began

    def memory(self) -> dict[str, float]:
        """Resident memory now and at its highest (Linux only), in GB; pages of mapped files count."""
        info = psutil.Process(self._process.pid).memory_full_info()
        status = Path(f"/proc/{self._process.pid}/status")
        peak = 0.0
        if status.exists():
            peak = int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e9
        return {"rss_gb": round(info.rss / 1e9, 2), "unique_gb": round(info.uss / 1e9, 2), "peak_gb": round(peak, 2)}

    def stop(self) -> int:
        """Asks it to stop; returns the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Latency in milliseconds."""
    return {f"p{share}_ms": round(float(np.percentile(seconds, share)) * 1e3, 2) for share in (50, 95, 99)} | {
        "max_ms": round(max(seconds) * 1e3, 2)
    }


def load(url: str, queries: Sequence[str], clients: int, seconds: float, topk: int) -> dict[str, Any]:
    """Asks with so many threads, one query a request, each with one request at a time."""
    searcher = HttpSearcher(SearchClientSettings(url, timeout_s=30))
    searcher.retrieve(queries[:1], topk)
    taken: list[list[float]] = [[] for _ in range(clients)]
    found = [0] * clients
    ends = time.perf_counter() + seconds

    def ask(thread: int) -> None:
        order = random.Random(thread)
        while (began := time.perf_counter()) < ends:
            found[thread] += bool(searcher.retrieve([order.choice(queries)], topk)[0])
            taken[thread].append(time.perf_counter() - began)

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    every = [second for own in taken for second in own]
    row = {"clients": clients, "requests": len(every), "queries_per_s": round(len(every) / took, 1)}
    return row | percentiles(every) | {"without_result": len(every) - sum(found), "faults": searcher.faults}


def scoring(file: Path, cache: Path, queries: Sequence[str], topk: int) -> dict[str, Any]:
    """One thread and no server: a whole search, and the scoring alone by each backend of bm25s; scores are compared."""
    passages = load_corpus(file)
    index = Bm25Index.build(passages, cache)
    ids = [index._bm25.get_tokens_ids(words(query)) for query in queries]
    lists = index._bm25.scores["indptr"]

    def timed(function: Any, arguments: Sequence[Any]) -> dict[str, float]:
        taken = []
        for argument in arguments:
            began = time.perf_counter()
            function(argument)
            taken.append(time.perf_counter() - began)
        return percentiles(taken)

    result: dict[str, Any] = {
        "words_per_query": round(float(np.mean([len(row) for row in ids])), 2),
        "postings_per_query": round(float(np.mean([sum(int(lists[i + 1] - lists[i]) for i in row) for row in ids]))),
        "search": timed(lambda query: index.retrieve([query], topk), queries),
        "numpy": timed(index._bm25.get_scores_from_ids, ids),
    }
    if find_spec("numba") is not None:
        import bm25s

        (folder,) = (cache / "bm25").iterdir()
        fast = bm25s.BM25.load(folder, mmap=True, load_corpus=False, show_progress=False)
        fast.backend = "numba"
        fast.activate_numba_scorer()
        fast.get_scores_from_ids(ids[0])
        result["numba"] = timed(fast.get_scores_from_ids, ids)
        result["numba_scores_equal"] = all(
            np.array_equal(index._bm25.get_scores_from_ids(row), fast.get_scores_from_ids(row)) for row in ids[:50]
        )
    return result


def main() -> None:
    """Makes, builds, serves, asks, and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=15.0, help="of load for each number of clients")
    parser.add_argument("--topk", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("search_million.json"))
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    folder = Path(tempfile.mkdtemp(prefix="search-million-"))
    try:
        result = measure(flags, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    flags.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    logger.info("written to %s", flags.out)


def measure(flags: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All of it, within a folder for the corpus and the index."""
    file, cache = folder / "corpus.jsonl", folder / "cache"
    result: dict[str, Any] = {
        "command": f"python benchmarks/search_million.py {' '.join(sys.argv[1:])}",
        "machine": {"cores": os.cpu_count(), "load_average_before": os.getloadavg()},
        "versions": {"python": sys.version.split()[0]}
        | {name: version(name) for name in ("bm25s", "numpy", "httpx2", "starlette", "uvicorn", "tenacity")}
        | ({"numba": version("numba")} if find_spec("numba") is not None else {}),
    }
    began = time.perf_counter()
    queries = write_corpus(file, flags.passages, flags.seed, flags.queries)
    result["corpus"] = {
        "passages": flags.passages,
        "seed": flags.seed,
        "file_gb": round(file.stat().st_size / 1e9, 3),
        "made_in_s": round(time.perf_counter() - began, 1),
        "queries": len(queries),
        "example_query": queries[0],
    }
    logger.info("corpus: %s", result["corpus"])
    for name in ("cold_start", "warm_start"):
        server = Server(file, cache, folder / f"{name}.log")
        result[name] = {"ready_s": round(server.ready_s, 1)} | server.memory()
        if name == "cold_start":
            result[name]["exit_code"] = server.stop()
            size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
            result["index_gb"] = round(size / 1e9, 3)
        logger.info("%s: %s", name, result[name])
    result["load"] = []
    for clients in flags.clients:
        row = load(server.url, queries, clients, flags.seconds, flags.topk)
        row["load_average_after"] = os.getloadavg()[0]
        result["load"].append(row)
        logger.info("%s", row)
    result["after_load"] = server.memory()
    result["warm_start"]["exit_code"] = server.stop()
    result["one_thread_without_server"] = scoring(file, cache, queries[:500], flags.topk)
    logger.info("scoring: %s", result["one_thread_without_server"])
    return result


if __name__ == "__main__":
    main()
