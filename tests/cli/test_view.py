"""``mempo view``: finds the episodes of a run, writes the page where it should, and refuses in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mempo_env.agents.episodes_io import load_episodes

Mempo = Callable[..., Any]


def test_a_run_with_training_episodes(
    mempo: Mempo, small: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert mempo("train", "--out", run, "--steps", 2, *small, "--train.save-episodes", 2).code == 0
    kept = sorted(path.name for path in (run / "training").iterdir())
    assert kept == ["step-000001.episodes.jsonl.gz", "step-000002.episodes.jsonl.gz"]
    for name in kept:
        for turn in (turn for episode in load_episodes(run / "training" / name) for turn in episode.turns):
            advantages: Any = turn.info["advantages"]
            assert len(advantages) == turn.n_output
    evaluated = load_episodes(run / "eval" / "after.episodes.jsonl.gz")
    assert all("quality" in turn.info for e in evaluated for turn in e.turns if turn.memory_written)
    opened: list[str] = []

    def note(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", note)
    result = mempo("view", run, "--open")
    assert result.code == 0
    assert result.out.startswith("8 episodes, 0.")
    assert result.out.rstrip().endswith(str(run / "view.html"))
    assert opened == [(run / "view.html").as_uri()]
    assert mempo("view", run, "--limit", 1).out.startswith("6 episodes")


def test_saving_episodes_changes_nothing_that_is_learned(
    mempo: Mempo, small: tuple[str, ...], tmp_path: Path, trained: Path
) -> None:
    run = tmp_path / "run"
    assert mempo("train", "--out", run, "--steps", 2, *small, "--train.save-episodes", 1).code == 0
    name = Path("checkpoints") / "step-000002" / "adapters" / "policy" / "adapter_model.safetensors"
    assert (run / name).read_bytes() == (trained / name).read_bytes()
    assert not (trained / "training").exists()


def test_an_evaluation_and_a_file(mempo: Mempo, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "measured"
    shutil.copytree(trained / "eval", folder)
    assert mempo("view", folder).code == 0
    assert (folder / "view.html").exists()
    assert mempo("view", folder / "after.episodes.jsonl.gz").out.startswith("1 episode, ")
    assert (folder / "after.html").exists()
    assert mempo("view", folder, "--out", tmp_path / "own.html").code == 0
    assert (tmp_path / "own.html").read_bytes() == (folder / "view.html").read_bytes()


def test_what_cannot_be_viewed_is_one_line(mempo: Mempo, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("mine")
    for arguments, said in (
        ((), "needs RUN"),
        (("no/such/run",), "no/such/run does not exist"),
        ((trained / "config.json",), "no file of episodes"),
        ((trained / "checkpoints",), "holds no episodes"),
        ((trained, "--limit", "-1"), "limit=-1 must be at least 0"),
        ((trained, "--out", tmp_path / "mine.html"), "was not written by mempo view"),
        ((trained, "--out", tmp_path / "no" / "x.html"), "there is no folder"),
        ((trained, "--out", tmp_path), "is a folder"),
    ):
        assert said in mempo("view", *arguments).complaint
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_no_browser_is_said_with_the_place_of_the_file(
    mempo: Mempo, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert "open it yourself" in mempo("view", trained, "--out", tmp_path / "x.html", "--open").complaint


def test_viewing_loads_no_torch(trained: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from mempo_env.cli import main; main(sys.argv[1:]); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "view", str(trained), "--out", str(tmp_path / "x.html")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.splitlines()[-1] == "[]"
