"""``mempo serve-search`` and the commands that ask a server: what is refused, and the document's own example."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mempo_env.cli.serve_search import ServeSearchFlags, load_searcher
from mempo_env.envs.search_protocol import RequestLimits
from mempo_env.errors import UserError
from mempo_env.records import Passage

for name in ("httpx2", "tenacity", "starlette", "uvicorn"):
    pytest.importorskip(name, reason="the extras 'search' and 'serve' are not installed")

Mempo = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_help_has_words_for_every_flag(mempo: Mempo) -> None:
    text = mempo("serve-search", "--help", columns=100).out
    plain = [field.name for field in dataclasses.fields(ServeSearchFlags) if field.name != "limits"]
    limits = [f"limits.{field.name}" for field in dataclasses.fields(RequestLimits)]
    for name in (*plain, *limits):
        words = re.search(rf"--{name.replace('_', '-')}\b(.*\n.*)", text)
        assert words, name
        assert len(re.sub(r"[^a-z ]", "", words[1]).split()) > 2, name
    assert max(map(len, text.splitlines())) <= 100
    assert "``" not in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "needs something to search: --data FOLDER or --corpus FILE"),
        (["--corpus", "nothing.jsonl"], "nothing.jsonl does not exist"),
        (["--data", "."], "has no corpus.jsonl"),
        (["--corpus", "x", "--retriever", "dense"], "--retriever dense needs --model"),
        (["--corpus", "x", "--model", "m"], "--model and --index go with --retriever dense only"),
        (["--corpus", "x", "--workers", "0"], "workers=0"),
        (["--corpus", "x", "--limits.max-topk", "2"], "default_topk=3 cannot exceed max_topk=2"),
        (["--corpus", "x", "--port", "99999"], "cannot listen on 127.0.0.1 port 99999"),
        (["--corpus", "x", "--retriever", "tfidf"], "tfidf"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    mempo: Mempo, flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    port = [] if "--port" in flags else ["--port", "0"]
    assert said in mempo("serve-search", *flags, *port).complaint


def test_corpora_are_joined_and_ids_are_unique(tmp_path: Path, data: Path) -> None:
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "a", "contents": '"Fox"\nred'}))
    searcher: Any = load_searcher(ServeSearchFlags(data=(str(data),), corpus=(str(tmp_path / "more.jsonl"),)))
    assert len(searcher) == 7
    assert searcher.search(["fox"], 1) == [[Passage("a", "Fox", "red")]]
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "p1", "contents": "again"}))
    with pytest.raises(UserError, match="the same passage id"):
        load_searcher(ServeSearchFlags(data=(str(data),), corpus=(str(tmp_path / "more.jsonl"),)))


def test_the_expert_is_measured_over_a_server(mempo: Mempo, data: Path) -> None:
    from mempo_env.envs.search_server import SearchServer

    ready = threading.Event()
    server = SearchServer(lambda: load_searcher(ServeSearchFlags(data=(str(data),))), on_ready=lambda _: ready.set())
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(20)
        flags = ("--preset", "smollm2", "--data", data, "--goals", "2", "--episodes", "3")
        embedded = mempo("eval", "expert", *flags)
        assert embedded.code == 0, embedded.err
        assert mempo("eval", "expert", *flags, "--retrieval", server.url).out == embedded.out
    finally:
        server.stop()
        thread.join(20)


def test_jobs_ask_the_server_first(mempo: Mempo, data: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    qa = ("--dataset", "qa", "--data", data, "--env-args.retrieval")
    for call in (
        ("train", *qa, url, "--out", tmp_path / "run"),
        ("eval", "expert", "--preset", "smollm2", "--data", data, "--retrieval", url),
    ):
        complaint = mempo(*call).complaint
        assert "no connection" in complaint
        assert "mempo serve-search" in complaint
    assert "retrieval='bm52' is unknown" in mempo("train", *qa, "bm52", "--out", tmp_path / "run").complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM there")
def test_the_documents_commands(tmp_path: Path) -> None:
    """The shell lines of docs/retrieval.md, on a free port."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    text = (ROOT / "docs" / "retrieval.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines() if line]
    port = str(free_port())
    serve, *others = [line.replace("8000", port) for line in lines]
    asks = [
        line for line in others if line.startswith("curl")
    ]  # the rest trains and evaluates, for which see test_docs
    assert serve.startswith("mempo serve-search")
    assert len(asks) == 2
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"id": "p1", "title": "Fox", "text": "The red fox runs."}))
    command = [sys.executable, "-m", "mempo_env.cli", *serve.split()[1:]]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "listening" in process.stdout.readline()
        assert "ready: 1 passages" in process.stdout.readline()
        answers = [
            subprocess.run(["sh", "-c", ask], capture_output=True, text=True, check=True, timeout=60).stdout
            for ask in asks
        ]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert json.loads(answers[0]) == {"status": "ready"}
    ((hit,),) = json.loads(answers[1])["result"]
    assert hit["document"] == {"id": "p1", "contents": '"Fox"\nThe red fox runs.'}
