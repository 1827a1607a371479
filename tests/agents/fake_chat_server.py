"""A chat-completions server of this process, over real HTTP, that answers as it is told to.

Invariant: what it answers is decided by the request's body alone, or by the number of the request where a test counts.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What is sent back.

    Attributes:
        body: A completion's text, or a whole body as bytes.
        status: Of the HTTP answer.
        delay: Seconds before it.
        usage: Reported token counts; None: no usage.
        fields: Fields of the message beside the content, or in place of it.
        choice: Fields of the choice beside the message.
        headers: Beside the usual ones.
    """

    body: str | bytes | None = ""
    status: int = 200
    delay: float = 0.0
    usage: dict[str, Any] | None = field(default_factory=lambda: {"prompt_tokens": 11, "completion_tokens": 7})
    fields: dict[str, Any] = field(default_factory=dict)
    choice: dict[str, Any] = field(default_factory=lambda: {"finish_reason": "stop"})
    headers: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The body."""
        if isinstance(self.body, bytes):
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": self.body}}).encode()
        message = {"role": "assistant", "content": self.body} | self.fields
        completion = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "message": message} | self.choice],
        }
        return json.dumps(completion | ({} if self.usage is None else {"usage": self.usage})).encode()


class FakeChatServer:
    """Serves until it is closed; a context manager.

    Args:
        answer: From (number of the request, its body) to the reply.
    """

    def __init__(self, answer: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                    outer._at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer._at_once)
                reply = answer(number, body)
                time.sleep(reply.delay)
                with outer._lock:
                    outer._at_once -= 1
                data = reply.encode()
                try:
                    self.send_response(reply.status)
                    for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client has given up

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> FakeChatServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
