"""The client against servers that fail, stall, break off and answer garbage."""

from __future__ import annotations

import email.utils
import gzip
import json
import os
import pickle
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mempo_env.envs.search_protocol import MalformedResponseError
from mempo_env.errors import InfrastructureError, UserError

pytest.importorskip("httpx2", reason="the extra 'search' is not installed")
pytest.importorskip("tenacity", reason="the extra 'search' is not installed")

from mempo_env.envs.search_client import (
    CircuitOpenError,
    HttpSearcher,
    ResponseTooLargeError,
    SearchClientSettings,
    SearchRefusedError,
    SearchUnavailableError,
    check_server,
    shared_http_searcher,
)

RawServers = Callable[[Callable[[int, bytes], bytes | None]], Any]


def http(status: int, body: bytes = b"", headers: str = "") -> bytes:
    """An HTTP response, as it goes over the wire."""
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    return head.encode() + body


def good(asked: bytes, pad: str = "") -> bytes:
    """A proper answer: one passage for each query, whose text is the query."""
    queries = json.loads(asked)["queries"]
    hits = [[{"document": {"id": "1", "contents": f'"T"\n{query}{pad}'}, "score": 1.0}] for query in queries]
    return http(200, json.dumps({"result": hits}).encode())


class Pauses(list[float]):
    """Stands for ``time.sleep``: notes the pauses and does not wait."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def client(url: str, pauses: Pauses | None = None, clock: Callable[[], float] = time.monotonic, **changes: Any) -> Any:
    settings = SearchClientSettings(url, **{"timeout_s": 5.0, "attempts": 4} | changes)
    return HttpSearcher(settings, sleep=Pauses() if pauses is None else pauses, clock=clock)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_what_is_sent_and_what_comes_back(raw_server: RawServers) -> None:
    server = raw_server(lambda _, asked: good(asked))
    found = client(server.url).retrieve(["a", "", "b\ud800"], 3)
    assert [[hit.passage.text for hit in hits] for hits in found] == [["a"], [], ["b\ud800"]]
    assert [json.loads(request) for request in server.requests] == [
        {"queries": ["a", "b\ud800"], "topk": 3, "return_scores": True}
    ]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_fault_is_asked_again(raw_server: RawServers, status: int) -> None:
    server = raw_server(lambda number, asked: http(status) if number < 2 else good(asked))
    pauses = Pauses()
    searcher = client(server.url, pauses)
    assert len(searcher.retrieve(["a"], 1)[0]) == 1
    assert len(server.requests) == 3
    assert searcher.faults == {"retries": 2}
    assert 0.125 <= pauses[0] <= 0.25 <= pauses[1] <= 0.5, "doubled, with half of it jitter"


def test_a_fault_that_stays_ends_in_a_typed_error(raw_server: RawServers) -> None:
    server = raw_server(lambda *_: http(500))
    searcher = client(server.url)
    with pytest.raises(SearchUnavailableError, match=r"status 500 \(asked 4 times\)"):
        searcher.retrieve(["a"], 1)
    assert len(server.requests) == 4
    assert searcher.faults == {"retries": 3, "SearchUnavailableError": 1}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"result": [',
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
)
def test_a_connection_that_breaks_off_is_asked_again(raw_server: RawServers, answer: bytes) -> None:
    server = raw_server(lambda number, asked: answer if number == 0 else good(asked))
    assert len(client(server.url).retrieve(["a"], 1)[0]) == 1
    with pytest.raises(SearchUnavailableError, match="the connection"):
        client(raw_server(lambda *_: answer).url).retrieve(["a"], 1)


def test_no_server_at_all() -> None:
    with pytest.raises(SearchUnavailableError, match=r"no connection \(asked 4 times\)"):
        client(f"http://127.0.0.1:{free_port()}").retrieve(["a"], 1)


def test_a_server_that_stalls(raw_server: RawServers) -> None:
    server = raw_server(lambda number, asked: None if number == 0 else good(asked))
    assert len(client(server.url, timeout_s=0.3).retrieve(["a"], 1)[0]) == 1
    with pytest.raises(SearchUnavailableError, match="no answer in time"):
        client(raw_server(lambda *_: None).url, timeout_s=0.2, attempts=2).retrieve(["a"], 1)


def test_a_server_that_drips_is_cut_off_although_each_read_brings_a_byte() -> None:
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not stop.wait(0.02):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        searcher = client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.4, attempts=1)
        try:
            with pytest.raises(SearchUnavailableError, match="no whole answer in time"):
                searcher.retrieve(["a"], 1)
        finally:
            stop.set()
            thread.join(5)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        (lambda: "7", 7, 7),
        (lambda: email.utils.formatdate(time.time() + 40, usegmt=True), 20, 40),
        (lambda: "soon", 0, 1),
    ],
)
def test_retry_after_is_kept(raw_server: RawServers, header: Callable[[], str], least: float, most: float) -> None:
    refusal = http(429, headers=f"Retry-After: {header()}\r\n")
    pauses = Pauses()
    client(raw_server(lambda number, asked: good(asked) if number else refusal).url, pauses).retrieve(["a"], 1)
    assert len(pauses) == 1
    assert least <= pauses[0] <= most


@pytest.mark.parametrize("header", ["3600", "9" * 400])
def test_a_retry_after_beyond_the_calls_time_is_not_waited_for(raw_server: RawServers, header: str) -> None:
    server = raw_server(lambda *_: http(503, headers=f"Retry-After: {header}\r\n"))
    pauses = Pauses()
    with pytest.raises(SearchUnavailableError, match=r"status 503 \(asked 1 times\)"):
        client(server.url, pauses).retrieve(["a"], 1)
    assert pauses == []


def test_the_whole_call_has_a_limit(raw_server: RawServers) -> None:
    server = raw_server(lambda *_: http(500))
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    settings = SearchClientSettings(server.url, attempts=1000, backoff_s=8, total_s=60)
    with pytest.raises(SearchUnavailableError):
        HttpSearcher(settings, clock=lambda: now[0], sleep=sleep).retrieve(["a"], 1)
    assert now[0] < 60
    assert 7 < len(server.requests) < 17, "pauses of 4 to 8 seconds"


@pytest.mark.parametrize("status", [301, 400, 401, 404, 405, 413, 422, 501])
def test_a_refusal_is_not_asked_again(raw_server: RawServers, status: int) -> None:
    server = raw_server(lambda *_: http(status, b'{"detail":\n"no \x1b[31m such"}', "Location: http://example.org\r\n"))
    searcher = client(server.url, breaker_failures=1)
    with pytest.raises(SearchRefusedError, match=rf"status {status}: .*such") as caught:
        searcher.retrieve(["a"], 1)
    assert len(server.requests) == 1
    assert str(caught.value).isprintable()
    assert searcher.breaker.state == "closed"


@pytest.mark.parametrize(
    "answer",
    [
        http(200, b"<html>It works!</html>"),
        http(200, b'{"result": []}'),
        http(200, gzip.compress(b"{}")),
        http(200, b"not gzip", "Content-Encoding: gzip\r\n"),
        http(200),
    ],
)
def test_garbage_is_a_typed_error_and_not_asked_again(raw_server: RawServers, answer: bytes) -> None:
    server = raw_server(lambda *_: answer)
    searcher = client(server.url)
    with pytest.raises(MalformedResponseError):
        searcher.retrieve(["a"], 1)
    assert len(server.requests) == 1
    assert searcher.faults == {"MalformedResponseError": 1}


def test_an_answer_has_a_largest_size_with_and_without_compression(raw_server: RawServers) -> None:
    plain = raw_server(lambda _, asked: good(asked, " " * 100_000))
    assert len(client(plain.url, max_response_bytes=200_000).retrieve(["a"], 1)[0]) == 1
    bomb = http(200, gzip.compress(b" " * 50_000_000), "Content-Encoding: gzip\r\n")
    for url in (plain.url, raw_server(lambda *_: bomb).url):
        with pytest.raises(ResponseTooLargeError, match="more than 50000 bytes"):
            client(url, max_response_bytes=50_000).retrieve(["a"], 1)


def test_the_breaker_opens_and_a_probe_closes_it(raw_server: RawServers) -> None:
    broken = [True]
    server = raw_server(lambda _, asked: http(500) if broken[0] else good(asked))
    now = [0.0]
    searcher = client(server.url, clock=lambda: now[0], attempts=2, breaker_failures=3, breaker_reset_s=10)
    for _ in range(3):
        with pytest.raises(SearchUnavailableError):
            searcher.retrieve(["a"], 1)
    assert len(server.requests) == 6
    for _ in range(4):
        with pytest.raises(CircuitOpenError):
            searcher.retrieve(["a"], 1)
    assert len(server.requests) == 6, "an open breaker asks nothing"
    now[0] = 10
    with pytest.raises(SearchUnavailableError):
        searcher.retrieve(["a"], 1)
    assert len(server.requests) == 7, "a probe is one attempt"
    now[0], broken[0] = 20, False
    assert len(searcher.retrieve(["a"], 1)[0]) == 1
    assert searcher.breaker.state == "closed"
    assert searcher.faults == {"retries": 3, "SearchUnavailableError": 4, "CircuitOpenError": 4}


def test_a_probe_that_is_interrupted_does_not_block_the_breaker(raw_server: RawServers) -> None:
    server = raw_server(lambda *_: http(500))
    now = [0.0]
    searcher = client(server.url, clock=lambda: now[0], attempts=1, breaker_failures=1, breaker_reset_s=1)
    with pytest.raises(SearchUnavailableError):
        searcher.retrieve(["a"], 1)
    now[0] = 2
    interrupting = pytest.MonkeyPatch()
    with interrupting.context() as patch:

        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(searcher, "_attempt", interrupt)
        with pytest.raises(KeyboardInterrupt):
            searcher.retrieve(["a"], 1)
    with pytest.raises(SearchUnavailableError):
        searcher.retrieve(["a"], 1)


def test_32_threads_share_one_client(raw_server: RawServers) -> None:
    server = raw_server(lambda number, asked: http(503) if number % 5 == 0 else good(asked))
    searcher = client(server.url, attempts=12)
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda at: searcher.retrieve([f"q{at}"], 1)[0][0].passage.text, range(200)))
    assert found == [f"q{at}" for at in range(200)]
    assert searcher.faults["retries"] == len(server.requests) - 200


def test_threads_wait_side_by_side_and_not_one_after_the_other(raw_server: RawServers) -> None:
    """All eight requests must be with the server before it answers any: a lock around a call would hang here."""
    together = threading.Barrier(8, timeout=20)

    def script(_: int, asked: bytes) -> bytes:
        together.wait()
        return good(asked)

    searcher = client(raw_server(script).url, timeout_s=20, attempts=1)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: searcher.retrieve(["a"], 1), range(8)))


def test_copies_in_a_process_are_one_and_others_start_afresh(raw_server: RawServers) -> None:
    settings = SearchClientSettings("http://127.0.0.1:1")
    shared = shared_http_searcher(settings)
    assert pickle.loads(pickle.dumps(shared)) is shared
    assert pickle.loads(pickle.dumps(HttpSearcher(settings))) is shared
    server = raw_server(lambda _, asked: good(asked))
    parent = client(server.url)
    parent.retrieve(["a"], 1)
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # the parent's kept connection must not be used
        try:
            found = parent.retrieve(["from the child"], 1)[0][0].passage.text
            os.write(write, found.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"from the child"
    assert parent.retrieve(["b"], 1)[0][0].passage.text == "b"


def test_pauses_leave_the_global_generator_alone(raw_server: RawServers) -> None:
    server = raw_server(lambda number, asked: http(500) if number < 3 else good(asked))
    random.seed(3)
    before = random.getstate()
    client(server.url).retrieve(["a"], 1)
    assert random.getstate() == before


def test_the_address() -> None:
    assert SearchClientSettings("http://h:1").endpoint == "http://h:1/retrieve"
    assert SearchClientSettings("http://h/").endpoint == "http://h/retrieve"
    assert SearchClientSettings("https://h/search/v1/").endpoint == "https://h/search/v1"
    assert SearchClientSettings("http://[::1]:8/retrieve").endpoint == "http://[::1]:8/retrieve"
    for bad in (
        "",
        "h:1",
        "ftp://h",
        "http://",
        "http://h:x",
        "http://h:99999",
        "http://h?a=b",
        "http://[::1",
        "http://a b",
    ):
        with pytest.raises(UserError, match=r"http://127\.0\.0\.1"):
            SearchClientSettings(bad)
    with pytest.raises(UserError, match="no address"):
        HttpSearcher(SearchClientSettings("http://h/\x7f"))
    with pytest.raises(UserError, match="attempts=0"):
        SearchClientSettings("http://h", attempts=0)
    with pytest.raises(UserError, match="timeout_s=nan"):
        SearchClientSettings("http://h", timeout_s=float("nan"))


def test_messages_hold_no_password(raw_server: RawServers) -> None:
    url = raw_server(lambda *_: http(404)).url.replace("//", "//user:secret@")
    with pytest.raises(SearchRefusedError) as caught:
        client(url).retrieve(["a"], 1)
    assert "secret" not in str(caught.value)


def test_a_check_before_a_job(raw_server: RawServers) -> None:
    check_server(SearchClientSettings(raw_server(lambda _, asked: good(asked)).url))
    with pytest.raises(UserError, match=r"status 404.*mempo serve-search"):
        check_server(SearchClientSettings(raw_server(lambda *_: http(404)).url))


def test_all_faults_are_infrastructure_faults() -> None:
    for kind in (SearchUnavailableError, SearchRefusedError, ResponseTooLargeError, CircuitOpenError):
        assert issubclass(kind, InfrastructureError)
