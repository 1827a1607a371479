"""The server over real connections: what it refuses, how it queues, how it stops."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mempo_env.envs.retrieval import Bm25Index
from mempo_env.envs.search_protocol import RequestLimits
from mempo_env.envs.searcher import ScoredPassage
from mempo_env.errors import UserError
from mempo_env.records import Passage

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
pytest.importorskip("httpx2", reason="the extra 'search' is not installed")

import httpx2

from mempo_env.envs.search_server import SearchServer, ServerSettings

Servers = Callable[..., SearchServer]
ASK: dict[str, Any] = {"queries": ["fox"], "topk": 1, "return_scores": True}


class SlowSearcher:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.lock = threading.Lock()
        self.running = self.most = self.searches = 0

    def retrieve(self, queries: Sequence[str], topk: int) -> list[list[ScoredPassage]]:
        with self.lock:
            self.running += 1
            self.searches += 1
            self.most = max(self.most, self.running)
        self.go.wait(20)
        with self.lock:
            self.running -= 1
        return [[ScoredPassage(Passage("1", "T", query), 1.0)] for query in queries]


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until something is so; a minute at most, so that a failure is told and not waited for."""
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def server(search_server: Servers, passages: tuple[Passage, ...]) -> SearchServer:
    limits = RequestLimits(max_queries=3, max_query_characters=20, max_topk=5, default_topk=2, max_body_bytes=1000)
    return search_server(lambda: Bm25Index.in_memory(passages), ServerSettings(limits=limits))


def post(server: SearchServer, body: Any, **more: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(f"{server.url}/retrieve", content=content, timeout=30, **more)


def test_the_published_protocol_over_the_wire(server: SearchServer) -> None:
    answer = post(server, ASK)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    ((hit,),) = answer.json()["result"]
    assert hit["document"] == {"id": "1", "contents": '"Fox"\nThe red fox runs. Who is a fox?'}
    assert hit["score"] > 0
    plain = post(server, {"queries": ["fox", "zzz"]}).json()["result"]
    assert plain[0][0] == hit["document"]
    assert len(plain[0]) == 2, "the default topk"
    assert plain[1] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff", 400),
        (b"[]", 400),
        ({}, 422),
        ({"queries": ["a"] * 4}, 422),
        ({"queries": ["a" * 21]}, 422),
        ({"queries": ["a"], "topk": 6}, 422),
        ({"queries": ["a"], "topk": "many"}, 422),
        ({"queries": ["a"], "k": 3}, 422),
        (b" " * 1001, 413),
    ],
)
def test_bad_requests_are_the_clients(server: SearchServer, body: Any, status: int) -> None:
    answer = post(server, body)
    assert answer.status_code == status
    detail = answer.json()["detail"]
    assert "\n" not in detail
    assert 5 < len(detail) < 120
    assert post(server, ASK).status_code == 200


def test_a_body_without_a_length_is_limited_too(server: SearchServer) -> None:
    answer = httpx2.post(f"{server.url}/retrieve", content=(b" " * 100 for _ in range(20)))
    assert answer.status_code == 413


def test_other_paths_and_methods(server: SearchServer) -> None:
    for method, path, status in (("GET", "/retrieve", 405), ("POST", "/health", 405), ("GET", "/nothing", 404)):
        answer = httpx2.request(method, f"{server.url}{path}")
        assert answer.status_code == status
        assert answer.json()["detail"]
    for path in ("/health", "/ready"):
        assert httpx2.get(server.url + path).status_code == 200
        assert httpx2.head(server.url + path).status_code == 200


def test_a_body_that_never_comes_is_given_up(search_server: Servers, passages: tuple[Passage, ...]) -> None:
    server = search_server(lambda: Bm25Index.in_memory(passages), ServerSettings(body_s=0.3))
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert received.startswith(b"HTTP/1.1 408")


def test_a_bug_in_the_searcher_is_a_500_and_not_the_end(search_server: Servers) -> None:
    class Broken:
        calls = 0

        def retrieve(self, queries: Sequence[str], topk: int) -> list[list[ScoredPassage]]:
            self.calls += 1
            if self.calls == 1:
                raise ZeroDivisionError("a secret")
            return [[] for _ in queries]

    broken = Broken()
    server = search_server(lambda: broken)
    answer = post(server, ASK)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert post(server, ASK).json() == {"result": [[]]}


def test_until_the_index_is_loaded_it_lives_but_is_not_ready(passages: tuple[Passage, ...]) -> None:
    load, ready = threading.Event(), threading.Event()

    def slowly() -> Bm25Index:
        load.wait(20)
        return Bm25Index.in_memory(passages)

    server = SearchServer(slowly, on_ready=lambda _: ready.set())
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert httpx2.get(server.url + "/health").status_code == 200
        for answer in (httpx2.get(server.url + "/ready"), post(server, ASK)):
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) >= 1
        load.set()
        assert ready.wait(20)
        assert httpx2.get(server.url + "/ready").status_code == 200
        assert post(server, ASK).status_code == 200
    finally:
        load.set()
        server.stop()
        thread.join(20)


def test_a_corpus_that_cannot_be_loaded_ends_the_server() -> None:
    def fail() -> Bm25Index:
        raise UserError("no corpus")

    with pytest.raises(UserError, match="no corpus"):
        SearchServer(fail).run()


def test_the_queue_is_bounded_and_the_loop_stays_free(search_server: Servers) -> None:
    searcher = SlowSearcher()
    server = search_server(lambda: searcher, ServerSettings(workers=2, queue=3))
    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(post, server, ASK) for _ in range(12)]
        wait_for(lambda: sum(future.done() for future in futures) == 7)  # 12 less two that run and three that wait
        assert httpx2.get(server.url + "/health", timeout=20).status_code == 200
        searcher.go.set()
        answers = [future.result() for future in futures]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 7
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    assert sum(answer.status_code == 200 for answer in answers) == 5
    assert (searcher.most, searcher.searches) == (2, 5)
    assert post(server, ASK).status_code == 200, "every place is free again"


def test_a_request_whose_client_has_left_is_not_searched_for(search_server: Servers) -> None:
    searcher = SlowSearcher()
    server = search_server(lambda: searcher, ServerSettings(workers=1, queue=10))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, server, ASK)
        wait_for(lambda: searcher.searches == 1)
        for _ in range(3):
            with pytest.raises(httpx2.TimeoutException):
                httpx2.post(f"{server.url}/retrieve", json=ASK, timeout=0.2)
        searcher.go.set()
        assert first.result().status_code == 200
    assert post(server, ASK).status_code == 200
    assert searcher.searches == 2


def test_a_stop_lets_requests_in_flight_finish(search_server: Servers) -> None:
    searcher = SlowSearcher()
    server = search_server(lambda: searcher, ServerSettings(workers=1, queue=3))
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(post, server, ASK) for _ in range(2)]  # one runs, one waits
        wait_for(lambda: server._service._taken == 2)
        server.stop()

        def gone() -> bool:
            try:
                return bool(httpx2.get(server.url + "/health", timeout=5).status_code >= 500)
            except httpx2.HTTPError:
                return True

        wait_for(gone)
        searcher.go.set()
        assert [future.result().status_code for future in futures] == [200, 200]


def test_connections_are_bounded(search_server: Servers, passages: tuple[Passage, ...]) -> None:
    server = search_server(lambda: Bm25Index.in_memory(passages), ServerSettings(connections=3))
    host, port = server.url.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port)), timeout=20) for _ in range(3)]
    try:
        wait_for(lambda: post(server, ASK).status_code == 503)
        idle.pop().close()
        wait_for(lambda: post(server, ASK).status_code == 200)
    finally:
        for connection in idle:
            connection.close()


def test_answers_do_not_wait_for_acknowledgements(server: SearchServer) -> None:
    """asyncio sets TCP_NODELAY on connections of a listener that names its protocol, and on no others."""
    assert server._socket.proto == socket.IPPROTO_TCP


def test_a_port_that_is_taken(server: SearchServer, passages: tuple[Passage, ...]) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(UserError, match=f"port {port}"):
        SearchServer(lambda: Bm25Index.in_memory(passages), port=port)
    with pytest.raises(UserError, match="65535"):
        SearchServer(lambda: Bm25Index.in_memory(passages), port=70_000)


def test_settings_are_checked() -> None:
    for changes in ({"workers": 0}, {"queue": -1}, {"connections": 0}, {"body_s": 0.0}, {"grace_s": float("nan")}):
        with pytest.raises(UserError):
            ServerSettings(**changes)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM there")
def test_a_stop_while_the_index_is_loading_is_one_too() -> None:
    code = (
        "import time\n"
        "from mempo_env.envs.search_server import SearchServer\n"
        "server = SearchServer(lambda: time.sleep(300))\n"
        "print(server.url, flush=True)\n"
        "server.run()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert httpx2.get(url + "/ready", timeout=30).status_code == 503
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM there")
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_graceful_stop_with_exit_code_0(kind: signal.Signals, tmp_path: Path) -> None:
    """The whole command: a search that takes a while is answered although the stop was asked for meanwhile."""
    (tmp_path / "slow.py").write_text(
        "import sys, time\n"
        "from mempo_env.envs.retrieval import Bm25Index\n"
        "from mempo_env.cli import main\n"
        "search = Bm25Index.retrieve\n"
        "def slow(self, queries, topk):\n"
        "    print('searching', flush=True)\n"
        "    time.sleep(1)\n"
        "    return search(self, queries, topk)\n"
        "Bm25Index.retrieve = slow\n"
        "main(['serve-search', '--corpus', sys.argv[1], '--port', '0'])\n"
    )
    (tmp_path / "corpus.jsonl").write_text('{"id": "1", "title": "Fox", "text": "a red fox"}\n')
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "slow.py"), str(tmp_path / "corpus.jsonl")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split("listening on ")[1].split(",")[0]
        assert "ready: 1 passages by bm25" in process.stdout.readline()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(lambda: httpx2.post(f"{url}/retrieve", json=ASK, timeout=30))
            assert process.stdout.readline() == "searching\n"
            process.send_signal(kind)
            assert answer.result().status_code == 200
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "mempo serve-search: stopped\n", "")
