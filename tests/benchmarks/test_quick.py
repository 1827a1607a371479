"""What ``make bench`` compares, with stand-ins for the scripts it calls; start-up, shares and linearity by hand."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import quick
import startup
import step_shares
import tokens_by_goals
from quick import Part
from rich.console import Console

from mempo_env.errors import UserError


def stand_in(folder: Path, code: str, tolerance: float = 0.2) -> Part:
    """A part whose script is this code, with the file to write as its argument."""
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    return Part((str(script), "{out}"), lambda result: {"speed": result["speed_ratio"]}, "more", tolerance)


WRITES = "import json, sys; open(sys.argv[1], 'w').write(json.dumps({'speed_ratio': 2.5}))"


def test_a_part_is_run_in_a_process_and_read(tmp_path: Path) -> None:
    assert quick.run(stand_in(tmp_path, WRITES)) == {"speed": 2.5}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit('error: no such flag --quick')", "exit code 1, error: no such flag --quick"),
        ("import sys; open(sys.argv[1], 'w').write('{}')", "its result lacks 'speed_ratio'"),
        ("import sys; open(sys.argv[1], 'w').write('[')", "cannot be read"),
        ("pass", "cannot be read"),
    ],
)
def test_a_part_that_fails_says_why(tmp_path: Path, code: str, said: str) -> None:
    found = quick.run(stand_in(tmp_path, code))
    assert isinstance(found, str)
    assert said in found


def test_lines_stand_beside_the_stored_ratios(tmp_path: Path) -> None:
    parts = {name: stand_in(tmp_path, WRITES) for name in ("a", "b", "c")}
    lines = quick.compare(
        {"a": {"x": 1.5, "y": 2.0}, "b": "exit code 2", "c": {"z": 1.0}}, {"a": {"x": 2.0, "gone": 1.0}}, parts
    )
    assert [(line.name, line.verdict, line.bad) for line in lines] == [
        ("x", "worse", True),
        ("y", "new", False),
        ("gone", "failed: no longer measured", True),
        ("b", "failed: exit code 2", True),
        ("z", "new", False),
    ]
    said = " ".join(quick.what_next(lines))
    assert "--only a b" in said
    assert "--store" in said
    console = Console(file=io.StringIO(), width=200)
    console.print(quick.table(lines, parts, {"a": 1.0}))
    assert "no longer measured" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command with one stand-in part; gives its exit code and the stored file."""
    stored = tmp_path / "quick.json"
    monkeypatch.setattr(quick, "STORED", stored)
    monkeypatch.setattr(quick, "ROOT", tmp_path)

    def run(code: str, *flags: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(quick, "PARTS", {"a": stand_in(tmp_path, code)})
        monkeypatch.setattr(sys, "argv", ["quick.py", *flags])
        with pytest.raises(SystemExit) as stop:
            quick.main()
        assert isinstance(stop.value.code, int)
        return stop.value.code, json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}

    return run


def test_a_ratio_that_fell_is_exit_code_1_until_it_is_stored(bench: Any) -> None:
    assert bench(WRITES)[0] == 0, "new ratios are no failure"
    code, stored = bench(WRITES, "--store")
    assert (code, stored["ratios"]) == (0, {"a": {"speed": 2.5}})
    slower = WRITES.replace("2.5", "2.0")
    assert bench(slower) == (1, stored)
    assert bench(WRITES.replace("2.5", "2.2"))[0] == 0, "within the tolerance"
    assert bench(slower, "--store")[1]["ratios"] == {"a": {"speed": 2.0}}


def test_a_part_that_failed_is_never_stored(bench: Any) -> None:
    bench(WRITES, "--store")
    code, stored = bench("raise SystemExit(3)", "--store")
    assert (code, stored["ratios"]) == (1, {"a": {"speed": 2.5}})


def test_the_real_parts_read_what_their_scripts_write() -> None:
    read = {name: part.ratios for name, part in quick.PARTS.items()}
    assert list(read["learner"]({"speed_ratio": 2.0}).values()) == [2.0]
    assert list(read["rollout"]({"ratio": 3.0}).values()) == [3.0]
    shares = {"grpo": {"cpu": 1.0}, "mempo, joint": {"cpu": 1.05, "wall": 2.0}}
    assert read["shares"]({"step_against_grpo": shares, "scoring_share": {"mempo, joint": {"cpu": 0.04}}}) == {
        "step of mempo, joint: CPU against GRPO": 1.05,
        "Q(m) of mempo, joint: share of the step's CPU": 0.04,
    }
    seconds = {"import gymnasium": 0.2, "import mempo_env": 0.3, "mempo --help": 0.4, "gym.make + reset": 0.8}
    result = {"seconds": {name: {"cpu": {"all": [value + 1, value]}} for name, value in seconds.items()}}
    assert list(read["startup"](result).values()) == pytest.approx([1.5, 2.0, 4.0])
    bench = {"name": "test_a", "stats": {"min": 3.0}, "extra_info": {"yardstick_s": 2.0}}
    assert read["suites"]({"benchmarks": [bench]}) == {"test_a: CPU against the yardstick": 1.5}


def test_a_ratio_that_is_worse_is_measured_again_and_the_better_one_counts(tmp_path: Path) -> None:
    counts = tmp_path / "count"
    counts.write_text("0", encoding="utf-8")
    code = f"""
import json, pathlib, sys
place = pathlib.Path({str(counts)!r})
turn = int(place.read_text())
place.write_text(str(turn + 1))
pathlib.Path(sys.argv[1]).write_text(json.dumps({{"speed_ratio": [1.0, 2.4, 1.0, 1.1, 2.2][turn]}}))
"""
    part = stand_in(tmp_path, code)
    assert quick.measured(part, {"speed": 2.5}) == {"speed": 2.4}, "bad luck once"
    assert quick.measured(part, {"speed": 2.5}) == {"speed": 1.1}, "worse both times"
    assert quick.measured(part, {"speed": 2.5}) == {"speed": 2.2}
    assert counts.read_text(encoding="utf-8") == "5", "what is within its tolerance is run once"


def test_a_process_is_measured_and_a_failing_one_is_told() -> None:
    wall, cpu = startup.once([sys.executable, "-c", "sum(range(2_000_000))"])
    assert 0 < cpu < wall + 1
    with pytest.raises(UserError, match="planted"):
        startup.once([sys.executable, "-c", "raise ValueError('planted')"])


def test_ratios_are_medians_over_rounds_of_the_ratio_within_a_round() -> None:
    def clocks(step: list[float], scoring: list[float]) -> dict[str, dict[str, list[float]]]:
        part = {"sampling": step, "scoring": scoring, "update": step, "step": step}
        return {"wall": part, "cpu": part}

    found = step_shares.ratios({"grpo": clocks([1, 10, 2], [0, 0, 0]), "m": clocks([1.1, 12, 2.2], [0.11, 0.6, 0.22])})
    assert found["step_against_grpo"]["m"] == {"wall": 1.1, "cpu": 1.1}
    assert found["scoring_share"]["m"]["wall"] == 0.1
    assert found["median_seconds"]["m"]["cpu"]["step"] == 2.2


def test_linearity_by_hand() -> None:
    bent = tokens_by_goals.linearity([1, 2, 3], [1.0, 4.0, 9.0])  # line 4 n - 10/3, off by 1/3, -2/3, 1/3
    assert bent["slope"] == pytest.approx(4.0)
    assert bent["intercept"] == pytest.approx(-3.3333)
    assert bent["r2"] == pytest.approx(1 - (6 / 9) / (98 / 3), abs=1e-4)
    assert bent["residual"] == pytest.approx(1 / 3, abs=1e-4)
    assert bent["exponent"] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="two different"):
        tokens_by_goals.linearity([4, 4], [1.0, 2.0])


def test_growth_is_from_4_to_16_goals() -> None:
    names = ("total", "total_less_task", "peak", "peak_less_task", "turns")
    rows = {n: {name: float(n * (at + 1)) + at for at, name in enumerate(names)} for n in (2, 4, 8, 16)}
    found = tokens_by_goals.growth(rows, "memory")
    assert found["total_16_by_4"] == 4.0
    assert found["peak_less_task_16_by_4"] == pytest.approx(67 / 19, abs=1e-4)
    assert found["total"]["exponent"] == 1.0
