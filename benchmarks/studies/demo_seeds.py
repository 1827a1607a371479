"""The demo over several seeds: one table from the ``summary.json`` of finished runs, and the gate they must pass.

    for seed in 0 1 2 3 4; do mempo train --preset tiny --seed $seed --out runs/demo-$seed; done
    python benchmarks/studies/demo_seeds.py runs/demo-? --out benchmarks/results/demo_seeds_mempo.json

Gate of a seed: the gain in F1 over the trained numbers of goals, paired by task, has a 95 % interval above 0. Beside it
stands the harder count: at how many single numbers of goals the trained F1 lies above the warm start's 95 % interval.

Invariant: every run that is named is in the table; runs of different presets or algorithms are refused.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

from mempo_env.errors import UserError
from mempo_env.versions import versions

NAMES = {"before": "warm start", "after": "trained", "imitation": "imitation of the expert", "expert": "expert"}


def read_summary(run: Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        UserError: There is none, or it has no evaluation before and after.
    """
    path = run / "summary.json"
    if not path.exists():
        raise UserError(f"{run} has no summary.json: the run is not finished; go on with mempo train --resume {run}")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "gain" not in found:
        raise UserError(f"{run} was not evaluated before and after at a trained number of goals")
    return found


def table(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows per seed and number of goals, means over seeds, and the gate.

    Raises:
        UserError: The runs differ in preset or algorithm, or two have one seed.
    """
    kinds = {(run["preset"], run["algo"]) for run in runs}
    seeds = sorted(run["seed"] for run in runs)
    if len(kinds) > 1 or len(set(seeds)) < len(seeds):
        raise UserError(f"give runs of one preset and algorithm with different seeds, not {sorted(kinds)}, {seeds}")
    preset, algo = kinds.pop()
    rows = []
    for run in sorted(runs, key=lambda run: run["seed"]):
        by_name = {name: run[name]["rows"] for name in NAMES if run[name] is not None}
        beyond = [
            after["f1"] > before["f1_interval"][1]
            for before, after in zip(by_name["before"], by_name["after"], strict=True)
            if run["trained_goals"][0] <= before["goals"] <= run["trained_goals"][-1]
        ]
        rows.append(
            {
                "seed": run["seed"],
                "f1": {name: {row["goals"]: row["f1"] for row in found} for name, found in by_name.items()},
                "success": {name: {row["goals"]: row["success"] for row in found} for name, found in by_name.items()},
                "gap_closed": {one["goals"][0]: one["gap_closed"] for one in run["gains"]},
                "quality": [run["before"]["quality"], run["after"]["quality"]],
                "gain": run["gain"],
                "passes": run["gain"]["interval"][0] > 0,
                "goals_above_interval": [sum(beyond), len(beyond)],
                "seconds": run["seconds"],
            }
        )
    goals = list(rows[0]["f1"]["before"])
    means = {name: {n: statistics.mean(row["f1"][name][n] for row in rows) for n in goals} for name in rows[0]["f1"]}
    return {
        "preset": preset,
        "algo": algo,
        "seeds": seeds,
        "passed": sum(row["passes"] for row in rows),
        "mean_f1": means,
        "runs": rows,
        "versions": versions(),
    }


def markdown(found: dict[str, Any]) -> str:
    """The table as docs/demo.md shows it."""
    goals = list(found["mean_f1"]["before"])
    lines = [
        "| seed | " + " | ".join(f"{n} goals" for n in goals) + " | gain over all (95 %) | above the interval | Q(m) |",
        "|---" * (len(goals) + 4) + "|",
    ]
    for row in found["runs"]:
        cells = [f"{row['f1']['before'][n]:.1f} -> {row['f1']['after'][n]:.1f}" for n in goals]
        low, high = row["gain"]["interval"]
        above, of = row["goals_above_interval"]
        quality = " -> ".join(f"{value:.3f}" for value in row["quality"])
        cells += [f"{row['gain']['f1']:+.1f} ({low:+.1f} to {high:+.1f})", f"{above} of {of}", quality]
        lines.append(f"| {row['seed']} | " + " | ".join(cells) + " |")
    for name, label in NAMES.items():
        if name in found["mean_f1"]:
            cells = [f"{found['mean_f1'][name][n]:.1f}" for n in goals]
            lines.append(f"| mean, {label} | " + " | ".join(cells) + " | | | |")
    return "\n".join(lines)


def main() -> None:
    """Reads the runs, writes the JSON file, prints the Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    try:
        found = table([read_summary(run) for run in arguments.runs])
    except UserError as error:
        parser.error(str(error))
    arguments.out.write_text(json.dumps(found, indent=2), encoding="utf-8")
    Console(width=200).print(markdown(found), soft_wrap=True, markup=False)
    Console().print(f"{found['passed']} of {len(found['seeds'])} seeds pass the gate; written to {arguments.out}")


if __name__ == "__main__":
    main()
