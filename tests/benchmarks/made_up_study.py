"""Evaluations, training metrics and cells of a made-up study, small enough that its tables are computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memory_study import measures
from memory_study.cells import STUDY, Cell, matrix
from memory_study.study import Study, gather

GOALS = STUDY.test_goals


def part(f1: list[float | None], **more: Any) -> dict[str, Any]:
    """One number of goals of an evaluation."""
    n = len(f1)
    counts: tuple[str, ...] = ("had", "kept", "new", "noted", "notes", "notes_right", "notes_invented")
    counts += ("notes_repeated", "memories", "memories_same", "memories_full", "facts", "facts_final", "format_errors")
    counts += ("early", "wrong_number", "turns", "tool_calls", "total_tokens", "peak_tokens")
    columns: dict[str, Any] = {name: [None if v is None else 1 for v in f1] for name in counts}
    columns |= {"seed": list(range(n)), "f1": f1, "em": f1, "truncated": [None if v is None else 0.0 for v in f1]}
    columns |= {"quality": [None if v is None else [0.9, 0.5] for v in f1]}
    columns |= {"memory_tokens": [None if v is None else [10, 20] for v in f1]}
    return {"episodes": columns | more, "template_share": 0.25, "history": None}


def evaluation(f1: float, **more: Any) -> dict[str, Any]:
    """Every number of goals with two tasks of this mean."""
    return {str(n): part([f1 - 10, f1 + 10], **more) for n in GOALS}


def training(f1: list[float], output: float, cpu: float) -> dict[str, Any]:
    """The metrics of as many updates as there are values."""
    n = len(f1)
    return {
        "step": list(range(n)),
        "rollout/f1": f1,
        "rollout/episodes": [64.0] * n,
        "rollout/errors": [4.0] + [0.0] * (n - 1),
        "rollout/output_tokens": [output] * n,
        "time/cpu_s": [cpu] * n,
        "time/step_s": [2 * cpu] * n,
        "time/scoring_s": [cpu / 2] * n,
        "train/entropy": [1.0] * n,
    }


def probe() -> dict[str, Any]:
    """Four memories in two groups."""
    memories = {name: [1.0, 2.0, 3.0, 4.0] for name in measures.CIRCUMSTANCES}
    return {"memories": memories | {"group": [0, 0, 1, 1], "rollout": [0, 1] * 2, "reference": [-1.0, 1.0, -2.0, 2.0]}}


def fake_cells(seeds: tuple[int, ...] = (0, 1, 2)) -> Callable[[Cell], dict[str, Any] | None]:
    """Warm starts at 20, ceilings at 64 and 90, GRPO at 30 + seed, MemPO at 40, 41, 45, hard ones only at seed 0."""
    gains = {"grpo": (30.0, 31.0, 32.0), "mempo": (40.0, 41.0, 45.0)}

    def read(cell: Cell) -> dict[str, Any] | None:
        if cell.kind == "warm" and cell.seed in seeds and not cell.arm:
            names = {"before": 20.0, "imitation": 64.0, "expert": 90.0}
            return {
                "evaluations": {name: evaluation(value) for name, value in names.items()},
                "probes": {"easy": probe(), "hard": probe()},
            }
        if cell.kind == "train" and cell.arm in gains and cell.seed in seeds and cell.regime == "easy":
            return {
                "evaluations": {"after": evaluation(gains[cell.arm][cell.seed])},
                "training": training([0.1, 0.2, 0.3], 10.0, 1.0 if cell.arm == "grpo" else 2.0),
                "probes": {"easy": probe()},
                "diverged": "nan" if (cell.arm, cell.seed) == ("mempo", 2) else "",
                "warm_start": {"remade": True, "equal": cell.seed != 1},
            }
        if cell.kind == "tune" and (cell.arm, cell.regime) == ("grpo", "hard"):
            return {"cell": {"lr": cell.lr, "weight": cell.weight}, "evaluations": {"after": evaluation(5.0)}}
        return None

    return read


def fake_study(seeds: tuple[int, ...] = (0, 1, 2)) -> Study:
    """What these cells make."""
    return gather(matrix(full=True), fake_cells(seeds), lambda cell: cell if cell.kind != "tuned" else None)
