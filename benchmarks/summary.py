"""Makes ``results/summary.json`` and the tables in the documents from the stored results.

    python benchmarks/summary.py           # writes summary.json, and the tables in benchmarks/README.md and README.md
    python benchmarks/summary.py --check   # changes nothing; fails where one of them is not what the results give

A row is ``measure, ours, anchor, ratio, goal, met, machine``: the figure, what it is set against, their ratio, what
was to be reached, whether it was, and what it was measured on. Where a result was never stored the row says "not
measured". A row that misses its goal must be named, with the reason and what was tried, in the section "What stops
short" of benchmarks/README.md.

Invariant: no figure stands here; each is read from a file of ``results/``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import in_words
from measures import MEASURES, Measure
from results_io import RESULTS, ROOT, read

from mempo_env.errors import UserError

SUMMARY = RESULTS / "summary.json"
LONG, SHORT = ROOT / "benchmarks" / "README.md", ROOT / "README.md"
NOT_MEASURED = "not measured"
REASONS = "## What stops short"
Row = dict[str, Any]


def make_rows(results: Mapping[str, dict[str, Any] | None], measures: Sequence[Measure] = MEASURES) -> list[Row]:
    """The rows of ``summary.json``.

    Args:
        results: Stored results by file name; None, or not there: never measured.
        measures: What is read from them.

    Raises:
        UserError: A stored result lacks what a measure reads.
    """
    rows = []
    for measure in measures:
        result = results.get(measure.file)
        row: Row = {"measure": measure.name, "ours": None, "anchor": None, "ratio": None}
        row |= {"goal": str(measure.goal or ""), "met": None, "machine": NOT_MEASURED}
        if result is not None:
            try:
                row["ours"], row["anchor"], row["ratio"] = measure.read(result)
            except (KeyError, IndexError, TypeError, StopIteration) as error:
                raise UserError(
                    f"results/{measure.file} does not hold what '{measure.name}' reads ({error!r}); measure it again, "
                    "or mend benchmarks/measures.py"
                ) from error
            if row["anchor"] is not None and row["ratio"] is None:
                row["ratio"] = row["ours"] / row["anchor"]
            for name in ("ours", "anchor", "ratio"):
                row[name] = row[name] if row[name] is None else round(row[name], 4)
            if measure.goal is not None:
                row["met"] = measure.goal.met_by(row["ours"], row["ratio"])
            row["machine"] = in_words(result)
        rows.append(row)
    return rows


def as_json(rows: Sequence[Row]) -> str:
    """The list, one row a line."""
    return "[\n" + ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in rows) + "\n]\n"


def number(value: float | None) -> str:
    """A figure as tables show it.

    >>> [number(value) for value in (52240.1, 12.345, 0.98765, 0.00123, 4, None)]
    ['52,240', '12.3', '0.988', '0.00123', '4', '']
    """
    if value is None:
        return ""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _cells(row: Row) -> list[str]:
    ours = NOT_MEASURED if row["machine"] == NOT_MEASURED else number(row["ours"])
    met = {True: "yes", False: "**no**", None: ""}[row["met"]]
    return [row["measure"], ours, number(row["anchor"]), number(row["ratio"]), row["goal"], met]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def long_table(rows: Sequence[Row]) -> str:
    """All rows, with a letter for each machine, and an empty column for a large GPU."""
    machines = list(dict.fromkeys(row["machine"] for row in rows if row["machine"] != NOT_MEASURED))
    letters = {machine: chr(ord("A") + place) for place, machine in enumerate(machines)}
    head = ["measure", "ours", "anchor", "ratio", "goal", "met", "machine", "large GPU"]
    body = [[*_cells(row), letters.get(row["machine"], ""), ""] for row in rows]
    legend = [f"Machine {letter}: {machine}." for machine, letter in letters.items()]
    legend.append("The column for a large GPU is empty because nothing was measured on one.")
    return _table(head, body) + "\n" + "\n".join(legend) + "\n"


def short_table(rows: Sequence[Row], measures: Sequence[Measure] = MEASURES) -> str:
    """The rows that have a goal and stand for their kind."""
    shown = {measure.name for measure in measures if measure.short}
    body = [_cells(row) for row in rows if row["measure"] in shown]
    return _table(["measure", "ours", "anchor", "ratio", "goal", "met"], body)


def tokens_table(result: dict[str, Any] | None) -> str:
    """Tokens by goals with memory and history, in SmolLM2's tokens, from ``tokens_by_goals.json``."""
    if result is None:
        return f"{NOT_MEASURED}\n"
    goals = sorted({row["goals"] for row in result["rows"]})
    named = ("world", "instructions", "context")
    head = [*named, *(f"{n} goals" for n in goals), "TT 16/4", "PT' 16/4", "k", "R^2", "off"]
    worded = {"full": "full", "terse": "one line", "closed-world": "closed world", "hotpotqa": "HotpotQA"}
    body = []
    for grown in (each for each in result["growth"] if each["counter"] == "smollm2"):
        where = {name: grown[name] for name in ("counter", *named)}
        rows = {row["goals"]: row for row in result["rows"] if where.items() <= row.items()}
        fit = grown["total"]
        cells = [f"{rows[n]['total']:,.0f} / {rows[n]['peak_less_task']:,.0f} / {rows[n]['f1']:.0f}" for n in goals]
        ratios = [f"{grown[name]:.2f}" for name in ("total_16_by_4", "peak_less_task_16_by_4")]
        last = [*ratios, f"{fit['exponent']:.2f}", f"{fit['r2']:.2f}", f"{fit['residual']:.0%}"]
        body.append([worded[grown["world"]], worded[grown["instructions"]], grown["context"], *cells, *last])
    return _table(head, body)


def with_table(document: str, table: str, name: str, marker: str = "summary") -> str:
    """A document with a table between its markers.

    Args:
        document: Its text.
        table: The table.
        name: How an error calls the document.
        marker: Which markers.

    Raises:
        UserError: It has no such markers, or several.
    """
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise UserError(f"{name} must have one line '{begin}' and after it one line '{end}'; put them back")
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n{table}{end}{rest.partition(end)[2]}"


def reason_complaints(rows: Sequence[Row], document: str) -> list[str]:
    """Rows that miss their goal without a reason in the document, and reasons for rows that do not."""
    section = document.partition(f"{REASONS}\n")[2].split("\n## ")[0]
    given = re.findall(r"^- \*\*(.+?)\*\*: \S", section, re.MULTILINE)
    missed = [row["measure"] for row in rows if row["met"] is False]
    return [f"'{name}' misses its goal and '{REASONS}' does not say why" for name in missed if name not in given] + [
        f"'{REASONS}' gives a reason for '{name}', which is no row that misses its goal"
        for name in given
        if name not in missed
    ]


def stored(folder: Path = RESULTS) -> dict[str, dict[str, Any] | None]:
    """The results that measures read, by file name."""
    names = dict.fromkeys(measure.file for measure in MEASURES)
    return {name: read(folder / name) if (folder / name).exists() else None for name in names}


def wanted(results: Mapping[str, dict[str, Any] | None]) -> dict[Path, str]:
    """What each file should hold."""
    rows = make_rows(results)
    names = {path: path.relative_to(ROOT).as_posix() for path in (LONG, SHORT)}
    long = with_table(LONG.read_text(encoding="utf-8"), long_table(rows), names[LONG])
    long = with_table(long, tokens_table(results["tokens_by_goals.json"]), names[LONG], "tokens")
    short = with_table(SHORT.read_text(encoding="utf-8"), short_table(rows), names[SHORT])
    return {SUMMARY: as_json(rows), LONG: long, SHORT: short}


def complaints() -> list[str]:
    """What is not as the stored results give it."""
    results = stored()
    stale = [
        f"{path.relative_to(ROOT).as_posix()} is not what the stored results give; run python benchmarks/summary.py"
        for path, text in wanted(results).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    return stale + reason_complaints(make_rows(results), LONG.read_text(encoding="utf-8"))


def main() -> None:
    """Writes, or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where something is stale")
    flags = parser.parse_args()
    try:
        if not flags.check:
            for path, text in wanted(stored()).items():
                path.write_text(text, encoding="utf-8")
        found = complaints()
    except UserError as error:
        parser.error(str(error))
    sys.stderr.write("".join(f"{line}\n" for line in found))
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
