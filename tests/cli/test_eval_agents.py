"""``mempo eval --agent``: a chat server, good or gone, and weights in a folder, measured as everybody is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from mempo_env.agents.eval_store import read_store

Mempo = Callable[..., Any]
ANSWER = "<mem>nothing</mem><answer>a; b</answer>"


class Server(ThreadingHTTPServer):
    """Answers every chat with ``ANSWER``, and reports 100 + 7 tokens; or fails with a status."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}
        usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
        answer = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        body = json.dumps(answer if self.server.status == 200 else {"error": {"message": "down"}}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("openai", reason="the extra 'chat' is not installed")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_chat_server_is_measured_and_goes_on_when_it_is_back(mempo: Mempo, server: Server, tmp_path: Path) -> None:
    asked = ("eval", "--agent", "chat", "--base-url", server.url, "--model", "m", "--goals", "2", "--episodes", "3")
    call = (*asked, "--context", "memory", "history", "--retries", "0", "--out", tmp_path / "chat")
    server.status = 500
    down = mempo(*call)
    assert down.code == 0, down.err
    rows = json.loads((tmp_path / "chat" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert [(row["episodes"], row["errors"], row["f1"]) for row in rows] == [(0, 3, None)] * 2
    assert "3 of 3 episodes of m, memory, brief, 2 goals ended on a fault" in " ".join(down.out.split())

    server.status = 200
    up = mempo(*call)
    assert up.code == 0, up.err
    rows = json.loads((tmp_path / "chat" / "summary.json").read_text())
    assert [(row["context"], row["episodes"], row["errors"]) for row in rows] == [("memory", 3, 0), ("history", 3, 0)]
    assert {(row["total_tokens"], row["peak_tokens"], row["turns"]) for row in rows} == {(107, 107, 1)}
    assert {row["peak_tokens_less_task"] for row in rows} == {None}, "a server does not say how long the task is"
    assert "greedy; tokens counted by the server" in " ".join(up.out.split())
    assert "6 of 6 episodes are there already" in mempo(*call).out
    assert 'model = "m", not' not in mempo(*call, "--timeout", "9").out, "what changes no episode may change"


def test_weights_in_a_folder_are_measured_under_several_contexts(mempo: Mempo, trained: Path, tmp_path: Path) -> None:
    asked = ("eval", "--agent", "model", "--model", trained / "base", "--preset", "tiny", "--max-new-tokens", "8")
    call = (
        *asked,
        "--goals",
        "1",
        "--episodes",
        "2",
        "--context",
        "memory",
        "mem1",
        "history",
        "--out",
        tmp_path / "own",
    )
    result = mempo(*call)
    assert result.code == 0, result.err
    rows = read_store(tmp_path / "own")
    assert [key.context for key in rows] == ["memory", "mem1", "history"]
    turns = [turn for episodes in rows.values() for episode in episodes for turn in episode.turns]
    assert all(0 < turn.n_output <= 8 and turn.n_prompt > 0 for turn in turns)
    assert all(isinstance(turn.info["history_tokens"], int) for turn in turns)
    first = [episode.turns[0] for episodes in rows.values() for episode in episodes]
    assert all(cast(int, turn.info["history_tokens"]) >= turn.n_prompt for turn in first[:2])
    assert "max_new_tokens = 8, not 9" in mempo(*call, "--max-new-tokens", "9").complaint
