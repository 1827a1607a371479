"""The study's command line: what it lists, what it says of cells that are not there, what it runs again."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_study import runner
from memory_study.arms import ARMS, Arm
from memory_study.cells import SMOKE, STUDY, Cell, Scale, algorithm_config, candidates, fingerprint, run_config
from memory_study.reproduce import cell_of, kept, read_kept
from memory_study.store import read_cell, read_json, write_json

from mempo_env.algos.algorithm_config import GRPOConfig, MemPOConfig
from mempo_env.algos.base import get_algorithm
from mempo_env.errors import UserError

SCRIPT = importlib.import_module("memory_reward")


def listed(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """The lines of ``--list``."""
    assert SCRIPT.main(["--list", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def place_cell(out: Path, cell: Cell, scale: Scale = STUDY, **content: Any) -> None:
    """A finished cell in the study's folder."""
    found = {"fingerprint": fingerprint(cell, scale), "evaluations": {}, "seconds": {"cpu": 1.0}}
    write_json(out / "cells" / f"{cell.name}.json", found | content)


def place_warm(out: Path, cell: Cell, scale: Scale = STUDY) -> None:
    """A warm start with its weights."""
    place_cell(out, cell, scale)
    (out / "runs" / cell.name / "base").mkdir(parents=True)


def test_every_kept_cell_still_has_its_fingerprint() -> None:
    names = kept()
    assert len(names) >= 48
    for name in names:
        cell, _ = cell_of(read_kept(name))
        assert cell.name == name.rpartition("/")[2]


def test_the_list_counts_every_warm_start_that_must_be_made_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, stored = tmp_path / "out", tmp_path / "stored"
    places = ("--out", out, "--stored", stored)
    one = 40 * 4 / 60 + 1.5  # minutes: 40 updates of 4 s, and the evaluation
    some = ("--only", "easy-*-[01]", *places)
    lines = listed(capsys, *some)
    assert lines[-1] == (
        f"16 cells, about {(16 * one + 2 * 14) / 60:.1f} hours of one core for the 16 that are not done, of it 28 min "
        f"for warm starts that must be made (again): {out / 'runs'} lacks the weights of 2"
    )
    # Those of the list itself are among them, not counted twice.
    assert "of it 28 min" in listed(capsys, "--only", "[we]*-[01]", *places)[-1]
    place_warm(out, Cell("warm", 0))
    assert "of it 14 min" in listed(capsys, *some)[-1]
    # A result without weights is no weights: they are made again.
    (out / "cells" / "warm-0.json").rename(tmp_path / "warm-0.json")
    write_json(stored / "warm-0.json.gz", read_json(tmp_path / "warm-0.json"))
    assert "of it 28 min" in listed(capsys, *some)[-1]
    assert listed(capsys, "--only", "warm-0", *places)[0].endswith("done")
    # Once they were made again, the folder says so.
    write_json(out / "remade" / "warm-0.json", {"fingerprint": fingerprint(Cell("warm", 0)), "warm_start": {}})
    place_warm(out, Cell("warm", 1))
    assert listed(capsys, *some)[-1] == (
        f"16 cells, about {16 * one / 60:.1f} hours of one core for the 16 that are not done"
    )
    # What is done needs nothing, unless it is run again.
    place_cell(tmp_path / "other", Cell("train", 0, "easy", "mempo"))
    done = ("--only", "easy-mempo-0", "--out", tmp_path / "other", "--stored", stored)
    assert listed(capsys, *done)[-1] == "1 cells, about 0.0 hours of one core for the 0 that are not done"
    again = listed(capsys, *done, "--again")
    assert again[0].endswith("again")
    assert f"about {(one + 14) / 60:.1f} hours" in again[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--only easy-short-0", r"default matrix, but easy-short-0 of --full does: add --full"),
        ("--only sparse-*", r"but sparse-grpo-0 of --full does: add --full"),
        ("--only easy-grpo-4 --shard 1/9", r"no cell fits --only 'easy-grpo-4' in this shard; leave --shard out"),
        ("--only easy-grop-4", r"'easy-grop-4'; --list --full shows all names"),
        ("--only easy-grpo-4 --real", r"'easy-grpo-4'; --list shows all names"),
        ("--table --against mempro", r"unknown arm 'mempro'; did you mean 'mempo'"),
        ("--against mempo", r"give --table, too"),
    ],
)
def test_what_cannot_be_chosen_is_told_what_to_do(tmp_path: Path, arguments: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        SCRIPT.main([*arguments.split(), "--list", "--out", str(tmp_path)][: -3 if "--table" in arguments else None])
    assert not list(tmp_path.iterdir())


def test_cells_that_another_process_is_at_come_last(tmp_path: Path) -> None:
    one, two, tuned, other = (
        *(Cell("train", seed, "easy", "grpo") for seed in (0, 1)),
        *(Cell("tuned", 0, "easy", arm) for arm in ("grpo", "mempo")),
    )
    running = {one, tuned}
    cells = SCRIPT.in_turn((tuned, one, other, two), lambda cell: cell in running)
    assert next(cells) == two
    running.clear()  # looked at when its turn comes, not before
    assert list(cells) == [one, tuned, other]
    assert not runner.is_running(one, tmp_path)
    with runner._locked(tmp_path / "locks" / one.name):
        assert runner.is_running(one, tmp_path)
        assert not runner.is_running(two, tmp_path)
    assert not runner.is_running(one, tmp_path)


@pytest.mark.parametrize("threads", ["0", "-1", "two"])
def test_threads_are_one_or_more(capsys: pytest.CaptureFixture[str], threads: str) -> None:
    with pytest.raises(SystemExit):
        SCRIPT.parse(["--threads", threads])
    assert f"'{threads}' is no number of threads; give 1 or more" in capsys.readouterr().err


def test_again_runs_what_is_there_from_its_beginning_but_no_warm_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, other = Cell("train", 0, "easy", "short"), Cell("train", 0, "easy", "mempo")
    stored, folder = tmp_path / "stored", tmp_path / "runs" / cell.name
    place_warm(tmp_path, cell.warm, SMOKE)
    for one in (cell, other):
        place_cell(tmp_path, one, SMOKE, which="old")
        write_json(stored / f"{one.name}.json.gz", read_json(tmp_path / "cells" / f"{one.name}.json"))
    (folder / "checkpoints").mkdir(parents=True)
    ran: list[str] = []

    def train(cell: Cell, out: Path, *_: Any) -> Any:
        assert not (out / "runs" / cell.name).exists()
        assert not (out / "cells" / f"{cell.name}.json").exists()
        ran.append(cell.name)
        return {"evaluations": {}, "which": "new"}, {}

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a warm start was made")

    monkeypatch.setattr(runner, "_train", train)
    monkeypatch.setattr(runner, "_warm", never)
    monkeypatch.setattr(runner, "_imitated", never)
    flags = ["--smoke", "--full", "--out", str(tmp_path), "--stored", str(stored), "--only"]
    threads = torch.get_num_threads()
    try:
        assert SCRIPT.main([*flags, "easy-short-0"]) == 0
        assert ran == []
        assert folder.exists()
        assert SCRIPT.main([*flags, "easy-short-0", "--again"]) == 0
        assert SCRIPT.main([*flags, "warm-0", "--again"]) == 0
    finally:
        torch.set_num_threads(threads)
    assert ran == ["easy-short-0"]
    capsys.readouterr()
    found = {one.arm: read_cell(tmp_path, one, SMOKE, stored) for one in (cell, other)}
    assert {arm: result and result["which"] for arm, result in found.items()} == {"short": "new", "mempo": "old"}
    assert not any((tmp_path / "earlier").iterdir())


@pytest.mark.parametrize("stopped", [False, True])
def test_what_again_replaces_comes_back_if_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    cell = Cell("train", 0, "easy", "short")
    place_warm(tmp_path, cell.warm, SMOKE)
    place_cell(tmp_path, cell, SMOKE, which="old")
    (tmp_path / "runs" / cell.name / "checkpoints").mkdir(parents=True)

    def fails(cell: Cell, out: Path, *_: Any) -> Any:
        (out / "runs" / cell.name / "half").mkdir(parents=True)
        raise KeyboardInterrupt if stopped else UserError("it cannot be")

    flags = ["--smoke", "--full", "--out", str(tmp_path), "--stored", str(tmp_path / "s"), "--only", cell.name]
    threads = torch.get_num_threads()
    monkeypatch.setattr(runner, "_train", fails)
    try:
        if stopped:
            for _ in range(2):  # the second one sets nothing aside: what the first one left is half a run
                with pytest.raises(KeyboardInterrupt):
                    SCRIPT.main([*flags, "--again"])
            assert read_cell(tmp_path, cell, SMOKE) is None
            assert (tmp_path / "runs" / cell.name / "half").exists()  # goes on from here
            monkeypatch.setattr(runner, "_train", lambda *_: (_ for _ in ()).throw(UserError("it cannot be")))
        assert SCRIPT.main([*flags, "--again"]) == 1
    finally:
        torch.set_num_threads(threads)
    assert "failed: it cannot be" in capsys.readouterr().out
    found = read_cell(tmp_path, cell, SMOKE)
    assert found is not None
    assert found["which"] == "old"
    assert [path.name for path in (tmp_path / "runs" / cell.name).iterdir()] == ["checkpoints"]
    assert not any((tmp_path / "earlier").iterdir())


def test_an_arm_that_cannot_be_used_fails_before_its_warm_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"arm mine: GRPOConfig has no weight .*; give Arm\(.., weighted=False\)"):
        Arm("mine", "grpo", GRPOConfig(), "", default=False)
    misspelt = Arm("mine", "memory_study.control:ShortMempo", MemPOConfig(), "", default=False)
    monkeypatch.setitem(ARMS, "mine", misspelt)
    monkeypatch.setattr(runner, "_warm", lambda *_: pytest.fail("a warm start was made"))
    assert SCRIPT.main(["--smoke", "--full", "--only", "easy-mine-0", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "failed: " in shown
    assert "ShortMempo" in shown
    assert "Traceback" not in shown


OWN = '''
from mempo_env.algos.mempo import MemPO


class Mine(MemPO):
    """Another algorithm."""

    name = "mine"
'''


def test_an_arm_of_ones_own_is_listed_and_configured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    algo = "my_package.mine:Mine"
    monkeypatch.setitem(ARMS, "mine", Arm("mine", algo, MemPOConfig(), "an arm of one's own", default=False))
    places = ("--out", tmp_path, "--stored", tmp_path / "stored")
    lines = listed(capsys, "--full", "--only", "easy-mine-[01]", *places)
    assert [line.split()[0] for line in lines[:-1]] == ["easy-mine-0", "easy-mine-1"]
    assert "of it 28 min" in lines[-1]
    with pytest.raises(UserError, match="easy-mine-0 of --full does: add --full"):
        SCRIPT.main(["--only", "easy-mine-[01]", "--out", str(tmp_path)])
    cell = Cell("train", 0, "easy", "mine")
    algorithm = get_algorithm(run_config(cell, tmp_path).algo)
    assert algorithm.__name__ == "Mine"
    algorithm(algorithm_config(cell))  # its settings are the class's
    assert fingerprint(cell) != fingerprint(Cell("train", 0, "easy", "mempo"))
    assert len(candidates("easy", "mine")) == 4
    assert SCRIPT.main(["--table", "--against", "mine", *map(str, places)]) == 0


def test_the_script_lists_shows_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, place = ("--out", str(tmp_path)), ("--stored", str(tmp_path / "kept"))
    cell = Cell("warm", 0)
    content = {"fingerprint": fingerprint(cell, SMOKE), "evaluations": {}, "cell": {}}
    write_json(tmp_path / "cells" / "warm-0.json", content)
    assert SCRIPT.main(["--smoke", "--only", "warm-*", "--list", *out, *place]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[:-1] if line.endswith("done")] == ["warm-0"]
    assert listed[-1] == "6 cells, 5 of them not done"
    assert not any(" min " in line for line in listed)  # minutes were measured at full size
    assert SCRIPT.main(["--smoke", "--pack", *out, *place]) == 0
    assert read_json(tmp_path / "kept" / "warm-0.json.gz") == content | {"texts": {}, "failures": {}}
    (tmp_path / "cells" / "warm-0.json").unlink()
    assert SCRIPT.main(["--smoke", "--only", "warm-0", "--list", *out, *place]) == 0
    assert "done" in capsys.readouterr().out  # a kept cell is done
    assert SCRIPT.main(["--table", "--out", str(tmp_path / "none"), "--stored", str(tmp_path / "none")]) == 0
    shown = capsys.readouterr().out
    assert "0 of 5 seeds are in" in shown
    assert "|" not in shown  # no table without a cell
    with pytest.raises(UserError, match="no cell fits"):
        SCRIPT.main(["--only", "no-such", *out])
