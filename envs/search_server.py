"""A search server for many environments, in the protocol of Search-R1 (see ``search_protocol.py``), as an ASGI app.

``POST /retrieve`` searches, ``GET /health`` says that the process lives, ``GET /ready`` whether the index is loaded.

Requests pass three gates. At most ``workers`` searches run, each in a thread of its own, so that the event loop stays
free to answer; at most ``queue`` more requests wait for one of them; what comes beyond that is sent away with 503 and
``Retry-After``. Bodies are read with a limit on their size and time before a request takes a place.

Invariants:
    * a request that is answered with 200 has the answer that the searcher would have given in the same process;
    * memory is bounded: by the connections times the largest body, and the places times the largest answer;
    * a stop lets the requests in flight finish, for ``grace_s`` seconds at most, and takes no further ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mempo_env.errors import UserError
from mempo_env.plugins import import_extra

from .search_protocol import BadRequestError, RequestLimits, SearchRequest, read_request, write_response
from .searcher import Searcher

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

RETRY_AFTER = {"Retry-After": "1"}
_BACKLOG = 512


@dataclass(frozen=True)
class ServerSettings:
    """How much a server takes on.

    Attributes:
        workers: Searches that run at a time.
        queue: Requests that wait for one of them.
        body_s: Seconds within which a body must arrive.
        grace_s: Seconds that requests in flight have at a stop.
        connections: Most connections, idle ones included; on further ones every request is answered with 503.
        limits: What one request may ask for.
    """

    workers: int = 4
    queue: int = 64
    body_s: float = 10.0
    grace_s: float = 30.0
    connections: int = 1024
    limits: RequestLimits = field(default_factory=RequestLimits)

    def __post_init__(self) -> None:
        if self.workers < 1 or self.queue < 0:
            raise UserError(f"workers={self.workers} must be at least 1, queue={self.queue} at least 0")
        if self.connections < 1:
            raise UserError(f"connections={self.connections} must be at least 1")
        if not 0 < self.body_s < float("inf") or not 0 < self.grace_s < float("inf"):
            raise UserError(f"body_s={self.body_s} and grace_s={self.grace_s} must be positive and finite")


class SearchService:
    """What the routes share: the searcher, once it is loaded, and the places in the queue.

    Args:
        settings: How much to take on.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.searcher: Searcher | None = None
        self._taken = 0
        self._threads = ThreadPoolExecutor(settings.workers, thread_name_prefix="search")
        self._turn = asyncio.Semaphore(settings.workers)

    def stop(self) -> None:
        """Ends the threads when their searches are done."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def search(self, asked: SearchRequest, gone: Callable[[], Any]) -> bytes | None:
        """Waits for a turn and searches.

        Args:
            asked: What to search for.
            gone: Awaited when the turn has come: whether the client has left in the meantime.

        Returns:
            The answer's body, or None where the client has left.

        Raises:
            BadRequestError: 503: not loaded, or no place left.
        """
        searcher = self.searcher
        if searcher is None:
            raise BadRequestError(503, "the index is still loading")
        if self._taken >= self.settings.workers + self.settings.queue:
            raise BadRequestError(503, "too many requests are waiting")
        self._taken += 1
        try:
            async with self._turn:
                if await gone():
                    return None
                return await asyncio.get_running_loop().run_in_executor(self._threads, _answer, searcher, asked)
        finally:
            self._taken -= 1


def create_app(service: SearchService) -> Starlette:
    """The ASGI application.

    Args:
        service: What it serves.

    Returns:
        The application; it is ready once ``service.searcher`` is set.

    Raises:
        UserError: The extra ``serve`` is not installed.
    """
    import_extra("starlette", "a search server")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    settings = service.settings

    async def retrieve(request: Request) -> Response:
        try:
            async with asyncio.timeout(settings.body_s):
                body = await _read_body(request, settings.limits.max_body_bytes)
        except TimeoutError:
            raise BadRequestError(408, f"the body did not arrive within {settings.body_s:g} seconds") from None
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        answer = await service.search(read_request(body, settings.limits), request.is_disconnected)
        return Response(answer, media_type="application/json") if answer is not None else Response(status_code=400)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(_: Request) -> Response:
        if service.searcher is None:
            return JSONResponse({"status": "loading"}, status_code=503, headers=RETRY_AFTER)
        return JSONResponse({"status": "ready"})

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, BadRequestError)
        headers = RETRY_AFTER if error.status == 503 else {"Connection": "close"} if error.status in (408, 413) else {}
        return JSONResponse({"detail": str(error)}, status_code=error.status, headers=headers)

    async def not_served(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)

    async def failed(_: Request, error: Exception) -> Response:  # noqa: ARG001  (uvicorn logs it, with its traceback)
        return JSONResponse({"detail": "the search failed; the server's log says why"}, status_code=500)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        service.stop()

    return Starlette(
        routes=[
            Route("/retrieve", retrieve, methods=["POST"]),
            Route("/health", health),
            Route("/ready", ready),
        ],
        exception_handlers={BadRequestError: refused, HTTPException: not_served, Exception: failed},
        lifespan=lifespan,
    )


async def _read_body(request: Request, most: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdigit() and (len(length) > 18 or int(length) > most):
        raise BadRequestError(413, f"a body of more than {most} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise BadRequestError(413, f"a body of more than {most} bytes")
    return bytes(body)


def _answer(searcher: Searcher, asked: SearchRequest) -> bytes:
    """Searches and writes the answer, both outside the event loop."""
    found = searcher.retrieve(asked.queries, asked.topk)
    return write_response(found, return_scores=asked.return_scores)


class SearchServer:
    """A port with a search service behind it.

    Args:
        load: Makes the searcher; called once, in a thread of its own, while the server answers that it is not ready.
        settings: How much to take on.
        host: Name or address to listen on.
        port: Port to listen on; 0 takes a free one.
        on_ready: Called with the searcher when it is loaded.

    Attributes:
        url: Where it listens.

    Raises:
        UserError: The port cannot be had, or the extra ``serve`` is not installed.
    """

    def __init__(
        self,
        load: Callable[[], Searcher],
        settings: ServerSettings | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        on_ready: Callable[[Searcher], None] = lambda _: None,
    ) -> None:
        uvicorn: Any = import_extra("uvicorn", "a search server")
        self._load = load
        self._on_ready = on_ready
        self._failure: BaseException | None = None
        self._service = SearchService(settings or ServerSettings())
        config = uvicorn.Config(
            create_app(self._service),
            log_level="warning",
            access_log=False,
            lifespan="on",
            limit_concurrency=self._service.settings.connections + 1,  # uvicorn refuses from this number on
            timeout_graceful_shutdown=max(1, round(self._service.settings.grace_s)),
        )
        self._server = uvicorn.Server(config)
        self._socket = _listen(host, port)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        """Serves until ``stop``, SIGTERM or SIGINT; the requests in flight are finished before it returns.

        Raises:
            BaseException: What ``load`` raised; nothing can be served then.
        """
        before = {}
        # uvicorn stops gracefully, then raises the signal again for the handler from before it, by default the death
        # of the process with an exit code of its own. A stop that was asked for is no failure, hence a handler of ours.
        if threading.current_thread() is threading.main_thread():
            before = {kind: signal.signal(kind, lambda *_: self.stop()) for kind in (signal.SIGTERM, signal.SIGINT)}
        threading.Thread(target=self._loading, name="load", daemon=True).start()  # never keeps the process alive
        try:
            self._server.run(sockets=[self._socket])
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)
            self._socket.close()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Asks a running server to stop; may be called from any thread and twice."""
        self._server.should_exit = True

    def _loading(self) -> None:
        try:
            searcher = self._load()
        except BaseException as error:
            self._failure = error
            self.stop()
            return
        self._service.searcher = searcher
        self._on_ready(searcher)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket that names its protocol.

    asyncio switches Nagle's algorithm off only where it does, which ``socket.create_server`` does not: head and body of
    an answer are two packets, and each answer would wait 40 ms for the acknowledgement of the first.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "a port lies between 0 and 65535"
        raise UserError(f"cannot listen on {host} port {port}: {reason}; choose another --host or --port") from error
    return listener
