"""One cell of each kind end to end, small: run, stopped, gone on with, kept, and reproduced."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_study import runner, store
from memory_study.cells import (
    SMOKE,
    Cell,
    Scale,
)
from memory_study.compare import compare_results
from memory_study.failures import CAUSES
from memory_study.reading import _check
from memory_study.reproduce import reproduce
from memory_study.store import pack, read_cell, read_json, write_json
from rich.console import Console

from mempo_env.algos.job import start_run
from mempo_env.algos.measure import evaluate_policy
from mempo_env.errors import UserError

from .two_goals import CALL, episode, turn


def test_cells_run_end_to_end_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = replace(SMOKE, perfect_steps=12, demonstrator_steps=6, curriculum=((6, 1),), episodes=3)
    console, cell = Console(quiet=True), Cell("train", 0, "easy", "shuffled")
    threads = torch.get_num_threads()
    try:
        with monkeypatch.context() as patch:
            # Stopped in the second update, after a checkpoint of the first.
            real, taken = start_run, scale.steps["easy"]
            assert taken == 2
            patch.setattr(runner, "start_run", lambda c, a, k: real(replace(c, steps=1), a, k))
            patch.setattr(runner, "evaluate_policy", _interrupt_training(evaluate_policy))
            with pytest.raises(KeyboardInterrupt):
                runner.run_cell(cell, tmp_path, console, scale)
        assert read_cell(tmp_path, cell.warm, scale) is not None
        assert read_cell(tmp_path, cell, scale) is None
        # The interrupted run says steps=1 in its folder; the study's own config is put back, as if it had been killed.
        folder = tmp_path / "runs" / cell.name
        config = json.loads((folder / "config.json").read_text())
        config["run"]["steps"] = 2
        (folder / "config.json").write_text(json.dumps(config))
        monkeypatch.setattr(runner, "start_run", _never)
        found = runner.run_cell(cell, tmp_path, console, scale)
    finally:
        torch.set_num_threads(threads)
    assert found["training"]["step"] == [0, 1]
    assert len(found["training"]["time/cpu_s"]) == 2
    after = found["evaluations"]["after"]
    assert sorted(after) == ["1", "2"]
    assert all(len(part["episodes"]["f1"]) == 3 for part in after.values())
    assert found["probes"]["easy"]["groups"]["all"] == scale.groups
    assert json.loads((tmp_path / "cells" / f"{cell.name}.json").read_text())["diverged"] == ""
    warm = read_cell(tmp_path, cell.warm, scale)
    assert warm is not None
    expert = warm["evaluations"]["expert"]["2"]["episodes"]
    assert statistics.mean(expert["f1"]) == 100
    assert expert["kept"] == expert["had"]
    assert sorted(warm["evaluations"]) == ["before", "expert", "imitation"]
    # The tasks of all evaluations are the same, one by one.
    assert warm["evaluations"]["before"]["2"]["episodes"]["seed"] == after["2"]["episodes"]["seed"]
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_train", _never)
        assert runner.run_cell(cell, tmp_path, console, scale) == found  # what is there is not run again
    _kept_and_reproduced(tmp_path, cell, scale, monkeypatch)


def _kept_and_reproduced(out: Path, cell: Cell, scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept counts as done elsewhere, weights are made again, and the rerun is equal."""
    stored, elsewhere, console = out / "stored", out / "elsewhere", Console(quiet=True)
    every = [Cell("warm", 1), cell.warm, cell]
    written = pack(every, out, stored, scale)
    assert [path.name for path in written] == ["warm-0.json.gz", "easy-shuffled-0.json.gz"]
    assert pack(every, out, stored, scale) == []
    found = read_cell(elsewhere, cell, scale, stored)
    assert found is not None
    assert {len(e["gold"]) for e in found["texts"]["after"]} == {1, 2}
    for goals, counts in found["failures"]["after"].items():
        part = found["evaluations"]["after"][goals]["episodes"]
        assert counts["episodes"] == len(part["em"])
        assert 100 * (1 - counts["wrong"] / counts["goals"]) == pytest.approx(statistics.mean(part["em"]), abs=1e-3)
        assert sum(counts[cause] for cause in CAUSES) == counts["wrong"]
    _read_by_both(found, out, stored, cell, scale)
    assert read_cell(elsewhere, cell, scale) is None
    assert read_cell(elsewhere, replace(cell, lr=1.0), scale, stored) is None
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_train", _never)
        patch.setattr(runner, "_warm", _never)
        assert runner.run_cell(cell, elsewhere, console, scale, stored=stored) == found
    assert not (elsewhere / "cells").exists()
    threads = torch.get_num_threads()
    monkeypatch.undo()  # the run may start now
    try:
        with monkeypatch.context() as patch:
            patch.setattr(runner, "_warm", _never)  # no second evaluation of the ceilings
            again = reproduce(cell.name, elsewhere, console, stored=stored, scales=(scale,))
    finally:
        torch.set_num_threads(threads)
    assert (again.verdict, again.unequal, again.versions) == ("equal", (), {})
    assert again.differences["after"][2].mean == 0
    new = read_cell(elsewhere, cell, scale)
    assert new is not None
    assert new["warm_start"] == {"remade": True, "equal": True, "f1": [0.0, 0.0, 0.0]}
    assert found["warm_start"] == {"remade": False}
    with pytest.raises(UserError, match=r"other settings .*check out the commit"):
        reproduce(cell.name, elsewhere, console, stored=stored, scales=(replace(scale, episodes=4),))
    with pytest.raises(UserError, match="did you mean 'easy-shuffled-0'"):
        reproduce("easy-shufled-0", elsewhere, console, stored=stored)
    (stored / "warm-0.json.gz").write_bytes(b"half")
    with pytest.raises(UserError, match=r"cannot be read .*remove it"):
        read_cell(elsewhere, cell.warm, scale, stored)


def _read_by_both(found: dict[str, Any], out: Path, stored: Path, cell: Cell, scale: Scale) -> None:
    """With the weights that wrote it, a last memory has the Q that the evaluation stored; without, the part is kept."""
    warm = read_cell(out, cell.warm, scale)
    assert warm is not None
    scored = 0
    for goals, read in found["reading"].items():
        assert sorted(read) == ["ours by ours", "ours by start", "start by ours", "start by start"]
        for pair, evaluated in (
            ("ours by ours", found["evaluations"]["after"]),
            ("start by start", warm["evaluations"]["before"]),
        ):
            rows = evaluated[goals]["episodes"]
            for q, some in zip(read[pair], rows["quality"], strict=True):
                if some:  # the last memory that was written is the one in force
                    scored += 1
                    assert q == pytest.approx(some[-1], abs=2e-4)
    assert scored > 0
    assert read_json(stored / f"{cell.warm.name}.json.gz").keys() == warm.keys() | {"texts", "failures"}
    with pytest.raises(UserError, match="they did not play its episodes"):
        _check([0.5], [episode(turn("", "Ada plays chess", CALL, quality=0.7))], out)
    lacking = {name: part for name, part in found.items() if name != "reading"}
    write_json(stored / f"{cell.name}.json.gz", lacking)
    assert pack([cell], out, stored, scale) == [stored / f"{cell.name}.json.gz"]
    assert read_cell(stored / "none", cell, scale, stored) == found
    write_json(stored / f"{cell.name}.json.gz", found | {"failures": {"after": "of old code"}})
    assert pack([cell], out, stored, scale) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(store.PARTS, "failures", 2)
        assert pack([cell], out, stored, scale) == [stored / f"{cell.name}.json.gz"]
        assert pack([cell], out, stored, scale) == []
    assert read_cell(stored / "none", cell, scale, stored) == found | {"part_versions": {"failures": 2}}
    write_json(stored / f"{cell.name}.json.gz", lacking | {"diverged": "another run"})
    assert pack([cell], out, stored, scale) == []  # what another run found is not added to
    write_json(stored / f"{cell.name}.json.gz", found)


def test_results_are_equal_alike_or_different() -> None:
    def result(f1: list[float], torch_version: str = "2") -> dict[str, Any]:
        episodes = {"seed": [0, 1, 2, 3], "f1": f1, "em": f1}
        part = {"episodes": episodes, "template_share": 0.5, "history": None}
        versions = {"torch": torch_version, "platform": f"kernel of {torch_version}"}
        training = {"rollout/f1": [f1[0]], "time/step_s": [len(torch_version)]}
        return {"evaluations": {"after": {"2": part}}, "training": training, "versions": versions}

    old = result([10.0, 20.0, 30.0, 40.0])
    assert compare_results(old, result([10.0, 20.0, 30.0, 40.0], "23")).verdict == "equal"  # times may differ
    alike = compare_results(old, result([20.0, 10.0, 40.0, 30.0], "3"))
    assert (alike.verdict, alike.versions) == ("alike", {"torch": ("2", "3")})
    assert alike.unequal == ("after/2/em", "after/2/f1", "training/rollout/f1")
    assert alike.overall["after"].mean == 0
    moved = result([15.0, 25.0, 35.0, 45.0])
    different = compare_results(old, moved)
    assert (different.verdict, different.seeds) == ("different", None)
    assert different.differences["after"][2].low == 5
    # Seeds with a mean F1 of 25, 30 and 35: one more lies within 30 -+ 4.303 * 5 * sqrt(4 / 3).
    others = [result([v] * 4) for v in (30.0, 35.0)]
    spread = compare_results(old, moved, others)
    assert spread.seeds == pytest.approx((30 - 24.84, 30 + 24.84), abs=0.01)
    assert spread.verdict == "alike"


def _interrupt_training(evaluate: Any) -> Any:
    def evaluated(config: Any, policy: Any, folder: Path, name: str, *rest: Any) -> None:
        if name == "after":
            raise KeyboardInterrupt
        evaluate(config, policy, folder, name, *rest)

    return evaluated


def _never(*_: Any) -> Any:
    raise AssertionError("it was run again")
