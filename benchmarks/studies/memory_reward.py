"""Does the memory reward teach memory? Arms that differ by it alone, in two regimes, over five seeds.

    python benchmarks/studies/memory_reward.py --list                    the cells, and about how long each takes
    python benchmarks/studies/memory_reward.py --shard 1/2               a part of them; stop and start it as you like
    python benchmarks/studies/memory_reward.py --only 'hard-mempo-*'     some of them
    python benchmarks/studies/memory_reward.py --table                   tables from what is there

Each cell (a warm start, a candidate of the tuning, or an arm in a regime with a seed) leaves one JSON file in
``OUT/cells``. A cell that is there with the same settings is skipped; one that was interrupted goes on from its newest
checkpoint. Shards run alone: what a cell needs and lacks, its seed's warm start, it makes itself. ``tuned`` cells wait
for the whole tuning of their arm; a shard that meets them too early says so at its end and is started once more.

Invariant: no cell is dropped; what failed or is missing is named in every table.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as ``mempo`` has it: threads that wait do not spin
sys.path.insert(0, str(Path(__file__).resolve().parent))

from memory_study.cells import LEARNING_RATE, SMOKE, STUDY, WEIGHT, Cell, Scale, matrix, with_choice
from memory_study.plan import minutes, shard
from rich.console import Console

from mempo_env.errors import UserError


def read_shard(text: str) -> tuple[int, int]:
    """``I/N`` as two numbers.

    Raises:
        argparse.ArgumentTypeError: It is not 1/N to N/N.
    """
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"'{text}' is no shard; give I/N, such as 1/2")
    return int(part), int(parts)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the study")
    parser.add_argument("--shard", type=read_shard, default=(1, 1), metavar="I/N", help="part I of N")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cells whose name fits")
    parser.add_argument("--full", action="store_true", help="the further arms, too")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a cell")
    parser.add_argument("--smoke", action="store_true", help="everything small: minutes, and no result")
    parser.add_argument("--list", action="store_true", help="show the cells and run nothing")
    parser.add_argument("--table", action="store_true", help="show the tables and run nothing")
    return parser.parse_args(argv)


def dev_scores(out: Path, scale: Scale) -> dict[str, float]:
    """Mean F1 on ``dev`` of the candidates of the tuning that are there."""
    from memory_study.runner import read_cell
    from memory_study.tables import mean_f1

    tried = [cell for cell in matrix(full=True) if cell.kind == "tune"]
    found = {cell.name: read_cell(out, cell, scale) for cell in tried}
    return {name: mean_f1(result["evaluations"]["after"]) for name, result in found.items() if result is not None}


def settled(cell: Cell, out: Path, scale: Scale) -> Cell | None:
    """The cell with its settings; None where it is a tuned one and the tuning is not done."""
    return with_choice(cell, dev_scores(out, scale)) if cell.kind == "tuned" else cell


def same_as_untuned(cell: Cell) -> bool:
    """Whether tuning chose what an arm has anyway, so that its ``train`` cell is the result."""
    return cell.kind == "tuned" and (cell.lr, cell.weight) == (LEARNING_RATE, WEIGHT)


def run(
    cells: list[Cell], arguments: argparse.Namespace, scale: Scale, console: Console
) -> tuple[list[str], list[str]]:
    """Runs cells, those with known settings first; a cell that fails stops no other.

    Returns:
        Names of those that wait for a tuning that is not done, and of those that failed.
    """
    from memory_study.runner import run_cell

    waiting, failed = [], []
    for number, cell in enumerate(sorted(cells, key=lambda cell: cell.kind == "tuned"), start=1):
        console.print(f"[{number}/{len(cells)}] {cell.name}", markup=False)
        ready = settled(cell, arguments.out, scale)
        if ready is None:
            waiting.append(cell.name)
        elif same_as_untuned(ready):
            console.print("    tuning chose the untuned settings", markup=False)
        else:
            try:
                result = run_cell(ready, arguments.out, console, scale, arguments.threads)
            except Exception:
                console.print_exception()
                failed.append(cell.name)
                continue
            console.print(f"    {result['seconds']['cpu']:.0f} CPU seconds {result.get('diverged', '')}", markup=False)
    return waiting, failed


def main(argv: list[str] | None = None) -> int:
    """Lists, runs, or shows tables; returns the exit status: 1 where cells wait for the tuning or failed."""
    arguments, console = parse(argv), Console(soft_wrap=True)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # peft asks for it
    scale = SMOKE if arguments.smoke else STUDY
    if arguments.smoke and arguments.out == Path("runs/study"):
        arguments.out = Path("runs/study-smoke")
    every = matrix(full=arguments.full)
    cells = [cell for cell in shard(every, *arguments.shard) if fnmatch.fnmatch(cell.name, arguments.only)]
    if not cells:
        raise UserError(f"no cell fits --only '{arguments.only}' in this shard; see --list")
    if arguments.list:
        from memory_study.runner import read_cell

        for cell in cells:
            ready = settled(cell, arguments.out, scale)
            if ready is not None and same_as_untuned(ready):
                state = "as untuned"
            else:
                there = ready is not None and read_cell(arguments.out, ready, scale) is not None
                state = "done" if there else "" if ready is not None else "waits for tuning"
            console.print(f"{cell.name:40} {minutes(cell):5.1f} min  {state}", markup=False)
        console.print(f"{len(cells)} cells, about {sum(map(minutes, cells)) / 60:.1f} hours of one core", markup=False)
        return 0
    if arguments.table:
        from memory_study.tables import show

        show(every, arguments.out, scale, console, lambda cell: settled(cell, arguments.out, scale))
        return 0
    waiting, failed = run(cells, arguments, scale, console)
    if waiting:
        wait = "these wait for the tuning of other shards; start this shard once more"
        console.print(f"{wait}: {', '.join(waiting)}", markup=False)
    if failed:
        console.print(f"these failed, see above: {', '.join(failed)}", markup=False)
    return int(bool(waiting or failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
