"""Does the memory reward teach memory? Arms that differ by it alone, in two regimes, over five seeds.

    python benchmarks/studies/memory_reward.py --list                    the cells, and about how long each takes
    python benchmarks/studies/memory_reward.py --shard 1/2               a part of them; stop and start it as you like
    python benchmarks/studies/memory_reward.py --only 'hard-mempo-*'     some of them
    python benchmarks/studies/memory_reward.py --only 'easy-short-0' --full --again    one whose algorithm changed
    python benchmarks/studies/memory_reward.py --table                   tables from what is there
    python benchmarks/studies/memory_reward.py --pack                    keep what is there in benchmarks/results/study
    python benchmarks/studies/memory_reward.py --document                write the tables and plots of docs/study*.md
    python benchmarks/studies/memory_reward.py --real                    SmolLM2-135M on HotpotQA instead: three cells

Each cell (a warm start, a candidate of the tuning, or an arm in a regime with a seed) leaves one JSON file in
``OUT/cells``; ``--pack`` keeps it, gzipped, beside the code. A cell that is in either place with the same settings is
skipped, so that another machine goes on from what is kept; one that was interrupted goes on from its newest checkpoint.
Shards run alone: what a cell needs and lacks, its seed's warm start, it makes itself. ``tuned`` cells wait for the
whole tuning of their arm; a shard that meets them too early says so at its end and is started once more.

Invariant: no cell is dropped; what diverged is named beside the tables, what is missing is named or counted there.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as ``mempo`` has it: threads that wait do not spin
sys.path.insert(0, str(Path(__file__).resolve().parent))

from memory_study.arms import ARMS
from memory_study.cells import SMOKE, STUDY, Cell, Scale, matrix, same_as_untuned, with_choice
from memory_study.flags import read_shard, read_threads
from memory_study.plan import minutes, shard, warm_starts
from memory_study.real import REAL, REAL_SMOKE, real_matrix, with_data
from memory_study.store import RESULTS, found_weights, pack, read_cell
from memory_study.study import OTHERS
from rich.console import Console

from mempo_env.errors import UserError, unknown_name

Reader = Callable[[Cell], dict[str, Any] | None]
"""What a cell found; None where it is not there."""

AGAIN = (
    "run the chosen cells from their beginning even if they are there, but no warm start. Needed where the code of an "
    "algorithm changed, one given as module:Class above all: cells know its name and settings, not its code. --pack "
    "replaces no result that is kept: remove its file first"
)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the study")
    parser.add_argument("--shard", type=read_shard, default=(1, 1), metavar="I/N", help="part I of N")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cells whose name fits")
    parser.add_argument("--real", action="store_true", help="SmolLM2-135M on HotpotQA instead of the closed world")
    parser.add_argument("--data", default="", help="--real: folder of HotpotQA, if it is not where the preset looks")
    parser.add_argument("--full", action="store_true", help="the further arms, too")
    parser.add_argument("--threads", type=read_threads, default=1, metavar="N", help="CPU threads of a cell")
    parser.add_argument("--smoke", action="store_true", help="everything small: it runs, and says nothing")
    parser.add_argument("--list", action="store_true", help="show the cells and run nothing")
    parser.add_argument("--again", action="store_true", help=AGAIN)
    parser.add_argument("--table", action="store_true", help="show the tables and run nothing")
    parser.add_argument("--against", default=OTHERS[0], metavar="ARM", help="--table: show differences from it, too")
    parser.add_argument("--stored", type=Path, default=RESULTS, help="folder of the results that are kept")
    parser.add_argument("--pack", action="store_true", help="keep the finished cells of --out there and run nothing")
    parser.add_argument("--document", action="store_true", help="write docs/study*.md from what is kept; run nothing")
    return parser.parse_args(argv)


def asked(arguments: argparse.Namespace) -> tuple[Scale, list[Cell]]:
    """The scale and the whole matrix that the flags speak of."""
    if not arguments.real:
        return SMOKE if arguments.smoke else STUDY, matrix(full=arguments.full)
    scale = REAL_SMOKE if arguments.smoke else REAL
    return with_data(scale, arguments.data) if arguments.data else scale, real_matrix()


def all_of(arguments: argparse.Namespace) -> list[Cell]:
    """Every cell there can be, whichever are asked for: tables and what is kept leave none out."""
    return real_matrix() if arguments.real else matrix(full=True)


def fitting(cells: Sequence[Cell], glob: str) -> list[Cell]:
    """The cells whose name fits."""
    return [cell for cell in cells if fnmatch.fnmatch(cell.name, glob)]


def none_fits(arguments: argparse.Namespace, every: Sequence[Cell]) -> UserError:
    """Why no cell is chosen, and what to do."""
    start = f"no cell fits --only '{arguments.only}'"
    if fitting(every, arguments.only):
        return UserError(f"{start} in this shard; leave --shard out")
    if further := fitting(all_of(arguments), arguments.only):
        return UserError(f"{start} in the default matrix, but {further[0].name} of --full does: add --full")
    return UserError(f"{start}; {'--list' if arguments.real else '--list --full'} shows all names")


def dev_scores(read: Reader) -> dict[str, float]:
    """Mean F1 on ``dev`` of the candidates of the tuning that are there."""
    from memory_study.measures import mean_f1

    found = {cell.name: read(cell) for cell in matrix(full=True) if cell.kind == "tune"}
    return {name: mean_f1(result["evaluations"]["after"]) for name, result in found.items() if result is not None}


def settled(cell: Cell, scores: Mapping[str, float]) -> Cell | None:
    """The cell with its settings; None where it is a tuned one and the tuning is not done."""
    return with_choice(cell, scores) if cell.kind == "tuned" else cell


def in_turn(cells: Sequence[Cell], is_running: Callable[[Cell], bool]) -> Iterator[Cell]:
    """Cells in the order in which to run them: those with known settings first, in either half running ones last."""
    for tuned in (False, True):
        late = []
        for cell in cells:
            if (cell.kind == "tuned") == tuned:
                if is_running(cell):
                    late.append(cell)
                else:
                    yield cell
        yield from late


def run(
    cells: list[Cell], arguments: argparse.Namespace, scale: Scale, console: Console, read: Reader
) -> tuple[list[str], list[str]]:
    """Runs cells, those with known settings first; a cell that fails stops no other.

    Cells that another process is at come last, so that several can share a list.

    Returns:
        Names of those that wait for a tuning that is not done, and of those that failed.
    """
    from memory_study.runner import is_running, run_cell

    waiting, failed = [], []
    for number, cell in enumerate(in_turn(cells, lambda cell: is_running(cell, arguments.out)), start=1):
        console.print(f"[{number}/{len(cells)}] {cell.name}", markup=False)
        ready = settled(cell, dev_scores(read) if cell.kind == "tuned" else {})
        if ready is None:
            waiting.append(cell.name)
        elif same_as_untuned(ready):
            console.print("    tuning chose the untuned settings", markup=False)
        else:
            try:
                again = arguments.again and cell.kind != "warm"
                result = run_cell(
                    *(ready, arguments.out, console, scale, arguments.threads),
                    stored=arguments.stored,
                    again=again,
                    anew=again,
                )
            except Exception as error:
                if isinstance(error, UserError):
                    console.print(f"    failed: {error}", markup=False, highlight=False)
                else:
                    console.print_exception()
                failed.append(cell.name)
                continue
            console.print(f"    {result['seconds']['cpu']:.0f} CPU seconds {result.get('diverged', '')}", markup=False)
    return waiting, failed


def show_list(cells: list[Cell], arguments: argparse.Namespace, scale: Scale, read: Reader, console: Console) -> None:
    """Prints the cells with their state, and how long those take that are not done, with the warm starts they need."""
    scores, left = dev_scores(read), []
    for cell in cells:
        ready = settled(cell, scores)
        if ready is None:
            state = "waits for tuning"
        elif same_as_untuned(ready):
            state = "as untuned"
        elif read(ready) is None:
            state = ""
        else:
            state = "again" if arguments.again and cell.kind != "warm" else "done"
        if state not in ("as untuned", "done"):
            left.append(cell)
        took = "" if arguments.smoke else f"{minutes(cell, scale):5.1f} min  "
        console.print(f"{cell.name:40} {took}{state}", markup=False)
    if arguments.smoke:  # the minutes were measured at full size
        console.print(f"{len(cells)} cells, {len(left)} of them not done", markup=False)
        return
    made = [warm for warm in warm_starts(left) if found_weights(arguments.out, warm, scale) is None]
    warming = sum(minutes(warm, scale) for warm in made)
    hours = (warming + sum(minutes(cell, scale) for cell in left if cell.kind != "warm")) / 60
    text = f"{len(cells)} cells, about {hours:.1f} hours of one core for the {len(left)} that are not done"
    if made:
        where = arguments.out / "runs"
        text += f", of it {warming:.0f} min for warm starts that must be made (again): {where} lacks the weights of "
        text += f"{len(made)}"
    console.print(text, markup=False)


def default_kinds() -> dict[str, str]:
    """Kinds of the cells of the default matrix, by name."""
    return {cell.name: cell.kind for cell in matrix()}


def document(stored: Path, console: Console, docs: Path | None = None) -> None:
    """Writes the pages, in ``docs`` or their own folder, and the pictures from the results that are kept."""
    from memory_study.document import DOCS, write_document
    from memory_study.study import gather

    def read(cell: Cell) -> dict[str, Any] | None:
        return read_cell(stored, cell, STUDY, stored)

    def read_real(cell: Cell) -> dict[str, Any] | None:
        return read_cell(stored / "smollm2", cell, REAL, stored / "smollm2")

    scores = dev_scores(read)
    study = gather(matrix(full=True), read, lambda cell: settled(cell, scores))
    real = gather(real_matrix(), read_real, lambda cell: cell, REAL)
    for path in write_document(study, real, default_kinds(), docs or DOCS):
        console.print(str(path), markup=False)


def keep(cells: list[Cell], arguments: argparse.Namespace, scale: Scale, read: Reader, console: Console) -> None:
    """Stores the finished cells."""
    scores = dev_scores(read)
    ready = [settled(cell, scores) for cell in cells]
    known = [cell for cell in ready if cell is not None and not same_as_untuned(cell)]
    written = pack(known, arguments.out, arguments.stored, scale)
    size = sum(path.stat().st_size for path in written) / 1e6
    console.print(f"{len(written)} cells, {size:.1f} MB: {arguments.stored}", markup=False)


def show_tables(cells: list[Cell], scale: Scale, read: Reader, console: Console, against: str) -> None:
    """Prints all tables, as Markdown; differences are from the arm ``against``, too."""
    from memory_study.estimates import LEAST_SEEDS
    from memory_study.sections import sections
    from memory_study.study import gather
    from memory_study.tables import state

    scores = dev_scores(read)
    study = gather(cells, read, lambda cell: settled(cell, scores), scale)
    for table in sections(study, tuple(dict.fromkeys((*OTHERS, against)))):
        console.print(f"\n{table.title}\n\n{table.markdown()}", markup=False, highlight=False)
        kind, _, regime = table.key.partition("-")
        if kind == "differences" and any(int(row[1]) < LEAST_SEEDS for row in table.rows):
            text = f"Fewer than {LEAST_SEEDS} seeds have no interval over seeds; the table '{regime}: F1 of each seed' "
            text += "below has the interval of each seed over its test tasks."
            console.print(f"\n{text}", markup=False, highlight=False)
    console.print("\n" + "\n".join(state(study, default_kinds())), markup=False, highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Lists, runs, or shows tables; returns the exit status: 1 where cells wait for the tuning or failed."""
    arguments, console = parse(argv), Console(soft_wrap=True)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # peft asks for it
    scale, every = asked(arguments)
    if arguments.out == Path("runs/study"):
        arguments.out = Path("runs/study" + "-smollm2" * arguments.real + "-smoke" * arguments.smoke)
    if arguments.stored == RESULTS:
        arguments.stored = arguments.out / "stored" if arguments.smoke else RESULTS / ("smollm2" * arguments.real)
    part, parts = arguments.shard
    cells = fitting(shard(every, part, parts, scale), arguments.only)

    def read(cell: Cell) -> dict[str, Any] | None:
        return read_cell(arguments.out, cell, scale, arguments.stored)

    if not cells:
        raise none_fits(arguments, every)
    if arguments.against not in ARMS:
        raise unknown_name("arm", arguments.against, ARMS)
    if arguments.against not in OTHERS and not arguments.table:
        raise UserError("--against says what the tables compare with; give --table, too")
    if arguments.list:
        show_list(cells, arguments, scale, read, console)
    elif arguments.table:
        show_tables(all_of(arguments), scale, read, console, arguments.against)
    elif arguments.pack:
        keep(all_of(arguments), arguments, scale, read, console)
    elif arguments.document:
        if arguments.real:
            raise UserError("--document writes the whole page; leave --real out")
        document(arguments.stored, console)
    else:
        waiting, failed = run(cells, arguments, scale, console, read)
        if waiting:
            wait = "these wait for the tuning of other shards; start this shard once more"
            console.print(f"{wait}: {', '.join(waiting)}", markup=False)
        if failed:
            console.print(f"these failed, see above: {', '.join(failed)}", markup=False)
        return int(bool(waiting or failed))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
