"""What an evaluation leaves for its reader, made from its stored episodes: tables, CSV, Markdown, JSON, pictures.

    summary.json    a list of rows with every metric, its interval, and what was saved against full history
    paired.json     differences over the same tasks
    table.csv       the rows again, for a spreadsheet        table.md   the tables of the terminal
    plots/          pictures

Invariant: everything shown is read from the folder, so that it can be rendered again without running again, and comes
out the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mempo_env.errors import UserError
from mempo_env.records import Episode

from ..agents.eval_pairs import HISTORY, Saving, row_pairs, savings
from ..agents.eval_rows import EvaluationRow, RowKey, row_of
from ..agents.eval_store import read_settings, read_store
from ..agents.eval_tables import (
    LEGEND,
    PAIRS_LEGEND,
    SAVINGS_LEGEND,
    csv_text,
    evaluation_tables,
    markdown,
    pairs_table,
    savings_table,
)
from .config import RunConfig

SUMMARY = "summary.json"


def write_evaluation(folder: Path, console: Console, *, plots: bool = True) -> list[EvaluationRow]:
    """Writes the files of an evaluation, then prints its tables.

    Args:
        folder: The evaluation's.
        console: Where the tables are shown.
        plots: Whether to draw the pictures, too.

    Returns:
        The rows.

    Raises:
        UserError: The folder is no evaluation's, holds no episode, is damaged, or cannot be written.
    """
    from .eval_plots import plot_evaluation

    episodes = read_store(folder)
    if not episodes:
        raise UserError(f"{folder} holds no episode yet; run the evaluation again to go on")
    settings = read_settings(folder)
    rows = [row_of(key, some) for key, some in episodes.items()]
    pairs, saved = row_pairs(episodes), savings(episodes)
    # A row against its own agent's history stands in the table of savings.
    shown = [one for one in pairs if one.row.agent != one.reference.agent or one.reference.context != HISTORY]
    agents, budgets = ({getattr(row, name): None for row in rows} for name in ("agent", "budget"))
    tables = [savings_table(some) for name in agents if (some := [one for one in saved if one.row.agent == name])]
    tables += [pairs_table(few) for name in budgets if (few := [pair for pair in shown if pair.row.budget == name])]
    notes, faults = agent_notes(settings, rows), fault_lines(episodes)
    tables = [*evaluation_tables(rows), *tables]
    lines = [LEGEND, *([SAVINGS_LEGEND] if saved else []), *([PAIRS_LEGEND] if shown else []), *faults]
    text = "\n\n".join([*notes, *map(markdown, tables), *lines]) + "\n"
    try:
        (folder / SUMMARY).write_text(_json(summary(rows, saved)), encoding="utf-8")
        (folder / "paired.json").write_text(_json([pair.flat() for pair in pairs]), encoding="utf-8")
        (folder / "table.csv").write_text(csv_text(rows), encoding="utf-8")
        (folder / "table.md").write_text(text, encoding="utf-8")
        if plots:
            plot_evaluation(folder / "plots", episodes, rows)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}; free some space") from error
    for line in notes:
        console.print(line, markup=False, highlight=False)
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False)
    return rows


def summary(rows: Sequence[EvaluationRow], saved: Sequence[Saving]) -> list[dict[str, Any]]:
    """The rows as JSON values, each with its saving as ``saving_<name>`` where it has one."""
    by_row = {saving.row: saving for saving in saved}
    found = []
    for row in rows:
        saving = by_row.get(row.key)
        more = {} if saving is None else {f"saving_{k}": v for k, v in saving.flat().items() if k != "row"}
        found.append(row.flat() | more)
    return found


def agent_notes(settings: Mapping[str, Any], rows: Sequence[EvaluationRow]) -> list[str]:
    """A line for each agent: its tasks, its decoding, who counts its tokens, and what it lost."""
    environment, lines = settings["environment"], []
    for name, agent in settings["agents"].items():
        own = environment["env"] == RunConfig.env
        parts = [f"{environment['dataset'] if own else environment['env']}, {environment['split']} tasks"]
        parts += [agent["decoding"]] if agent.get("decoding") else []
        parts.append(f"tokens counted by {agent['counter']}")
        lost = [row for row in rows if row.agent == name and row.overflowed > 0]
        if lost:
            worst = max(row.overflowed for row in lost)
            parts.append(
                f"in {len(lost)} of its rows prompts were too long for the model (in up to {worst:.0f} % of a row's "
                "episodes): such a turn is lost"
            )
        lines.append(f"{name}: {'; '.join(parts)}")
    return lines


def fault_lines(episodes: Mapping[RowKey, Sequence[Episode]]) -> list[str]:
    """For each row with faults, how many and the last one's words."""
    lines = []
    for key, some in episodes.items():
        faults = [episode.error for episode in some if episode.error is not None]
        if faults:
            lines.append(
                f"{len(faults)} of {len(some)} episodes of {key.agent}, {key.context}, {key.budget}, {key.goals} goals "
                f"ended on a fault, such as: {faults[-1]}"
            )
    return lines


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"
