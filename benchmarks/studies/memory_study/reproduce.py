"""Runs a cell whose result is kept once more and says whether it came out the same; behind ``mempo reproduce``.

Invariant: nothing is read from the kept result but what is compared, and the ceilings of the warm start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from mempo_env.errors import UserError, unknown_name

from .cells import SEEDS, SMOKE, STUDY, Cell, Scale, fingerprint
from .compare import Comparison, compare_results
from .measures import mean_f1
from .real import REAL, with_data
from .store import RESULTS, read_json

SCALES = (STUDY, SMOKE, REAL)


def kept(stored: Path = RESULTS) -> list[str]:
    """Names of the cells whose results are kept; those on a language model as ``smollm2/NAME``."""
    paths = (path.relative_to(stored).as_posix() for path in stored.rglob("*.json.gz"))
    return sorted(path.removesuffix(".json.gz") for path in paths)


def read_kept(name: str, stored: Path = RESULTS) -> dict[str, Any]:
    """The result of a cell.

    Raises:
        UserError: There is none of that name.
    """
    found: dict[str, Any] | None = read_json(stored / f"{name}.json.gz")
    if found is None:
        names = kept(stored)
        if not names:
            raise UserError(f"no results are kept in {stored}; run benchmarks/studies/memory_reward.py, then --pack")
        raise unknown_name("cell", name, names, "mempo reproduce without a name lists all.")
    return found


def cell_of(found: dict[str, Any], scales: tuple[Scale, ...] = SCALES) -> tuple[Cell, Scale]:
    """The cell that a result is of.

    Raises:
        UserError: It was made with other settings than this version has.
    """
    fields = {name: value for name, value in found["cell"].items() if name != "name"}
    cell = Cell(**fields)
    for scale in scales:
        if (not cell.regime or cell.regime in scale.regimes) and fingerprint(cell, scale) == found["fingerprint"]:
            return cell, scale
    raise UserError(
        f"the kept result of {cell.name} was made with other settings than this version has; check out the commit that "
        "stored it (git log -- benchmarks/results/study)"
    )


def reproduce(
    name: str,
    out: Path,
    console: Console,
    *,
    stored: Path = RESULTS,
    threads: int = 1,
    scales: tuple[Scale, ...] = SCALES,
    data: str = "",
) -> Comparison:
    """Runs a cell again and compares.

    Args:
        name: Of the cell.
        out: Folder of the rerun; one that was interrupted goes on.
        console: Where progress and the outcome are shown.
        stored: Where results are kept.
        threads: CPU threads.
        scales: What the kept result may have been made with.
        data: Folder of the data set of a cell on a language model, if it is not where the preset looks.

    Returns:
        The comparison.
    """
    from .runner import run_cell

    old = read_kept(name, stored)
    cell, scale = cell_of(old, scales)
    if data:
        scale = with_data(scale, data)
    folder = (stored / name).parent
    new = run_cell(cell, (out / name).parent, console, scale, threads, stored=folder, again=True)
    others = []
    if cell.kind != "warm":
        seeds = (name.removesuffix(f"-{cell.seed}") + f"-{seed}" for seed in SEEDS if seed != cell.seed)
        found = (read_json(stored / f"{other}.json.gz") for other in seeds)
        others = [one for one in found if one is not None]
    comparison = compare_results(old, new, others)
    show(name, old, new, comparison, console)
    return comparison


def show(name: str, old: dict[str, Any], new: dict[str, Any], found: Comparison, console: Console) -> None:
    """Prints what was found."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for evaluation, by_goals in found.differences.items():
        before, after = (mean_f1(one["evaluations"][evaluation]) for one in (old, new))
        say(f"{evaluation}: mean F1 {before:.2f} kept, {after:.2f} now")
        for goals, estimate in by_goals.items():
            say(f"  {goals:2} goals: {estimate.text(2, sign=True)} points, paired over {estimate.n} tasks")
    if found.versions:
        say("other versions: " + ", ".join(f"{k} {a} -> {b}" for k, (a, b) in found.versions.items()))
    if found.seeds is not None:
        say(f"one more seed of this arm would have a mean F1 of {found.seeds[0]:.1f} to {found.seeds[1]:.1f}")
    if found.unequal:
        shown = ", ".join(found.unequal[:6]) + (" .." if len(found.unequal) > 6 else "")
        say(f"{len(found.unequal)} columns are not equal: {shown}")
    words = {
        "equal": "equal to the last digit",
        "alike": "not equal, but within the intervals",
        "different": "different: outside the intervals",
    }
    say(f"{name}: {words[found.verdict]}")
