"""``mempo reproduce``: what it lists, what it refuses, how it ends; the rerun itself is in tests/benchmarks."""

from __future__ import annotations

import gzip
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mempo_env.cli import reproduce
from mempo_env.errors import UserError

Mempo = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]


def keep(folder: Path, name: str, **content: Any) -> None:
    """A kept result with this content."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))


def test_it_lists_what_is_kept(mempo: Mempo, tmp_path: Path) -> None:
    assert mempo("reproduce", "--stored", tmp_path / "none").out == f"no results are kept in {tmp_path / 'none'}\n"
    for name in ("warm-0", "hard-mempo-0"):
        keep(tmp_path / "kept", name)
    assert mempo("reproduce", "--stored", tmp_path / "kept").out == "hard-mempo-0\nwarm-0\n"


def test_it_refuses_what_it_cannot_run(mempo: Mempo, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    assert "no results are kept" in mempo("reproduce", "warm-0", "--stored", kept).complaint
    cell = {
        "kind": "train",
        "seed": 0,
        "regime": "hard",
        "arm": "mempo",
        "lr": 0.002,
        "weight": 1.0,
        "name": "hard-mempo-0",
    }
    keep(kept, "hard-mempo-0", cell=cell, fingerprint="of another version")
    out = tmp_path / "out"
    assert "did you mean 'hard-mempo-0'?" in mempo("reproduce", "hard-mempo-1", "--stored", kept).complaint
    complaint = mempo("reproduce", "hard-mempo-0", "--stored", kept, "--out", out).complaint
    assert "made with other settings" in complaint
    assert "check out the commit" in complaint
    assert "threads=0 must be at least 1" in mempo("reproduce", "hard-mempo-0", "--threads", "0").complaint
    assert not out.exists()


def test_without_a_checkout_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"benchmarks/ of a checkout.*clone the repository, run make install"):
        reproduce.load_study((tmp_path, tmp_path / "none"))
    assert Path(reproduce.load_study((tmp_path, ROOT)).__file__).is_relative_to(ROOT / "benchmarks/studies")


@pytest.mark.parametrize(("verdict", "code"), [("equal", 0), ("alike", 0), ("different", 1)])
def test_the_exit_code_is_the_verdict(
    mempo: Mempo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, code: int
) -> None:
    study, asked = reproduce.load_study((ROOT,)), []
    keep(tmp_path, "warm-0")

    def fake(name: str, out: Path, _: Any, **more: Any) -> SimpleNamespace:
        asked.append((name, out, more))
        return SimpleNamespace(verdict=verdict)

    monkeypatch.setattr(study, "reproduce", fake)
    result = mempo("reproduce", "warm-0", "--stored", tmp_path, "--out", "there", "--threads", 2, "--data", "d")
    assert result.code == code
    assert asked == [("warm-0", Path("there"), {"stored": tmp_path, "threads": 2, "data": "d"})]


def test_the_page_of_the_study_names_every_arm() -> None:
    study = reproduce.load_study((ROOT,))
    arms = importlib.import_module("memory_study.arms").ARMS
    assert study.RESULTS == ROOT / "benchmarks/results/study"
    page = (ROOT / "docs/study.md").read_text(encoding="utf-8")
    assert set(arms) <= set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))
