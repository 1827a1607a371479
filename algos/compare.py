"""Runs and evaluations side by side: what each has at the same numbers of goals, and differences over the same tasks.

Invariants:
    * everything is read from stored episodes; nothing is played, and no model is loaded;
    * a difference is over tasks that both played, one by one: the task itself is compared, not its number alone; what
      has no partner is counted and shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mempo_env.errors import UserError
from mempo_env.records import Episode

from ..agents.episodes_io import load_episodes
from ..agents.eval_pairs import Paired, paired
from ..agents.eval_rows import EvaluationRow, RowKey, row_of
from ..agents.eval_store import is_store, read_store
from .stored import load_evaluation

EVALUATIONS = ("before", "after", "imitation", "expert", "evaluation")
"""Names under which run folders hold evaluations; ``evaluation`` is that of an older ``mempo eval --out``."""


@dataclass(frozen=True)
class Side:
    """One row of one source.

    Attributes:
        source: Which of the sources, from 0.
        row: Its row; the agent's name is the source's, with the agent's where the source has several.
        episodes: What it was made from.
    """

    source: int
    row: EvaluationRow
    episodes: tuple[Episode, ...]


@dataclass(frozen=True)
class Comparison:
    """Several sources side by side.

    Attributes:
        sides: All rows, by number of goals, then source.
        pairs: Each row that has a partner in the first source, against it.
        alone: Rows without one.
    """

    sides: tuple[Side, ...]
    pairs: tuple[Paired, ...]
    alone: tuple[RowKey, ...]


def compare(folders: Sequence[Path], evaluations: Sequence[str] = ("after",)) -> Comparison:
    """Reads folders and pairs their rows.

    A row's partner is the row of the first source with the same number of goals, agent, context and budget. Where both
    sources have only one agent, context or budget, that one need not be the same: it is what is compared.

    Args:
        folders: Run folders, or folders of ``mempo eval --out``; at least two sources in all.
        evaluations: Of a run folder, which evaluations; each is a source.

    Returns:
        The comparison.

    Raises:
        UserError: A folder holds no evaluation, or there is only one source.
    """
    short = [folder.resolve().name for folder in folders]
    sources = [
        source
        for folder, name in zip(folders, short, strict=True)
        for source in _sources(folder, name if short.count(name) == 1 else str(folder), evaluations)
    ]
    if len(sources) < 2:
        raise UserError("comparing needs two or more: mempo compare RUN RUN, or of one run --evaluations before after")
    names = [name for name, _ in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{twice[0]} is named twice; name each folder once")
    sides = [
        Side(place, dataclasses.replace(row_of(key, episodes), agent=_label(name, key, rows)), tuple(episodes))
        for place, (name, rows) in enumerate(sources)
        for key, episodes in rows.items()
    ]
    own = {(side.source, side.row.key): key for side, key in zip(sides, _keys(sources), strict=True)}
    pairs, alone = [], []
    for side in sides:
        if side.source == 0:
            continue
        partner = _partner(own[side.source, side.row.key], list(sources[side.source][1]), list(sources[0][1]))
        if partner is None:
            alone.append(side.row.key)
            continue
        first = next(other for other in sides if other.source == 0 and own[0, other.row.key] == partner)
        pairs.append(paired(side.row.key, side.episodes, first.row.key, first.episodes))
    order = sorted(sides, key=lambda side: (side.row.goals, side.source))
    return Comparison(
        tuple(order), tuple(sorted(pairs, key=lambda pair: pair.row.goals)), tuple(sorted(alone, key=lambda k: k.goals))
    )


_Rows = dict[RowKey, list[Episode]]


def _keys(sources: Sequence[tuple[str, _Rows]]) -> list[RowKey]:
    return [key for _, rows in sources for key in rows]


def _sources(folder: Path, name: str, evaluations: Sequence[str]) -> list[tuple[str, _Rows]]:
    """The named sources in a folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give run folders, or folders of mempo eval --out")
    if is_store(folder):
        rows = read_store(folder)
        if not rows:
            raise UserError(f"{folder} holds no episode yet; run the evaluation first")
        return [(name, rows)]
    if (folder / "evaluation.json").exists():
        return [(name, _stored(folder, "evaluation"))]
    if unknown := [each for each in evaluations if each not in EVALUATIONS[:-1]]:
        raise UserError(f"a run has no evaluation '{unknown[0]}'; choose from {', '.join(EVALUATIONS[:-1])}")
    found = []
    for each in evaluations:
        if not (folder / "eval" / f"{each}.json").exists():
            raise UserError(
                f"{folder} has no evaluation '{each}': it is no finished run, or was trained without; try mempo eval "
                f"{folder} --out DIR and compare that"
            )
        found.append((f"{name}, {each}" if len(evaluations) > 1 else name, _stored(folder / "eval", each)))
    return found


def _stored(folder: Path, name: str) -> _Rows:
    """The rows of an evaluation as a run folder holds it."""
    evaluation = load_evaluation(folder / f"{name}.json")
    assert evaluation is not None
    episodes = load_episodes(folder / f"{name}.episodes.jsonl.gz")
    return {
        row.key: [episode for episode in episodes if len(episode.task.goals) == row.goals] for row in evaluation.rows
    }


def _label(name: str, key: RowKey, rows: _Rows) -> str:
    return name if len({other.agent for other in rows}) == 1 else f"{name}: {key.agent}"


def _partner(key: RowKey, ours: Sequence[RowKey], theirs: Sequence[RowKey]) -> RowKey | None:
    """The row of the first source that a row is compared with."""
    found = [other for other in theirs if other.goals == key.goals]
    for name in ("agent", "context", "budget"):
        free = all(len({getattr(one, name) for one in rows}) == 1 for rows in (ours, theirs))
        found = [other for other in found if free or getattr(other, name) == getattr(key, name)]
    return found[0] if len(found) == 1 else None
