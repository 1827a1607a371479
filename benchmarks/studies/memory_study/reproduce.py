"""Runs a cell whose result is kept once more and says whether it came out the same; behind ``mempo reproduce``.

Invariant: nothing is read from the kept result but what is compared, and the ceilings of the warm start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from mempo_env.errors import UserError, unknown_name

from .cells import SEEDS, SMOKE, STUDY, Cell, Scale, fingerprint, matrix
from .compare import Comparison, compare_results
from .measures import mean_f1
from .plan import minutes
from .real import REAL, real_matrix, with_data
from .store import RESULTS, found_weights, read_json

SCALES = (STUDY, SMOKE, REAL)
LANGUAGE_MODEL = "smollm2/"
"""Begins the names of cells on a language model, as of the folder of their results."""
SCRIPT = "python benchmarks/studies/memory_reward.py"


def kept(stored: Path = RESULTS) -> list[str]:
    """Names of the cells whose results are kept; those on a language model as ``smollm2/NAME``."""
    paths = (path.relative_to(stored).as_posix() for path in stored.rglob("*.json.gz"))
    return sorted(path.removesuffix(".json.gz") for path in paths)


def read_kept(name: str, stored: Path = RESULTS) -> dict[str, Any]:
    """The result of a cell.

    Raises:
        UserError: There is none of that name; where the study has such a cell, the error says how to run it.
    """
    found: dict[str, Any] | None = read_json(stored / f"{name}.json.gz")
    if found is None:
        names = kept(stored)
        if not names:
            raise UserError(f"no results are kept in {stored}; run {SCRIPT}, then the same with --pack")
        if (flags := flags_of(name)) is not None:
            raise UserError(
                f"the cell {name} is one of the study's, but no result of it is kept that a rerun could be compared "
                f"with; to run it: {SCRIPT} {flags}"
            )
        raise unknown_name("cell", name, names, "mempo reproduce without a name lists all.")
    return found


def planned(name: str) -> tuple[Cell, Scale] | None:
    """The cell of the study's whole matrix with this name, as ``kept`` writes it; None where there is none."""
    cells, scale = (real_matrix(), REAL) if name.startswith(LANGUAGE_MODEL) else (matrix(full=True), STUDY)
    by_name = {cell.name: cell for cell in cells}
    cell = by_name.get(name.removeprefix(LANGUAGE_MODEL))
    return None if cell is None else (cell, scale)


def flags_of(name: str) -> str | None:
    """Flags of the study's script that run a cell; None where the matrix has no such cell.

    >>> flags_of("easy-mempo-0"), flags_of("easy-short-0"), flags_of("smollm2/warm-0"), flags_of("easy-mempo-9")
    ("--only 'easy-mempo-0'", "--full --only 'easy-short-0'", "--real --only 'warm-0'", None)
    """
    if (found := planned(name)) is None:
        return None
    cell, scale = found
    further = "--real " if scale is REAL else "" if cell in matrix() else "--full "
    before = f"; before it its tuning: --only '{cell.regime}-{cell.arm}-tune-*'" if cell.kind == "tuned" else ""
    return f"{further}--only '{cell.name}'{before}"


def cost(cell: Cell, scale: Scale, out: Path) -> str:
    """About how many minutes of one core a rerun takes: of the cell, and of its warm start where that is made again.

    Args:
        cell: The cell.
        scale: How much.
        out: Folder of the rerun; a warm start whose weights are there is not made again.
    """
    text = f"{minutes(cell, scale):.0f} min"
    if cell.kind != "warm" and found_weights(out, cell.warm, scale) is None:
        text += f", and {minutes(cell.warm, scale):.0f} min for {cell.warm.name}, which is made again"
    return text


def listing(out: Path, stored: Path = RESULTS) -> list[str]:
    """The kept cells with what a rerun of each takes.

    Args:
        out: Folder of the rerun.
        stored: Where results are kept.

    Returns:
        Lines to be shown; none where nothing is kept.
    """
    lines = []
    for name in kept(stored):
        known = planned(name)
        lines.append(name if known is None else f"{name:32} {cost(*known, (out / name).parent)}")
    if lines:
        lines.append("About so many minutes of one core; weights are not kept, so a warm start is made once per --out.")
    return lines


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
    folder, there = (stored / name).parent, (out / name).parent
    _say(f"{name}: about {cost(cell, scale, there)}", console)
    new = run_cell(cell, there, console, scale, threads, stored=folder, again=True)
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
        _say(text, console)

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


def _say(text: str, console: Console) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
