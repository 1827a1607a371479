"""Tables of an evaluation: for the terminal, and as CSV and Markdown.

Invariant: a table shows what it is given and computes nothing; the terminal's fit 80 columns, what does not fit there
is in the files. A mean over nothing is a dash.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from .eval_pairs import Paired, Saving
from .eval_rows import EvaluationRow, RowKey

LEGEND = (
    "F1, EM, all (every goal right) in %, intervals 95 %; TT, PT: total and peak tokens; Q(m): memory quality; means "
    "over n episodes, those that ended on a fault (+ e) left out"
)
SAVINGS_LEGEND = (
    "Saved tokens in %; bound: what would be saved of TT if equally long tool results were all that costs, "
    "1 - 2 / (C + 1) for C calls (prompts lower a saving, outputs that history keeps raise it); F1: difference from "
    "history over the same tasks, in points, or 'priced' where history was not played and the same episodes are priced "
    "as if every turn had stayed in the chat"
)
PAIRS_LEGEND = (
    "Differences are paired by task, with 95 % intervals over tasks: F1 in points, TT and PT in tokens, over the n "
    "tasks that both played"
)
NOTHING = "-"


def number(value: float, form: str = ".1f") -> str:
    """A number, or a dash where there is none."""
    return NOTHING if math.isnan(value) else format(value, form)


def with_interval(value: float, interval: tuple[float, float], form: str = ".1f") -> str:
    """A number with its interval: ``90.5 (86-94.5)``, or, where it can be negative, ``+4.5 [+1.0, +8.0]``."""
    if math.isnan(value):
        return NOTHING
    if form == ".1f":
        return f"{value:.1f} ({interval[0]:.3g}-{interval[1]:.3g})"
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def counted(episodes: int, errors: int) -> str:
    """Episodes, and those that ended on a fault."""
    return f"{episodes}" + (f" + {errors} errors" if errors else "")


def plain_table(title: str, caption: str | None = None) -> Table:
    """An empty table of the house's form: narrow, without frames."""
    table = Table(title=Text(title, style="table.title"), caption=caption, box=box.SIMPLE_HEAD)
    table.padding, table.collapse_padding, table.pad_edge = (0, 1), True, False
    return table


def rows_table(rows: Iterable[EvaluationRow], title: str) -> Table:
    """One table over rows of a few agents, sorted by the number of goals, so that they stand beside each other.

    What is the same in every row (agent, context strategy, budget) stands under the table, which then fits a terminal.
    """
    rows = sorted(rows, key=lambda row: row.goals)
    labels = {name: [getattr(row, name) for row in rows] for name in ("agent", "context", "budget")}
    differing = [name for name, values in labels.items() if len(set(values)) > 1]
    same = [f"{name} {values[0]}" for name, values in labels.items() if len(set(values)) == 1 and values[0]]
    about = "F1, EM, success in %, intervals 95 %; TT, PT in tokens, means over n episodes"
    table = plain_table(title, "\n".join([", ".join(same), about] if same else [about]))
    table.add_column("goals", justify="right")
    for name in differing:
        table.add_column(name)
    for name in ("F1", "EM", "success", "TT", "PT", "turns", "calls", "format\nerrors", "n"):
        table.add_column(name, justify="right", min_width=11 if name in ("F1", "EM") else None)
    for row in rows:
        table.add_row(
            str(row.goals),
            *(Text(getattr(row, name)) for name in differing),
            with_interval(row.f1, row.f1_interval),
            with_interval(row.em, row.em_interval),
            number(row.success),
            number(row.total_tokens, ".0f"),
            number(row.peak_tokens, ".0f"),
            number(row.turns),
            number(row.tool_calls),
            number(row.format_errors, ".2f"),
            counted(row.episodes, row.errors),
        )
    return table


def evaluation_tables(rows: Sequence[EvaluationRow]) -> list[Table]:
    """A table per agent and budget: number of goals by context strategy; what the columns are says ``LEGEND``."""
    tables = []
    for agent, budget in dict.fromkeys((row.agent, row.budget) for row in rows):
        some = sorted((row for row in rows if (row.agent, row.budget) == (agent, budget)), key=lambda row: row.goals)
        contexts = list(dict.fromkeys(row.context for row in some))
        only = f", context {contexts[0]}" if len(contexts) == 1 and contexts[0] else ""
        table = plain_table(f"{agent}, budget {budget}{only}")
        table.add_column("goals", justify="right")
        if len(contexts) > 1:
            table.add_column("context", no_wrap=True)
        scored = any(not math.isnan(row.quality) for row in some)
        for name in ("F1", "EM", "all", "TT", "PT", "turns", *(["Q(m)"] if scored else []), "n"):
            table.add_column(name, justify="right", no_wrap=name != "n")
        last = None
        for row in some:
            if last not in (None, row.goals) and len(contexts) > 1:
                table.add_section()
            table.add_row(
                str(row.goals),
                *([row.context] if len(contexts) > 1 else []),
                with_interval(row.f1, row.f1_interval),
                number(row.em),
                number(row.success, ".0f"),
                number(row.total_tokens, ".0f"),
                number(row.peak_tokens, ".0f"),
                number(row.turns),
                *([number(row.quality, ".3f")] if scored else []),
                f"{row.episodes}" + (f" + {row.errors}e" if row.errors else ""),
            )
            last = row.goals
        tables.append(table)
    return tables


def sides_table(rows: Sequence[EvaluationRow], title: str = "Side by side") -> Table:
    """Rows of several sources under each other at each number of goals, in the order given."""
    names = [name for name in ("context", "budget") if len({getattr(row, name) for row in rows}) > 1]
    table = plain_table(title)
    table.add_column("goals", justify="right")
    for name in ("agent", *names):
        table.add_column(name)
    for name in ("F1", "EM", "all", "TT", "PT", "n"):
        table.add_column(name, justify="right", no_wrap=name != "n")
    last = None
    for row in rows:
        if last not in (None, row.goals):
            table.add_section()
        last = row.goals
        table.add_row(
            str(row.goals),
            Text(row.agent),
            *(Text(getattr(row, name)) for name in names),
            with_interval(row.f1, row.f1_interval),
            number(row.em),
            number(row.success, ".0f"),
            number(row.total_tokens, ".0f"),
            number(row.peak_tokens, ".0f"),
            f"{row.episodes}" + (f" + {row.errors}e" if row.errors else ""),
        )
    return table


def savings_table(savings: Sequence[Saving]) -> Table:
    """Tokens that one agent saved against full history, beside the bound."""
    table = plain_table(f"Tokens saved by {savings[0].row.agent} against full history")
    labels = _labels([saving.row for saving in savings])
    table.add_column("goals", justify="right")
    for name in labels:
        table.add_column(name, no_wrap=True)
    for name in ("C", "TT saved", "bound", "PT saved", "F1"):
        table.add_column(name, justify="right", no_wrap=True)
    for saving in savings:
        table.add_row(
            str(saving.row.goals),
            *(Text(getattr(saving.row, name)) for name in labels),
            number(saving.calls),
            _percent(saving.total, saving.total_interval),
            f"{100 * saving.bound:.0f}",
            _percent(saving.peak, saving.peak_interval),
            with_interval(saving.f1, saving.f1_interval, "+.1f") if saving.measured else "priced",
        )
    return table


def pairs_table(pairs: Sequence[Paired], title: str = "Differences over the same tasks") -> Table:
    """Paired differences: scores in points, costs in tokens."""
    names = ("agent", "context", "budget")
    within = [name for name in names if any(getattr(pair.row, name) != getattr(pair.reference, name) for pair in pairs)]
    across = [name for name in names if name not in within and len({getattr(pair.row, name) for pair in pairs}) > 1]
    references = [", ".join(getattr(pair.reference, name) for name in within) for pair in pairs]
    one = len(set(references)) == 1  # then it stands in the title
    title += f", budget {pairs[0].row.budget}" if "budget" not in [*within, *across] else ""
    table = plain_table(f"{title}, from {references[0]}" if one else title)
    table.add_column("goals", justify="right")
    for name in across:
        table.add_column(name)
    table.add_column("of")
    if not one:
        table.add_column("less")
    for name in ("F1", "TT", "PT"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("n", justify="right")
    for pair, reference in zip(pairs, references, strict=True):
        table.add_row(
            str(pair.row.goals),
            *(Text(getattr(pair.row, name)) for name in across),
            Text(", ".join(getattr(pair.row, name) for name in within)),
            *([] if one else [Text(reference)]),
            with_interval(pair.differences["f1"], pair.intervals["f1"], "+.1f"),
            with_interval(pair.differences["total_tokens"], pair.intervals["total_tokens"], "+.0f"),
            with_interval(pair.differences["peak_tokens"], pair.intervals["peak_tokens"], "+.0f"),
            str(pair.tasks),
        )
    return table


def csv_text(rows: Sequence[EvaluationRow]) -> str:
    """All rows with all metrics; an interval is two columns, ``.._low`` and ``.._high``; what is not known is empty.

    A name that begins as a formula does (``=``, ``+``, ``-``, ``@``) gets an apostrophe before it.
    """
    lines: list[dict[str, Any]] = []
    for row in rows:
        line: dict[str, Any] = {}
        for name, value in row.flat().items():
            if isinstance(value, list):
                stem = name.removesuffix("_interval")
                line |= {f"{stem}_low": value[0], f"{stem}_high": value[1]}
            else:
                line[name] = _no_formula(value) if isinstance(value, str) else value
        lines.append(line)
    names = list(dict.fromkeys(name for line in lines for name in line))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def markdown(table: Table) -> str:
    """A table of the terminal as Markdown, with its title and caption."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    lines = [
        _line(str(column.header).replace("\n", " ") for column in table.columns),
        _line("---:" if column.justify == "right" else "---" for column in table.columns),
        *(_line(cells) for cells in zip(*columns, strict=True)),
    ]
    caption = " ".join(str(table.caption or "").split())
    return (
        f"### {' '.join(str(table.title).split())}\n\n" + "\n".join(lines) + (f"\n\n{caption}\n" if caption else "\n")
    )


def _line(cells: Iterable[str]) -> str:
    """One line: a name with a line break, which a folder may have, would end the row."""
    return "| " + " | ".join(" ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|") for cell in cells) + " |"


def _no_formula(text: str) -> str:
    """A name that a spreadsheet would run as a formula, marked as text as OWASP advises."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _labels(keys: Sequence[RowKey]) -> list[str]:
    """The parts of the keys that differ; the context, where none does."""
    names = ("agent", "context", "budget")
    return [name for name in names if len({getattr(key, name) for key in keys}) > 1] or ["context"]


def _percent(value: float, interval: tuple[float, float]) -> str:
    return with_interval(100 * value, (100 * interval[0], 100 * interval[1]), ".0f")
