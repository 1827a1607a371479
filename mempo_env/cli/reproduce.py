"""``mempo reproduce CELL``: runs a cell of the study of the memory reward again, beside the result that is kept.

The study and its results are in the folder ``benchmarks/`` of a checkout, which is not installed.

Invariant: kept results are read only; the rerun goes into ``--out`` and goes on there if it was interrupted.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mempo_env.cli.flags import parse_flags
from mempo_env.errors import UserError

STUDIES = Path("benchmarks") / "studies"
REPRODUCE = Path("memory_study") / "reproduce.py"


@dataclass(frozen=True)
class ReproduceFlags:
    """Flags of ``mempo reproduce``.

    Attributes:
        cell: Name of a cell, such as hard-mempo-0, warm-0 or smollm2/hotpotqa-mempo-0; without one all
            that are kept are listed, with the minutes that a rerun takes.
        out: Folder of the rerun; an interrupted one goes on.
        stored: Folder of the kept results; by default benchmarks/results/study of the checkout.
        data: Folder of HotpotQA, for cells on a language model; by default where the preset looks.
        threads: CPU threads; results are equal to the last digit at 1 only, as the kept ones were made.
    """

    cell: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CELL")] = ""
    out: str = "runs/reproduce"
    stored: str = ""
    data: str = ""
    threads: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UserError(f"threads={self.threads} must be at least 1")


def run(argv: Sequence[str]) -> None:
    """Runs the cell and prints the comparison.

    Args:
        argv: Flags.

    Raises:
        UserError: There is no checkout, or no such cell.
        SystemExit: With code 1 where the result is different: outside the intervals.
    """
    flags = parse_flags(
        ReproduceFlags,
        argv,
        command="mempo reproduce",
        description="Run a cell of the study of the memory reward (docs/study.md) again and compare it with the kept "
        "result: equal to the last digit where versions and processor are the same, else within the intervals.\n\n"
        "On one core a cell takes about 2 to 8 minutes, with full history 3 to 16, and its warm start, which is made "
        "again once per seed and --out since weights are not kept, 14 minutes, with full history 18; on a language "
        "model a cell takes 76 minutes and its warm start 45.",
    )
    from rich.console import Console

    study = load_study((Path(__file__).resolve().parents[2], Path.cwd()))
    stored, console = Path(flags.stored) if flags.stored else study.RESULTS, Console()
    if not flags.cell:
        lines = study.listing(Path(flags.out), stored)
        text = "\n".join(lines) if lines else f"no results are kept in {stored}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    study.read_kept(flags.cell, stored)  # a wrong name is told before anything heavy is loaded
    from mempo_env.cli.train import require_train_extra

    require_train_extra()
    found = study.reproduce(flags.cell, Path(flags.out), console, stored=stored, threads=flags.threads, data=flags.data)
    if found.verdict == "different":
        raise SystemExit(1)


def load_study(roots: Iterable[Path]) -> Any:
    """The study's module from the first of some folders that holds it.

    Args:
        roots: Folders that may be a checkout.

    Raises:
        UserError: None of them is.
    """
    for root in roots:
        if (root / STUDIES / REPRODUCE).is_file():
            place = str(root / STUDIES)
            if place not in sys.path:
                sys.path.insert(0, place)
            return importlib.import_module("memory_study.reproduce")
    raise UserError(
        "mempo reproduce needs the folder benchmarks/ of a checkout, which is not installed: clone the repository, "
        "run make install there, and call .venv/bin/mempo reproduce in its folder"
    )
