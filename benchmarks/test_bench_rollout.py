"""How fast a turn of a group is sampled, on the tiny model, beside transformers' ``generate`` on the same contexts.

Run with ``make bench``. ``rollout_speed.py`` beside this file measures SmolLM2; tests hold that the outputs are right.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

FOLDER = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module; what it imports lies beside it."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location("rollout_speed", FOLDER / "rollout_speed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sample_turns_beside_generate(benchmark: BenchmarkFixture, script: Any) -> None:
    """The quick record, kept beside the timing."""
    record = benchmark.pedantic(script.main, args=(["--quick", "--threads", "1"],), rounds=1)
    benchmark.extra_info["record"] = record
    rows = sum(turn[2] for turn in record["prompt_tokens"])
    assert [side["rows"] for side in record["outputs"].values()] == [rows, rows]
    assert record["ratio"] > 0
    assert record["ratio_cpu"] > 0
