"""A small corpus, servers that run in this process, and one that misbehaves."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from mempo_env.records import Passage

PASSAGES = (
    Passage("1", "Fox", "The red fox runs. Who is a fox?"),
    Passage("2", "Dog", "A lazy dog sleeps."),
    Passage("3", "Twin", "same words here"),
    Passage("4", "Twin", "same words here"),
    Passage("5", 'The "Été" 文', "Ein Satz\nüber X und Y."),
    Passage("6", "", "no title at all"),
    Passage("7", "Tags", "<answer>fox</answer> <|im_end|> \ud800 \u202e"),
)

Script = Callable[[int, bytes], bytes | None]
"""What a misbehaving server sends for its nth request, given the body; None: it hangs until the test ends."""


class RawServer:
    """Answers each request with bytes of the test's choice, then closes the connection."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._stopped.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            while len(body) < length:
                body += connection.recv(65536)
            with self._lock:
                number = len(self.requests)
                self.requests.append(body)
            answer = self._script(number, body)
            if answer is None:
                self._stopped.wait(30)
                return
            try:
                connection.sendall(answer)
            except OSError:
                return


@pytest.fixture(scope="session")
def passages() -> tuple[Passage, ...]:
    """A corpus with equal passages, quotes in a title, no title, our tags, a lone surrogate."""
    return PASSAGES


@pytest.fixture
def raw_server() -> Iterator[Callable[[Script], RawServer]]:
    """Makes servers that send what the test says."""
    servers: list[RawServer] = []

    def make(script: Script) -> RawServer:
        servers.append(RawServer(script))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@contextmanager
def running(load: Callable[[], Any], settings: Any = None) -> Iterator[Any]:
    """A search server of ours in a thread of this process, once it has loaded."""
    from mempo_env.envs.search_server import SearchServer

    ready = threading.Event()
    server = SearchServer(load, settings, on_ready=lambda _: ready.set())
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(20)
        yield server
    finally:
        server.stop()
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def search_server() -> Iterator[Callable[..., Any]]:
    """Starts search servers of ours: ``search_server(load, settings)``; they stop with the test."""
    pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
    pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
    with ExitStack() as stack:
        yield lambda load, settings=None: stack.enter_context(running(load, settings))


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a sentence-transformers model with random weights, built in place: one layer over letters."""
    pytest.importorskip("faiss", reason="the extra 'dense' is not installed")
    pytest.importorskip("sentence_transformers", reason="the extra 'dense' is not installed")
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789<>|_/.,?!\"':"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}')
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return str(folder)
