"""What an evaluation leaves in the run folder: rows, Q(m), tokens by turn, the cost of full history, every episode.

Invariant: ``load_evaluation`` gives back what ``store_evaluation`` wrote, NaN included; the files hold all that reports
and pictures need.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mempo_env.records import Episode

from ..agents.episodes_io import save_episodes
from ..agents.eval_rows import EvaluationRow
from ..agents.evaluation import EvaluationReport
from ..agents.history_cost import HistoryCost
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
    """An evaluation as a run folder holds it; dicts are by number of goals.

    Attributes:
        rows: Scores and costs.
        quality: Q(m).
        tokens_by_turn: Mean input and output tokens of each turn.
        history: What full history would have cost for the same episodes.
        f1: Of each episode, in the order of the tasks, so that evaluations can be compared task by task.
    """

    rows: tuple[EvaluationRow, ...]
    quality: Quality
    tokens_by_turn: dict[int, list[float]]
    history: dict[int, HistoryCost]
    f1: dict[int, list[float]]


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


def store_evaluation(
    report: EvaluationReport, quality: Quality, folder: Path, name: str, history: Mapping[int, HistoryCost]
) -> StoredEvaluation:
    """Writes ``<name>.json`` and the episodes, and returns what was written."""
    tokens: dict[int, dict[int, list[float]]] = {}
    f1: dict[int, list[float]] = {}
    for episode in report.episodes:
        goals = len(episode.task.goals)
        f1.setdefault(goals, []).append(math.nan if episode.error is not None else 100 * episode.scores["f1"])
        for t, turn in enumerate(episode.turns if episode.error is None else ()):
            tokens.setdefault(goals, {}).setdefault(t, []).append(turn.n_prompt + turn.n_output)
    tokens_by_turn = {goals: [_mean(turns[t]) for t in sorted(turns)] for goals, turns in tokens.items()}
    data = json.loads(report.to_json()) | {
        "quality": {
            "mean": _number(quality.mean),
            "above_0.8": _number(quality.above),
            "by_turn": quality.by_turn,
        },
        "tokens_by_turn": tokens_by_turn,
        "history": {goals: dataclasses.asdict(cost) for goals, cost in history.items()},
        "f1": {goals: [_number(value) for value in values] for goals, values in f1.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=2, allow_nan=False), encoding="utf-8")
    save_episodes(folder / f"{name}.episodes.jsonl.gz", report.episodes)
    return StoredEvaluation(report.rows, quality, tokens_by_turn, dict(history), f1)


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
        {int(k): HistoryCost(**v) for k, v in data["history"].items()},
        {int(k): [_restored_number(value) for value in v] for k, v in data["f1"].items()},
    )


def _restored(row: dict[str, Any]) -> dict[str, Any]:
    """A row's values from their JSON form: intervals are tuples, a mean over nothing is NaN."""
    return {name: _restored_value(value) for name, value in row.items()}


def _restored_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _restored_value(part) for name, part in value.items()}
    return tuple(map(_restored_number, value)) if isinstance(value, list) else _restored_number(value)


def _number(value: float) -> float | None:
    """NaN, a mean over nothing, has no JSON form."""
    return None if math.isnan(value) else value


def _restored_number(value: Any) -> Any:
    return math.nan if value is None else value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
