"""A caller for the command line, a run small enough to train in seconds, and a data folder."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mempo_env.cli import main

SMALL = shlex.split(
    "--threads=1 --warm-start.perfect-steps=2 --warm-start.demonstrator-steps=1 --warm-start.tokens-per-step=500 "
    "--warm-start.episodes-per-chunk=2 --warm-start.goals 1 2 --train.groups-per-step=1 --train.group-size=2 "
    "--train.save-every=1 --eval.episodes=1 --eval.goals 1 --sampling.max-new-tokens=12 --tiny.layers=1"
)
"""The tiny preset, cut down until a whole job takes seconds; it learns nothing."""


@dataclass(frozen=True)
class Result:
    """What a call gave."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of a refused input."""
        assert self.code == 2, (self.code, self.err)
        assert self.err.startswith("mempo: error: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n"), self.err
        return self.err.removeprefix("mempo: error: ").rstrip("\n")


Mempo = Callable[..., Result]


@pytest.fixture
def mempo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Mempo:
    """Calls the command line in this process: ``mempo("train", "--help", stdin="")``."""

    def call(*arguments: object, stdin: str = "", columns: int = 100) -> Result:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        threads = torch.get_num_threads()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            torch.set_num_threads(threads)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """The flags of ``SMALL``."""
    return tuple(SMALL)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after two steps of MemPO; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    threads = torch.get_num_threads()
    main(["train", "--out", str(run), "--steps", "2", *SMALL])
    torch.set_num_threads(threads)
    return run


@pytest.fixture
def run_copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with three questions in each of train and dev."""
    folder = tmp_path / "data"
    folder.mkdir()
    passages = [{"id": f"p{i}", "title": f"T{i}", "text": f"T{i} plays chess number{i}."} for i in range(6)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, passages)))
    for split, first in (("train", 0), ("dev", 3)):
        questions = [
            {"id": f"q{i}", "question": f"What plays T{i}?", "answers": [f"number{i}"], "supporting_ids": [f"p{i}"]}
            for i in range(first, first + 3)
        ]
        (folder / f"questions.{split}.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return folder
