"""The quick benchmarks, against the stored ones: what ``make bench`` runs.

    python benchmarks/quick.py                 # measures all, compares with results/quick.json
    python benchmarks/quick.py --only startup  # only some of: learner rollout shares startup suites
    python benchmarks/quick.py --store         # writes what was measured to results/quick.json

Each part is a script of its own in a process of its own, in its quick form. What is compared are ratios to an anchor
that is measured in the same minutes on the same machine (TRL, ``generate``, a GRPO step, ``import gymnasium``, a fixed
piece of plain Python), never seconds: machines differ, and what else a machine does meets both. A ratio may be worse
than the stored one by its tolerance. A part with one that is worse is run once more, and of each ratio the better of
the two counts: what else a machine does makes a ratio worse at times, what was broken makes it worse both times. One
that is better by more than its tolerance is told, so that it can be stored.

Invariant: a part that fails is a line of the table and exit code 1; it is never left out, and never stored.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results_io import RESULTS, ROOT, as_text, facts, parser_for, read
from rich.console import Console
from rich.table import Table

from mempo_env.errors import UserError

STORED = RESULTS / "quick.json"
Ratios = dict[str, float]


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        command: Arguments of the interpreter; ``{out}`` becomes the file it writes.
        ratios: Reads the ratios from that file.
        better: Whether ``more`` or ``less`` is better.
        tolerance: By which share a ratio may be worse than the stored one.
    """

    command: tuple[str, ...]
    ratios: Callable[[dict[str, Any]], Ratios]
    better: str
    tolerance: float


def _learner(result: dict[str, Any]) -> Ratios:
    return {"learner step: tokens/s against TRL": result["speed_ratio"]}


def _rollout(result: dict[str, Any]) -> Ratios:
    return {"rollout: tokens/s against generate": result["ratio"]}


def _shares(result: dict[str, Any]) -> Ratios:
    against = {arm: found["cpu"] for arm, found in result["step_against_grpo"].items() if arm != "grpo"}
    shares = {arm: result["scoring_share"][arm]["cpu"] for arm in against}
    return {f"step of {arm}: CPU against GRPO": ratio for arm, ratio in against.items()} | {
        f"Q(m) of {arm}: share of the step's CPU": share for arm, share in shares.items()
    }


def _startup(result: dict[str, Any]) -> Ratios:
    least = {name: min(found["cpu"]["all"]) for name, found in result["seconds"].items()}
    anchor = least["import gymnasium"]
    return {
        f"start, {name}: CPU against import gymnasium": least[name] / anchor
        for name in ("import mempo_env", "mempo --help", "gym.make + reset")
    }


def _suites(result: dict[str, Any]) -> Ratios:
    return {
        f"{bench['name']}: CPU against the yardstick": bench["stats"]["min"] / bench["extra_info"]["yardstick_s"]
        for bench in result["benchmarks"]
    }


_PYTEST = (
    *("-m", "pytest", "-q", "benchmarks", "--benchmark-enable", "--benchmark-only", "--benchmark-json={out}"),
    *("--benchmark-max-time=0.3", "--benchmark-min-rounds=5", "--benchmark-timer=time.process_time"),
    *("-p", "no:cacheprovider"),
)
PARTS = {
    "learner": Part(("benchmarks/learner_step.py", "--quick", "--out", "{out}"), _learner, "more", 0.2),
    "rollout": Part(("benchmarks/rollout_speed.py", "--quick", "--out", "{out}"), _rollout, "more", 0.2),
    "shares": Part(("benchmarks/step_shares.py", "--quick", "--threads", "1", "--out", "{out}"), _shares, "less", 0.3),
    "startup": Part(("benchmarks/startup.py", "--rounds", "5", "--out", "{out}"), _startup, "less", 0.25),
    "suites": Part(_PYTEST, _suites, "less", 0.5),
}
"""The tolerances are ours: above what the ratios moved by between repetitions on a machine that was busy otherwise
(benchmarks/README.md)."""


@dataclass(frozen=True)
class Line:
    """A ratio beside the stored one; ``verdict`` is ``same``, ``better``, ``worse``, ``new`` or ``failed: why``."""

    part: str
    name: str
    now: float | None
    before: float | None
    verdict: str

    @property
    def bad(self) -> bool:
        """Whether something is to be done about it."""
        return self.verdict == "worse" or self.verdict.startswith("failed")


def verdict(now: float, before: float | None, better: str, tolerance: float) -> str:
    """Where a ratio stands to the stored one.

    >>> [verdict(now, 2.0, "more", 0.2) for now in (1.7, 1.6, 2.3, 2.5)]
    ['same', 'worse', 'same', 'better']
    >>> [verdict(now, 2.0, "less", 0.2) for now in (2.3, 2.5, 1.7, 1.6)], verdict(1.0, None, "less", 0.2)
    (['same', 'worse', 'same', 'better'], 'new')
    """
    if before is None:
        return "new"
    gain = now / before if better == "more" else before / now  # above 1: better
    if gain < 1 / (1 + tolerance):
        return "worse"
    return "better" if gain > 1 + tolerance else "same"


def compare(found: Mapping[str, Ratios | str], stored: Mapping[str, Ratios], parts: Mapping[str, Part]) -> list[Line]:
    """All lines of the table.

    Args:
        found: By part its ratios, or why there are none.
        stored: The stored ratios by part.
        parts: With tolerances. A stored ratio of a part that was run and no longer gives it has failed.
    """
    lines = []
    for name, ratios in found.items():
        before, part = stored.get(name, {}), parts[name]
        if isinstance(ratios, str):
            lines.append(Line(name, name, None, None, f"failed: {ratios}"))
            continue
        for ratio, now in ratios.items():
            was = before.get(ratio)
            lines.append(Line(name, ratio, now, was, verdict(now, was, part.better, part.tolerance)))
        lines += [
            Line(name, ratio, None, was, "failed: no longer measured")
            for ratio, was in before.items()
            if ratio not in ratios
        ]
    return lines


def run(part: Part, python: str = sys.executable) -> Ratios | str:
    """Runs a part; its ratios, or in a few words why there are none."""
    with tempfile.TemporaryDirectory(prefix="quick-") as folder:
        out = Path(folder) / "out.json"
        command = [python, *(word.replace("{out}", str(out)) for word in part.command)]
        # As the command line does (mempo_env/cli): waiting threads must not spin away the CPU time that is measured.
        quiet = {"GOMP_SPINCOUNT": "2000"} | os.environ
        done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"exit code {done.returncode}, {_last_words(done.stdout + done.stderr)}"
        try:
            return part.ratios(read(out))
        except UserError as error:
            return str(error)
        except (KeyError, TypeError) as error:
            return f"its result lacks {error}"


def _last_words(text: str) -> str:
    """The last line that names an error, else the last one, cut short."""
    said = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in said if re.search(r"error|FAILED", line, re.IGNORECASE)]
    return (named or said or ["without a word"])[-1][:160]


def measured(part: Part, stored: Ratios) -> Ratios | str:
    """The ratios of a part; where one is worse than stored beyond its tolerance, the better ones of two runs."""
    found = run(part)
    if isinstance(found, str):
        return found
    if all(verdict(now, stored.get(name), part.better, part.tolerance) != "worse" for name, now in found.items()):
        return found
    again = run(part)
    if isinstance(again, str):
        return again
    best = max if part.better == "more" else min
    return {name: best(now, again.get(name, now)) for name, now in found.items()}


def table(lines: Sequence[Line], parts: Mapping[str, Part], seconds: Mapping[str, float]) -> Table:
    """The lines for a terminal."""
    shown = Table(title=f"Ratios, {sum(seconds.values()):.0f} s by the clock", title_justify="left")
    for head in ("ratio", "now", "stored", "better", "may be worse by", "verdict"):
        shown.add_column(head, overflow="fold")
    colours = {"better": "green", "same": "", "new": "cyan"}
    for line in lines:
        part, colour = parts[line.part], colours.get(line.verdict, "red")
        figures = ("" if value is None else f"{value:.3g}" for value in (line.now, line.before))
        shown.add_row(line.name, *figures, part.better, f"{part.tolerance:.0%}", line.verdict, style=colour)
    return shown


def what_next(lines: Sequence[Line]) -> list[str]:
    """What to do about the lines, a sentence each."""
    again = " ".join(dict.fromkeys(line.part for line in lines if line.bad))
    said = []
    if any(line.verdict == "worse" for line in lines):
        said.append(
            f"A ratio is worse by more than its tolerance. Run it again: python benchmarks/quick.py --only {again}. If "
            "it stays, find the change that did it (git bisect); where it is meant, store the new one with --store."
        )
    if any(line.verdict.startswith("failed") for line in lines):
        said.append(f"A part failed. Run the script itself to see why; it is one of: {again}.")
    if any(line.verdict in ("new", "better") for line in lines):
        said.append("Ratios that are new, or better by more than that, are kept by: python benchmarks/quick.py --store")
    return said


def main() -> None:
    """Runs, compares, tells, and stores where asked."""
    parser = parser_for(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--store", action="store_true", help=f"rewrite {STORED.relative_to(ROOT).as_posix()}")
    flags = parser.parse_args()
    console, record = Console(), facts()
    stored = read(STORED)["ratios"] if STORED.exists() else {}
    if not console.is_terminal:
        console = Console(width=140)  # a log has no width of its own
    found: dict[str, Ratios | str] = {}
    seconds: dict[str, float] = {}
    for name in flags.only:
        console.print(f"{name} ..", highlight=False)
        begun = time.perf_counter()
        found[name] = measured(PARTS[name], stored.get(name, {}))
        seconds[name] = time.perf_counter() - begun
    lines = compare(found, stored, PARTS)
    console.print(table(lines, PARTS, seconds))
    for sentence in what_next(lines):
        console.print(sentence, highlight=False)
    good = {
        name: {key: round(value, 4) for key, value in r.items()} for name, r in found.items() if isinstance(r, dict)
    }
    record |= {
        "tolerances": {name: part.tolerance for name, part in PARTS.items()},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "ratios": stored | good,  # what was not run stays as it was
    }
    for path in [path for path in (flags.out, STORED if flags.store else None) if path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_text(record), encoding="utf-8")
    failed = any(line.verdict.startswith("failed: ") for line in lines)
    raise SystemExit(1 if failed or (not flags.store and any(line.bad for line in lines)) else 0)


if __name__ == "__main__":
    main()
