"""``mempo compare A B ..``: runs or evaluations side by side, with differences over the same tasks.

Invariant: it reads and plays nothing; ``--out`` is a file that does not exist yet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mempo_env.cli.flags import parse_flags
from mempo_env.cli.train import require_train_extra
from mempo_env.errors import UserError


@dataclass(frozen=True)
class CompareFlags:
    """Flags of ``mempo compare``.

    Attributes:
        folders: Run folders, or folders that ``mempo eval --out`` made; differences are from the first.
        evaluations: Of run folders, which evaluations: ``before``, ``after``, ``imitation``, ``expert``.
        out: File to write, ending in ``.json`` or ``.md``; by default nothing is written.
    """

    folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="A")] = ()
    evaluations: tuple[str, ...] = ("after",)
    out: str = ""

    def __post_init__(self) -> None:
        if self.out and Path(self.out).suffix not in (".json", ".md"):
            raise UserError(f"--out {self.out}: end its name in .json or .md")


def run(argv: Sequence[str]) -> None:
    """Prints the tables.

    Args:
        argv: Flags.

    Raises:
        UserError: A flag, or a folder that it names, cannot be used.
    """
    flags = parse_flags(
        CompareFlags,
        argv,
        command="mempo compare",
        description="Put runs or evaluations side by side: A B [C ..], differences from A over the same tasks.",
    )
    if not flags.folders:
        raise UserError("mempo compare needs A and B: run folders, or folders of mempo eval --out")
    out = Path(flags.out) if flags.out else None
    if out is not None and out.exists():
        raise UserError(f"{out} exists; choose another --out")
    require_train_extra()
    from rich.console import Console

    from mempo_env.agents.eval_tables import LEGEND, PAIRS_LEGEND, markdown, pairs_table, sides_table
    from mempo_env.algos.compare import compare

    console = Console()
    found = compare([Path(folder) for folder in flags.folders], flags.evaluations)
    tables = [sides_table([side.row for side in found.sides])]
    tables += [pairs_table(found.pairs)] if found.pairs else []
    lines = [LEGEND, *([PAIRS_LEGEND] if found.pairs else []), *_lines(found)]
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False)
    if out is not None:
        data: dict[str, Any] = {
            "rows": [side.row.flat() for side in found.sides],
            "pairs": [pair.flat() for pair in found.pairs],
            "alone": [vars(key) for key in found.alone],
        }
        whole = json.dumps(data, indent=2, allow_nan=False) + "\n"
        text = whole if out.suffix == ".json" else "\n\n".join([*map(markdown, tables), *lines]) + "\n"
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{out} cannot be written: {error.strerror or error}; choose another --out") from error
        console.print(f"written to {out}", soft_wrap=True, markup=False, highlight=False)


def _lines(found: Any) -> list[str]:
    """What was left out of the differences, in words."""
    lines = []
    for pair in found.pairs:
        where = f"{pair.row.agent}, {pair.row.goals} goals"
        if pair.other_tasks:
            lines.append(f"{where}: {pair.other_tasks} seeds gave other tasks than in the first; these are not paired")
        if pair.left_out:
            lines.append(f"{where}: {pair.left_out} tasks were played, or ended without a fault, on one side only")
    lines += [
        f"{key.agent}, {key.context}, {key.budget}, {key.goals} goals: no such row in the first" for key in found.alone
    ]
    return lines
