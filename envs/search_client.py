"""A searcher that asks a server over HTTP, in the protocol of Search-R1 (see ``search_protocol.py``).

What can be mended by asking again (no connection, a timeout, a connection that broke, the statuses 408, 429, 500, 502,
503 and 504) is asked again, after a growing pause with jitter that is never shorter than a ``Retry-After``. What cannot
(any other status, an answer that is not the protocol or too large) fails at once. When several calls in a row have
failed for good, a circuit breaker refuses the next ones without asking.

Invariants:
    * every fault ends as an ``InfrastructureError`` of one of the types below, and is counted under its name;
    * a call takes at most ``total_s`` seconds and holds at most ``max_response_bytes`` of an answer, however slow or
      large the answer is (a server that sends its headers byte by byte is timed between the bytes only);
    * one object serves all threads of a process; a copy in another process has connections and a breaker of its own.
"""

from __future__ import annotations

import collections
import email.utils
import functools
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mempo_env.errors import InfrastructureError, UserError
from mempo_env.plugins import import_extra

from .circuit_breaker import CircuitBreaker
from .search_protocol import MalformedResponseError, read_response
from .searcher import ScoredPassage

if TYPE_CHECKING:
    import httpx2
    import tenacity

logger = logging.getLogger(__name__)

_KEEP_ALIVE_S = 4.0  # below the 5 seconds after which uvicorn closes a connection, so that ours is not the late one
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


class SearchUnavailableError(InfrastructureError):
    """The server could not be reached, did not answer in time or could not serve, however often it was asked."""


class SearchRefusedError(InfrastructureError):
    """The server refused the request; the same request would be refused again."""


class ResponseTooLargeError(InfrastructureError):
    """The server's answer is larger than ``max_response_bytes``."""


class CircuitOpenError(InfrastructureError):
    """The server was not asked, since it failed several times in a row a moment ago."""


class _TransientError(Exception):
    """An attempt that may be made again, not before ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class SearchClientSettings:
    """How a search server is asked.

    Attributes:
        url: Where it is, such as ``http://127.0.0.1:8000``; the path is ``/retrieve`` where none is given.
        timeout_s: Longest attempt, in seconds.
        total_s: Longest call, its attempts and the pauses between them, in seconds.
        attempts: Most attempts of a call.
        backoff_s: Pause after the first attempt, doubled after each further one; a random half of it is jitter.
        max_backoff_s: Longest such pause. A ``Retry-After`` may be longer, within ``total_s``.
        breaker_failures: Calls in a row that fail for good and open the circuit breaker.
        breaker_reset_s: Seconds after which one call may try again.
        max_response_bytes: Largest answer.
        max_connections: Most connections at a time; further threads wait.
    """

    url: str
    timeout_s: float = 10.0
    total_s: float = 60.0
    attempts: int = 5
    backoff_s: float = 0.25
    max_backoff_s: float = 8.0
    breaker_failures: int = 5
    breaker_reset_s: float = 10.0
    max_response_bytes: int = 16 * 2**20
    max_connections: int = 64

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or parts.query or parts.fragment or any(map(str.isspace, self.url)):
            raise UserError(f"retrieval server {self.url!r} is no address; write it as http://127.0.0.1:8000")
        for name in ("timeout_s", "total_s", "backoff_s", "max_backoff_s", "breaker_reset_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name}={getattr(self, name)} must be positive and finite")
        for name in ("attempts", "breaker_failures", "max_response_bytes", "max_connections"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def endpoint(self) -> str:
        """The address that is posted to."""
        path = urlsplit(self.url).path.rstrip("/")
        return self.url.rstrip("/") + ("" if path else "/retrieve")


class HttpSearcher:
    """Asks a search server.

    Args:
        settings: How.
        clock: Seconds that never run backwards, for the breaker and the limits.
        sleep: Pauses for so many seconds.

    Raises:
        UserError: The extra ``search`` is not installed.
    """

    def __init__(
        self,
        settings: SearchClientSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self._httpx: Any = import_extra("httpx2", "a search server")
        self._tenacity: Any = import_extra("tenacity", "a search server")
        self._clock = clock
        self._sleep = sleep
        self._jitter = random.Random()  # its own: pauses change no result, and the global one is the user's
        try:
            self._httpx.URL(settings.endpoint)
        except self._httpx.InvalidURL as error:
            raise UserError(f"retrieval server {settings.url!r} is no address: {error}") from error
        self._start()

    def _start(self) -> None:
        settings = self.settings
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._faults: collections.Counter[str] = collections.Counter()
        self.breaker = CircuitBreaker(settings.breaker_failures, settings.breaker_reset_s, self._clock)
        self._client: httpx2.Client = self._httpx.Client(
            timeout=self._httpx.Timeout(settings.timeout_s),
            limits=self._httpx.Limits(
                max_connections=settings.max_connections,
                max_keepalive_connections=settings.max_connections,
                keepalive_expiry=_KEEP_ALIVE_S,
            ),
            headers={"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"},
            follow_redirects=False,
        )

    @property
    def faults(self) -> dict[str, int]:
        """Calls that failed for good, by the type of the error, and ``retries``: attempts that were made again."""
        with self._lock:
            return dict(self._faults)

    def retrieve(self, queries: Sequence[str], topk: int) -> list[list[ScoredPassage]]:
        """Asks the server for the best passages of each query; see ``Searcher.retrieve``.

        Raises:
            SearchUnavailableError: It does not answer, or not as it should, however often it is asked.
            SearchRefusedError: It refuses the request.
            MalformedResponseError: Its answer is not the protocol.
            ResponseTooLargeError: Its answer is too large.
            CircuitOpenError: It was not asked.
        """
        if self._pid != os.getpid():  # forked: connections and locks belong to the parent
            self._start()
        asked = [at for at, query in enumerate(queries) if query.strip()] if topk >= 1 else []
        found: list[list[ScoredPassage]] = [[] for _ in queries]
        if asked:
            answers = self._guarded([queries[at] for at in asked], topk)
            for at, hits in zip(asked, answers, strict=True):
                found[at] = hits
        return found

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_http_searcher, (self.settings,)

    def _guarded(self, queries: list[str], topk: int) -> list[list[ScoredPassage]]:
        """A call behind the circuit breaker; a probe is one attempt."""
        probe = self.breaker.enter()
        if probe is None:
            raise self._counted(CircuitOpenError(f"{self._where()} failed several times in a row and was not asked"))
        failed: bool | None = None
        try:
            found = self._call(queries, topk, attempts=1 if probe else self.settings.attempts)
            failed = False
        except InfrastructureError as fault:
            failed = not isinstance(fault, SearchRefusedError)  # a server that refuses a request is well
            raise self._counted(fault) from fault.__cause__
        finally:
            self.breaker.leave(probe=probe, failed=failed)
        return found

    def _call(self, queries: list[str], topk: int, attempts: int) -> list[list[ScoredPassage]]:
        body = json.dumps({"queries": queries, "topk": topk, "return_scores": True}).encode("ascii")
        ends = self._clock() + self.settings.total_s
        retrying: tenacity.Retrying = self._tenacity.Retrying(
            retry=self._tenacity.retry_if_exception_type(_TransientError),
            stop=lambda state: state.attempt_number >= attempts or self._clock() + state.upcoming_sleep >= ends,
            wait=self._pause,
            before_sleep=self._retried,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            answer = retrying(self._attempt, body, ends)
        except _TransientError as last:
            tries = retrying.statistics["attempt_number"]
            raise SearchUnavailableError(f"{self._where()}: {last} (asked {tries} times)") from last.__cause__
        return read_response(answer, len(queries), topk)

    def _attempt(self, body: bytes, ends: float) -> bytes:
        """One request.

        Raises:
            _TransientError: It failed and may be made again.
            InfrastructureError: It failed for good.
        """
        most = self.settings.max_response_bytes
        now = self._clock()
        limit = min(now + self.settings.timeout_s, ends)
        answer = bytearray()
        try:
            with self._client.stream(
                "POST", self.settings.endpoint, content=body, timeout=max(limit - now, 0.001)
            ) as response:
                if response.status_code != 200:
                    raise self._bad_status(response)
                for chunk in response.iter_bytes():
                    answer += chunk
                    if len(answer) > most:
                        raise ResponseTooLargeError(f"{self._where()}: an answer of more than {most} bytes")
                    if self._clock() > limit:  # the client's own limit is for each read, and each may bring a byte
                        raise _TransientError("no whole answer in time")
        except self._httpx.TimeoutException as error:
            raise _TransientError("no answer in time") from error
        except self._httpx.DecodingError as error:
            raise MalformedResponseError(f"{self._where()}: an answer that cannot be decompressed") from error
        except self._httpx.TransportError as error:
            raise _TransientError(_reason(error)) from error
        return bytes(answer)

    def _bad_status(self, response: httpx2.Response) -> Exception:
        status = response.status_code
        if status in RETRIED_STATUSES:
            return _TransientError(f"status {status}", _retry_after(response.headers.get("Retry-After")))
        return SearchRefusedError(f"{self._where()} refused the request with status {status}{self._detail(response)}")

    def _detail(self, response: httpx2.Response) -> str:
        """The beginning of a refusal's text."""
        start = next(response.iter_raw(), b"")[:200].decode("utf-8", "replace")
        shown = "".join(letter for letter in " ".join(start.split()) if letter.isprintable())
        return f": {shown}" if shown else ""

    def _pause(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        whole = min(self.settings.backoff_s * 2.0 ** (state.attempt_number - 1), self.settings.max_backoff_s)
        pause = whole * (0.5 + 0.5 * self._jitter.random())
        return max(pause, error.retry_after if isinstance(error, _TransientError) else 0.0)

    def _retried(self, state: tenacity.RetryCallState) -> None:
        with self._lock:
            self._faults["retries"] += 1
        logger.debug("%s: asked again after attempt %d", self._where(), state.attempt_number)

    def _counted(self, fault: InfrastructureError) -> InfrastructureError:
        kind = type(fault).__name__
        with self._lock:
            self._faults[kind] += 1
            first = self._faults[kind] == 1
        logger.log(logging.WARNING if first else logging.DEBUG, "%s: %s", kind, fault)
        return fault

    def _where(self) -> str:
        parts = urlsplit(self.settings.url)
        return f"the search server at {parts.hostname}" + (f":{parts.port}" if parts.port else "")


@functools.lru_cache(maxsize=16)
def shared_http_searcher(settings: SearchClientSettings) -> HttpSearcher:
    """The searcher that all environments of this process share, with its connections and its breaker."""
    return HttpSearcher(settings)


def check_server(settings: SearchClientSettings) -> None:
    """Asks a server one question, before a job depends on it.

    Raises:
        UserError: It does not answer as it should.
    """
    searcher = HttpSearcher(replace(settings, attempts=min(settings.attempts, 2)))
    try:
        searcher.retrieve(["test"], 1)
    except InfrastructureError as fault:
        raise UserError(f"{fault}; start it (mempo serve-search) or correct the address") from fault
    finally:
        searcher.close()


def _retry_after(value: str | None) -> float:
    """Seconds of a ``Retry-After`` header, which is a number or a date; 0 where there is none."""
    if value is None:
        return 0.0
    try:
        return float(min(max(0, int(value)), 10**9))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _reason(error: Exception) -> str:
    """What a transport error says, without addresses of the moment, so that two equal faults read alike."""
    return {
        "ConnectError": "no connection",
        "ReadError": "the connection broke",
        "WriteError": "the connection broke",
        "RemoteProtocolError": "the connection ended before the answer did",
    }.get(type(error).__name__, type(error).__name__)
