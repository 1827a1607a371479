"""``mempo reproduce``: what it lists, what it refuses, how it ends; the rerun itself is in tests/benchmarks."""

from __future__ import annotations

import gzip
import importlib
import json
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mempo_env.cli import reproduce
from mempo_env.errors import UserError

Mempo = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
reproduce.load_study((ROOT,))  # from now on the study's modules can be imported
WARM = importlib.import_module("memory_study.cells").Cell("warm", 0)


def keep(folder: Path, name: str, **content: Any) -> None:
    """A kept result with this content."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))


def test_it_lists_what_is_kept(mempo: Mempo, tmp_path: Path) -> None:
    assert mempo("reproduce", "--stored", tmp_path / "none").out == f"no results are kept in {tmp_path / 'none'}\n"
    for name in ("warm-0", "hard-mempo-0"):
        keep(tmp_path / "kept", name)
    call = ("reproduce", "--stored", tmp_path / "kept", "--out", tmp_path / "out")
    lines = mempo(*call).out.splitlines()
    assert lines[:2] == [
        f"{'hard-mempo-0':32} 8 min, and 14 min for warm-0, which is made again",
        f"{'warm-0':32} 14 min",
    ]
    assert lines[2].startswith("About so many minutes of one core")
    keep(tmp_path / "kept" / "smollm2", "hotpotqa-grpo-0")
    keep(tmp_path / "kept", "of-another-study-0")  # what the matrix does not know is listed, too
    lines = mempo(*call).out.splitlines()
    assert lines[1] == "of-another-study-0"
    assert lines[2] == f"{'smollm2/hotpotqa-grpo-0':32} 76 min, and 45 min for warm-0, which is made again"
    # Weights that an earlier rerun made are not made again.
    content = {"fingerprint": importlib.import_module("memory_study.cells").fingerprint(WARM)}
    (tmp_path / "out" / "runs" / "warm-0" / "base").mkdir(parents=True)
    assert mempo(*call).out.splitlines() == lines
    (tmp_path / "out" / "cells").mkdir()
    (tmp_path / "out" / "cells" / "warm-0.json").write_text(json.dumps(content))
    assert mempo(*call).out.splitlines()[0] == f"{'hard-mempo-0':32} 8 min"


def test_help_says_what_a_rerun_costs(mempo: Mempo) -> None:
    words = " ".join(mempo("reproduce", "--help").out.split())
    minutes = importlib.import_module("memory_study.plan").minutes
    real = importlib.import_module("memory_study.real")
    matrix = importlib.import_module("memory_study.cells").matrix(full=True)

    def text(cells: Iterable[Any], *scale: Any) -> str:
        some = [minutes(cell, *scale) for cell in cells]
        least, most = f"{min(some):.0f}", f"{max(some):.0f}"
        return least if least == most else f"{least} to {most}"

    def of(context: str, warm: bool) -> str:
        return text(cell for cell in matrix if cell.context == context and (cell.kind == "warm") == warm)

    assert f"about {of('memory', False)} minutes, with full history {of('history', False)}, and its" in words
    assert f"not kept, {of('memory', True)} minutes, with full history {of('history', True)};" in words
    language = real.real_matrix()
    trained, warm = ([cell for cell in language if (cell.kind == "warm") == which] for which in (False, True))
    assert f"takes {text(trained, real.REAL)} minutes and its warm start {text(warm, real.REAL)}." in words


def test_a_cell_that_is_known_but_not_kept_is_told_how_to_run(mempo: Mempo, tmp_path: Path) -> None:
    keep(tmp_path, "warm-0")
    script = importlib.import_module("memory_reward")
    for name in ("easy-mempo-1", "easy-short-0", "warm-history-3", "sparse-grpo-2", "smollm2/hotpotqa-mempo-0"):
        complaint = mempo("reproduce", name, "--stored", tmp_path).complaint
        assert f"the cell {name} is one of the study's, but no result of it is kept" in complaint
        # The command that is named chooses this cell and no other.
        command = shlex.split(complaint.partition("to run it: python ")[2].partition(";")[0])
        arguments = script.parse(command[1:])
        _, every = script.asked(arguments)
        assert [cell.name for cell in script.fitting(every, arguments.only)] == [name.rpartition("/")[2]]
        assert (ROOT / command[0]).is_file()
    complaint = mempo("reproduce", "hard-mempo-tuned-0", "--stored", tmp_path).complaint
    assert complaint.endswith("; before it its tuning: --only 'hard-mempo-tune-*'")
    assert "unknown cell 'easy-mempo-9'" in mempo("reproduce", "easy-mempo-9", "--stored", tmp_path).complaint


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
    assert "did you mean 'hard-mempo-0'?" in mempo("reproduce", "hard-memp-0", "--stored", kept).complaint
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
