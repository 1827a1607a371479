"""What a run leaves for its reader: the evaluation's files, the table before and after, the picture.

Invariant: everything shown is read from files in the run folder, so that it can be rendered again without running
again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mempo_env.records import Episode

from ..agents.episodes_io import save_episodes
from ..agents.evaluation import EvaluationReport, EvaluationRow
from .config import RunConfig
from .memory_reward import AnswerScorer


@dataclass(frozen=True)
class Quality:
    """Memory quality Q(m) over an evaluation.

    Attributes:
        mean: Over all memories that were written.
        above: Share above 0.8.
        by_turn: For each number of goals, the mean at each turn.
    """

    mean: float
    above: float
    by_turn: dict[int, list[float]]


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation as a run folder holds it."""

    rows: tuple[EvaluationRow, ...]
    quality: Quality
    tokens_by_turn: dict[int, list[float]]


def memory_quality(episodes: Sequence[Episode], scorer: AnswerScorer) -> Quality:
    """Q(m) of every memory that was written.

    Args:
        episodes: As played; those with an error are left out.
        scorer: Scores them with the policy that played.

    Returns:
        Mean, share above 0.8, and means by turn; NaN where no memory was written.
    """
    where = [
        (episode, t)
        for episode in episodes
        if episode.error is None
        for t, turn in enumerate(episode.turns)
        if turn.memory_written
    ]
    if not where:
        return Quality(float("nan"), float("nan"), {})
    values = scorer.memory_quality([(episode, episode.turns[t].memory) for episode, t in where]).tolist()
    collected: dict[int, dict[int, list[float]]] = {}
    for (episode, t), value in zip(where, values, strict=True):
        collected.setdefault(len(episode.task.goals), {}).setdefault(t, []).append(value)
    by_turn = {goals: [_mean(turns[t]) for t in sorted(turns)] for goals, turns in collected.items()}
    return Quality(_mean(values), _mean([float(value > 0.8) for value in values]), by_turn)


def store_evaluation(report: EvaluationReport, quality: Quality, folder: Path, name: str) -> StoredEvaluation:
    """Writes ``<name>.json`` and the episodes, and returns what was written."""
    tokens: dict[int, dict[int, list[float]]] = {}
    for episode in report.episodes:
        if episode.error is not None:
            continue
        for t, turn in enumerate(episode.turns):
            tokens.setdefault(len(episode.task.goals), {}).setdefault(t, []).append(turn.n_prompt + turn.n_output)
    tokens_by_turn = {goals: [_mean(turns[t]) for t in sorted(turns)] for goals, turns in tokens.items()}
    data = json.loads(report.to_json()) | {
        "quality": {
            "mean": _number(quality.mean),
            "above_0.8": _number(quality.above),
            "by_turn": quality.by_turn,
        },
        "tokens_by_turn": tokens_by_turn,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=2, allow_nan=False), encoding="utf-8")
    save_episodes(folder / f"{name}.episodes.jsonl.gz", report.episodes)
    return StoredEvaluation(report.rows, quality, tokens_by_turn)


def load_evaluation(path: Path) -> StoredEvaluation | None:
    """Reads what ``store_evaluation`` wrote; None where there is no such file."""
    if not path.exists():
        return None
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = tuple(EvaluationRow(**_restored(row)) for row in data["rows"])
    quality = data["quality"]
    return StoredEvaluation(
        rows,
        Quality(
            _restored_number(quality["mean"]),
            _restored_number(quality["above_0.8"]),
            {int(k): v for k, v in quality["by_turn"].items()},
        ),
        {int(k): v for k, v in data["tokens_by_turn"].items()},
    )


def write_report(config: RunConfig, run: Path, console: Console) -> None:
    """Prints the table before and after, writes ``summary.json`` and ``plot.png``, says where everything is."""
    from .plots import plot_run

    before, after = (load_evaluation(run / "eval" / f"{name}.json") for name in ("before", "after"))
    if before is not None and after is not None:
        console.print(comparison_table(config, before, after))
    summary = {
        "algo": config.algo,
        "preset": config.preset,
        "seed": config.seed,
        **{
            name: None
            if stored is None
            else {
                "quality": _number(stored.quality.mean),
                "quality_above_0.8": _number(stored.quality.above),
                "rows": [
                    {
                        "goals": row.goals,
                        "f1": _number(row.f1),
                        "em": _number(row.em),
                        "success": _number(row.success),
                        "total_tokens": _number(row.total_tokens),
                        "peak_tokens": _number(row.peak_tokens),
                        "episodes": row.episodes,
                        "errors": row.errors,
                    }
                    for row in stored.rows
                ],
            }
            for name, stored in (("before", before), ("after", after))
        },
    }
    (run / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False), encoding="utf-8")
    plot_run(run, before, after)
    console.print(f"run folder  {run}\nplot        {run / 'plot.png'}\ncheckpoint  {run / 'checkpoints'}")


def comparison_table(config: RunConfig, before: StoredEvaluation, after: StoredEvaluation) -> Table:
    """The table a run ends with: F1, EM, success, total and peak tokens per number of goals, before and after."""
    table = Table(
        title=f"{config.algo} on {config.dataset}, {config.eval.split} tasks never trained on "
        f"({'greedy' if config.eval.greedy else 'sampled'})",
        caption=f"F1, EM, success in % (F1 with 95 % interval); TT, PT in tokens, means over episodes; "
        f"Q(m) {before.quality.mean:.3f} -> {after.quality.mean:.3f}",
    )
    for name in ("goals", "policy", "F1", "EM", "success", "TT", "PT", "turns", "episodes"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for old, new in zip(before.rows, after.rows, strict=True):
        for label, row in (("warm start", old), (config.algo, new)):
            table.add_row(
                str(row.goals) if label == "warm start" else "",
                label,
                f"{row.f1:.1f} ({row.f1_interval[0]:.1f}-{row.f1_interval[1]:.1f})",
                f"{row.em:.1f}",
                f"{row.success:.1f}",
                f"{row.total_tokens:.0f}",
                f"{row.peak_tokens:.0f}",
                f"{row.turns:.1f}",
                f"{row.episodes}" + (f" + {row.errors} errors" if row.errors else ""),
            )
        table.add_section()
    return table


def _restored(row: dict[str, Any]) -> dict[str, Any]:
    """A row's values from their JSON form: intervals are tuples, a mean over nothing is NaN."""
    values = {
        name: tuple(_restored_number(part) for part in value) for name, value in row.items() if type(value) is list
    }
    return {name: _restored_number(value) for name, value in row.items()} | values


def _number(value: float) -> float | None:
    """NaN, a mean over nothing, has no JSON form."""
    return None if math.isnan(value) else value


def _restored_number(value: Any) -> Any:
    return math.nan if value is None else value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
