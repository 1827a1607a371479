"""Turns per second of the environment: retrieval stubbed, BM25 over real corpora, 32 environments in threads, GEM.

Rows are measured in turn, round after round, so that what else the machine does meets all of them alike; medians over
the rounds are reported. ``cpu`` is turns per second of processor time, which other programs hardly change; ``wall`` is
by the clock. A turn is one ``step`` with everything it needs: parsing, memory, tool, observation, reward. Resets are
inside the measured time; ``cpu_without_resets`` leaves them out, since GEM's read a row of an Arrow table. Nothing is
stubbed but what a row says.

    python benchmarks/env_throughput.py --data ../shared/data/* --gem-python /path/to/python --out result.json

GEM 0.1.0 (``pip install gem-llm==0.1.0 datasets``, in an environment of its own) plays the same task as ``gem-like``:
one question, five searches of one query that return the same passage, an answer. Its turns have no memory to parse, cut
and show; its usual history wrapper, which our environment has no use for, is a row of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

from mempo_env.envs.searcher import ScoredPassage
from mempo_env.records import Goal, Passage, Task
from mempo_env.versions import versions

ENV = "mempo_env:MemPO-MultiGoal-v0"
STUB = "env_throughput:stub_source"  # this file, as a data set of one's own
PASSAGE = (
    "The Old Mill stands by the river in York. It was built in 1820 by Ann Lee, an architect from the north, and "
    "turned into a library after the flood of 1953, when the wheel was lost. Today it keeps maps and letters of the "
    "county."
)
SETTING = {
    "question": "Who built the Old Mill?",
    "answer": "Ann Lee",
    "query": "Old Mill York architect",
    "passage": f"Old Mill\n{PASSAGE}",
    "think": "I do not know yet who built it, so I look it up.",
}
SHORT_MEMORY = "Old Mill: stands in York; built in 1820; by an architect from the north; name not known yet"
FULL_MEMORY = "; ".join(f"Place {n}: built in {1700 + n} by person {n}" for n in range(21))  # 252 tokens
SEARCHES = 5
Row = dict[str, float]


class StubSource:
    """A data set of one task, whose corpus answers every query with one passage and costs nothing."""

    titles = True

    def __init__(self, delay: float) -> None:
        self.delay = delay

    @property
    def index(self) -> StubSource:
        """Stands in for the corpus."""
        return self

    def sample(self, rng: np.random.Generator, goals: int) -> Task:
        """The same question, ``goals`` times."""
        return Task((Goal(SETTING["question"], (SETTING["answer"],)),) * goals, id="stub")

    def retrieve(self, queries: Sequence[str], topk: int) -> list[list[ScoredPassage]]:
        """One passage per query."""
        if self.delay:
            time.sleep(self.delay)
        return [[_HIT] for _ in queries]


_HIT = ScoredPassage(Passage("1", "Old Mill", PASSAGE), 1.0)


def stub_source(data: Sequence[str | Path], split: str, world: object) -> StubSource:
    """Factory of the stubbed data set; ``split`` may name a delay per call in milliseconds, as a server would have."""
    return StubSource(int(split) / 1000 if split.isdigit() else 0.0)


def outputs(memory: str, queries: Sequence[str], goals: int) -> tuple[str, str]:
    """A search and an answer, as a policy would write them."""
    think = f"<think>{SETTING['think']}</think>"
    call = json.dumps({"name": "search", "arguments": {"queries": list(queries)}})
    answers = "; ".join([SETTING["answer"]] * goals)
    head = f"<mem>{memory}</mem>{think}"
    return f"{head}<tool_call>{call}</tool_call>", f"{head}<answer>{answers}</answer>"


def single(turns: int, memory: str, queries: Sequence[Sequence[str]], goals: int = 1, **arguments: Any) -> Row:
    """One environment; each call takes the next list of queries."""
    env = gym.make(ENV, disable_env_checker=True, goals=goals, outcome="fraction", **arguments).unwrapped
    env.reset(seed=0)
    written = [outputs(memory, few, goals) for few in queries]
    env.step(written[0][0])  # first use loads the index
    done, place, resets, wall, cpu = 0, 0, 0.0, time.perf_counter(), time.process_time()
    while done < turns:
        began = time.process_time()
        env.reset()
        resets += time.process_time() - began
        for _ in range(SEARCHES):
            *_, info = env.step(written[place % len(written)][0])
            assert not info["format_error"], info
            place += 1
        _, _, terminated, _, _ = env.step(written[0][1])
        assert terminated
        done += SEARCHES + 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"turns": done, "wall": wall, "cpu": cpu, "cpu_without_resets": cpu - resets}


def vector(
    turns: int, memory: str, queries: Sequence[Sequence[str]], num_envs: int, mode: str | None, **arguments: Any
) -> Row:
    """Several environments, step by step together; steps on which one is only reset are not counted."""
    envs = gym.make_vec(ENV, num_envs, vectorization_mode=mode, outcome="fraction", goals=1, **arguments)
    envs.reset(seed=0)
    written = [outputs(memory, few, 1) for few in queries]
    place, done, wall, cpu = 0, 0, time.perf_counter(), time.process_time()
    while done < turns:
        for step in range(SEARCHES + 2):
            if step < SEARCHES:
                action = tuple(written[(place + slot) % len(written)][0] for slot in range(num_envs))
                place += num_envs
            else:
                action = (written[0][1],) * num_envs  # the answer, and then the reset
            ended = envs.step(action)[2]
            assert ended.all() == (step == SEARCHES)
        done += num_envs * (SEARCHES + 1)
    row = {"turns": done, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    envs.close()
    return row


def gem(python: Path, episodes: int) -> dict[str, Any]:
    """GEM's rows, from an interpreter that has it."""
    script = Path(__file__).with_name("gem_turns.py")
    call = [str(python), str(script), json.dumps(SETTING), str(episodes)]
    run = subprocess.run(call, capture_output=True, text=True, check=False, cwd=script.parent)
    if run.returncode:
        raise SystemExit(f"{python} cannot play GEM: {run.stderr.strip()[-400:]}")
    return dict(json.loads(run.stdout.splitlines()[-1]))


def real_queries(data: Sequence[Path], count: int) -> tuple[list[list[str]], int]:
    """Questions of the data sets as queries, one a call, and the number of passages they are asked of."""
    env = gym.make(ENV, disable_env_checker=True, goals=1, dataset="qa", data=[str(path) for path in data], split="dev")
    source = env.unwrapped.source  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    asked = [source.sample(rng, 1).goals[0].question[:400] for _ in range(count)]
    return [[question] for question in asked], len(source.index)


def cases(turns: int, data: Sequence[Path]) -> tuple[dict[str, Callable[[], Row]], int]:
    """The rows of our own environments, and the number of passages behind those that search for real."""
    one: list[list[str]] = [[SETTING["query"]]]
    five = [[f"Place {n} built by" for n in range(5)]]
    stub: dict[str, Any] = {"dataset": STUB}
    rows: dict[str, Callable[[], Row]] = {
        "stub, gem-like": lambda: single(turns, SHORT_MEMORY, one, **stub),
        "stub, 4 goals, 5 queries a call, 252 tokens of memory": lambda: single(turns, FULL_MEMORY, five, 4, **stub),
        "stub, 32 in threads": lambda: vector(turns, SHORT_MEMORY, one, 32, None, **stub),
        "stub, 32 in turn (SyncVectorEnv)": lambda: vector(turns, SHORT_MEMORY, one, 32, "sync", **stub),
        "stub of 10 ms a call, 32 in threads": lambda: vector(
            turns // 20, SHORT_MEMORY, one, 32, None, split="10", **stub
        ),
        "stub of 10 ms a call, 1 alone": lambda: single(turns // 100, SHORT_MEMORY, one, split="10", **stub),
    }
    passages = 0
    if data:
        queries, passages = real_queries(data, 500)
        real: dict[str, Any] = {"dataset": "qa", "data": [str(path) for path in data], "split": "dev"}
        rows["bm25s"] = lambda: single(turns // 20, SHORT_MEMORY, queries, **real)
        rows["bm25s, 32 in threads"] = lambda: vector(turns // 20, SHORT_MEMORY, queries, 32, None, **real)
        rows["bm25s, the search alone"] = lambda: search_alone(turns // 20, queries, real)
    return rows, passages


def search_alone(turns: int, queries: Sequence[Sequence[str]], real: dict[str, Any]) -> Row:
    """Searches without an environment: the limit of the rows above. A turn here is a query; of theirs, five in six."""
    index = gym.make(ENV, disable_env_checker=True, goals=1, **real).unwrapped.source.index  # type: ignore[attr-defined]
    wall, cpu = time.perf_counter(), time.process_time()
    for place in range(turns):
        index.search(queries[place % len(queries)], 1)
    return {"turns": turns, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def measure(turns: int, rounds: int, data: Sequence[Path], gem_python: Path | None) -> dict[str, Any]:
    """All rows, round after round."""
    rows, passages = cases(turns, data)
    found: dict[str, list[Row]] = {name: [] for name in rows}
    gem_versions: dict[str, str] = {}
    load = [os.getloadavg()]
    for _ in range(rounds):
        for name, row in rows.items():
            found[name].append(row())
        if gem_python is not None:
            theirs = gem(gem_python, turns // (SEARCHES + 1) // 4)
            gem_versions = {"gem-llm": theirs["gem-llm"], "python": theirs["python"]}
            found.setdefault("GEM, QaEnv + ToolEnvWrapper + SearchTool", []).append(theirs["rows"]["plain"])
            found.setdefault("GEM, the same with its history wrapper", []).append(theirs["rows"]["history"])
        load.append(os.getloadavg())
    return {
        "command": (
            f"python benchmarks/env_throughput.py --turns {turns} --rounds {rounds}"
            f" --data {' '.join(path.name for path in data)}{' --gem-python ..' if gem_python else ''}"
        ),
        "turns_per_second": {
            name: {
                clock: {
                    "median": statistics.median(row["turns"] / row[clock] for row in all_rows),
                    "all": [round(row["turns"] / row[clock], 1) for row in all_rows],
                }
                for clock in ("cpu", "cpu_without_resets", "wall")
                if clock in all_rows[0]
            }
            for name, all_rows in found.items()
        },
        "passages": passages,
        "rounds": rounds,
        "turns": turns,
        "load_average_by_round": [[round(value, 2) for value in minutes] for minutes in load],
        "versions": versions(),
        "gem": gem_versions or "not measured: no --gem-python",
    }


def main() -> None:
    """Reads the flags, measures, shows and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=30_000, help="per row and round; slow rows take a share of it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="data folders for the rows with BM25")
    parser.add_argument("--gem-python", type=Path, help="an interpreter with gem-llm==0.1.0")
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    data = [path for path in flags.data if (path / "corpus.jsonl.gz").exists() or (path / "corpus.jsonl").exists()]
    result = measure(flags.turns, flags.rounds, data, flags.gem_python)
    table = Table("row", "cpu", "cpu_without_resets", "wall", title=f"turns/s, median of {flags.rounds} rounds")
    for name, row in result["turns_per_second"].items():
        medians = (row[clock]["median"] if clock in row else None for clock in ("cpu", "cpu_without_resets", "wall"))
        table.add_row(name, *("-" if median is None else f"{median:,.0f}" for median in medians))
    Console().print(table)
    if flags.out:
        flags.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
