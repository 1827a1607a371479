"""Context strategies by number of goals, under both budgets, on two data sets, for three agents: one command.

    python benchmarks/studies/strategies.py --run runs/demo-4 --out runs/strategies

It is a list of ``mempo eval`` calls, each into a folder of its own under ``--out``. It can be stopped: the same command
goes on, and what is there already is not played again. Then it writes ``strategies.json``, one row a line, and
``strategies.md``, the folders' tables.

    expert-closed-world, expert-hotpotqa      the scripted expert, tokens counted by the regex counter
    expert-hotpotqa-3                         the same, shown three passages a query, up to 512 tokens of each
    tiny-closed-world, tiny-hotpotqa          a run of the preset tiny, and on the closed world the expert in its tokens
                                              beside it; few episodes on HotpotQA, which it reads byte by byte
    smollm2-closed-world, smollm2-hotpotqa    SmolLM2-135M-Instruct, or a run of the preset smollm2; few episodes

Goal: under ``paper`` at 10 goals at least 75 % of TT and 80 % of PT saved against history, at an F1 that is not lower.

Invariant: it measures nothing itself; every figure is from ``summary.json`` of a folder that ``mempo eval`` made.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from mempo_env.cli.eval import run as mempo_eval
from mempo_env.errors import UserError
from mempo_env.versions import versions

GOAL = {"total": 0.75, "peak": 0.80}
THREE_PASSAGES = ["--env-args.topk", "3", "--env-args.max-passage-tokens", "512"]
KEPT = (
    *("folder", "agent", "context", "goals", "budget", "episodes", "errors", "f1", "f1_interval", "em", "success"),
    *("total_tokens", "total_tokens_unique", "peak_tokens", "peak_tokens_less_task", "turns", "tool_calls"),
    *("format_errors", "memory_tokens", "overflowed", "quality"),
    *("saving_measured", "saving_calls", "saving_total", "saving_peak", "saving_bound", "saving_f1"),
)
"""Fields of a row that ``strategies.json`` keeps; the folders have them all."""
CONTEXTS = "memory history window-3 mem1 retrieved"


def calls(arguments: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """The name of each folder with the ``mempo eval`` call that fills it."""
    common = ["--goals", *map(str, arguments.goals), "--context", *arguments.contexts, "--budget", "brief", "paper"]
    worlds = {"closed-world": ["--dataset", "closed-world"], "hotpotqa": ["--dataset", "qa", "--data", arguments.data]}
    many, few = str(arguments.episodes), str(arguments.slow_episodes)
    for world, where in worlds.items():
        yield f"expert-{world}", ["expert", *where, *common, "--episodes", many]
        if world == "hotpotqa":
            yield f"expert-{world}-3", ["expert", *where, *common, *THREE_PASSAGES, "--episodes", many]
        if arguments.run:
            players = [arguments.run, "expert"] if world == "closed-world" else [arguments.run]
            episodes = many if world == "closed-world" else few
            yield f"tiny-{world}", [*players, *where, *common, "--episodes", episodes, "--batch", "32"]
        who = [arguments.slow_run] if arguments.slow_run else shlex.split(arguments.slow_agent)
        if who:
            yield f"smollm2-{world}", [*who, *where, *common, "--episodes", few, "--batch", "4"]


def verdict(row: dict[str, Any]) -> dict[str, Any]:
    """Whether a row meets the goal; only measured savings count, and the F1 may not be lower than history's."""
    met = (
        row["saving_measured"]
        and row["saving_total"] >= GOAL["total"]
        and row["saving_peak"] >= GOAL["peak"]
        and row["saving_f1"] >= 0
    )
    names = ("folder", "agent", "context", "saving_total", "saving_peak", "saving_bound", "saving_f1")
    return {name: row[name] for name in names} | {"f1_interval": row["saving_f1_interval"], "met": met}


def gather(out: Path, names: list[str]) -> dict[str, Any]:
    """The rows of the folders, and how those under ``paper`` with 10 goals stand to the goal."""
    rows = [
        {"folder": name} | row
        for name in names
        for row in json.loads((out / name / "summary.json").read_text(encoding="utf-8"))
    ]
    longest = [row for row in rows if (row["budget"], row["goals"]) == ("paper", 10) and row.get("saving_measured")]
    kept = [{name: _rounded(row[name]) for name in KEPT if name in row} for row in rows]
    return {"goal": GOAL, "verdicts": [verdict(row) for row in longest], "rows": kept, "versions": versions()}


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def as_text(found: dict[str, Any]) -> str:
    """JSON with one row a line."""
    parts = []
    for name, value in found.items():
        lines = ",\n    ".join(map(json.dumps, value)) if isinstance(value, list) else ""
        parts.append(f'  "{name}": ' + (f"[\n    {lines}\n  ]" if lines else json.dumps(value)))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Makes what is missing, and gathers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="", help="run of the preset tiny; without it that part is left out")
    parser.add_argument("--slow-run", default="", help="run of the preset smollm2, instead of the untrained model")
    parser.add_argument(
        "--slow-agent",
        default="--agent model --model smollm2 --dtype bfloat16 --max-new-tokens 192",
        help="flags of the slow agent; empty: left out",
    )
    parser.add_argument("--data", default="../shared/data/hotpotqa", help="data folder")
    parser.add_argument("--contexts", nargs="+", default=CONTEXTS.split())
    parser.add_argument("--goals", nargs="+", type=int, default=[2, 4, 6, 8, 10])
    parser.add_argument("--episodes", type=int, default=100, help="per row")
    parser.add_argument("--slow-episodes", type=int, default=8, help="per row of the slow agent")
    parser.add_argument("--out", type=Path, required=True, help="folder of the folders")
    arguments = parser.parse_args()
    console, names = Console(), []
    try:
        for name, call in calls(arguments):
            names.append(name)
            console.rule(name)
            console.print(f"mempo eval {shlex.join(call)} --out {arguments.out / name}", soft_wrap=True, markup=False)
            mempo_eval([*call, "--out", str(arguments.out / name)])
    except UserError as error:
        parser.error(str(error))
    except KeyboardInterrupt as stop:
        console.print(f"\n{stop or 'interrupted'}\nThe same command goes on.", markup=False, soft_wrap=True)
        raise SystemExit(130) from None
    found = gather(arguments.out, names)
    (arguments.out / "strategies.json").write_text(as_text(found), encoding="utf-8")
    tables = [f"## {name}\n\n{(arguments.out / name / 'table.md').read_text(encoding='utf-8')}" for name in names]
    (arguments.out / "strategies.md").write_text("\n".join(tables), encoding="utf-8")
    for one in found["verdicts"]:
        console.print(
            f"{one['folder']}, {one['agent']}, {one['context']}: TT {-one['saving_total']:+.1%} (bound "
            f"{-one['saving_bound']:.0%}), PT {-one['saving_peak']:+.1%}, F1 {one['saving_f1']:+.1f}: "
            f"{'goal met' if one['met'] else 'goal not met'}",
            markup=False,
            highlight=False,
        )


if __name__ == "__main__":
    main()
