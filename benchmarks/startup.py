"""How long a user waits at the start: importing the package, the help of the command line, the first environment.

Every figure is of a fresh process, its interpreter's own start included; rows are measured in turn, round after round,
and medians are reported, by the clock and in CPU seconds. A bare interpreter and ``import gymnasium``, which
``mempo_env`` cannot do without, stand beside them.

    python benchmarks/startup.py --rounds 15 --out benchmarks/results/startup.json

Invariant: nothing is warmed up but the files' bytecode and the page cache, by one round that is not counted.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results_io import facts, parser_for, write

from mempo_env.errors import UserError

PYTHON = {
    "bare interpreter": "pass",
    "import gymnasium": "import gymnasium",
    "import mempo_env": "import mempo_env",
    "gym.make + reset": (
        "import gymnasium as gym, mempo_env; gym.make('MemPO-MultiGoal-v0', dataset='closed-world').reset(seed=0)"
    ),
}
HELP = "mempo --help"


def commands() -> dict[str, list[str]]:
    """What is started, by row.

    Raises:
        UserError: The command ``mempo`` is not installed beside the interpreter.
    """
    mempo = shutil.which("mempo", path=str(Path(sys.executable).parent))
    if mempo is None:
        raise UserError("there is no command mempo beside this interpreter; install the package: make install")
    return {name: [sys.executable, "-c", code] for name, code in PYTHON.items()} | {HELP: [mempo, "--help"]}


def once(command: Sequence[str]) -> tuple[float, float]:
    """Seconds by the clock, and CPU seconds, of a process from start to end.

    Raises:
        UserError: It failed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    assert process.stderr is not None
    with process.stderr as stream:
        said = stream.read().decode(errors="replace")
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{command[-1]!r} ended with {process.returncode}: {said.strip()[-300:]}; mend that first")
    return wall, usage.ru_utime + usage.ru_stime


def measure(rounds: int) -> dict[str, Any]:
    """Seconds of every row: median and all."""
    rows = commands()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for number in range(rounds + 1):
        for name, command in rows.items():
            seconds = once(command)
            if number:  # the first round writes bytecode and fills the page cache
                found[name].append(seconds)
    return {
        name: {
            clock: {
                "median": round(statistics.median(pair[at] for pair in pairs), 4),
                "all": [round(pair[at], 4) for pair in pairs],
            }
            for at, clock in enumerate(("wall", "cpu"))
        }
        for name, pairs in found.items()
    }


def main() -> None:
    """Parses, measures, writes."""
    parser = parser_for(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    flags = parser.parse_args()
    result = facts()
    try:
        result |= {"rounds": flags.rounds, "seconds": measure(flags.rounds)}
    except UserError as error:
        parser.error(str(error))
    write(result, flags.out)


if __name__ == "__main__":
    main()
