"""Tokens of an episode as goals go 2, 4, 8, 16 under ``paper``, with memory and with full history.

The scripted expert plays the tasks of ``mempo eval``; its outputs are the same under every context strategy, so only
what it is shown differs. Tokens are counted by the tokenizers of SmolLM2 and of the model built in place, and by the
regex counter; instructions in full, as the environment has them by default, and in one line, as the presets have them.

    python benchmarks/tokens_by_goals.py --out benchmarks/results/tokens_by_goals.json

TT is the sum over calls of input and output, PT the largest call. *Less the task*: every call repeats the task, whose
text grows with the goals whatever the agent does; its tokens are subtracted, from TT once a call. Under ``paper`` an
episode has 16 turns of one query, fewer than sixteen goals need: what costs then stops growing for memory and history
alike, and F1 says how many goals were answered.

Invariant: it plays and prices nothing itself; every figure is from episodes that ``mempo eval`` would have stored.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from results_io import facts, parser_for, write
from rich.console import Console

from mempo_env.agents.agent_spec import AgentSpec
from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.eval_rows import TASK_TOKENS, RowKey, row_of
from mempo_env.agents.eval_store import open_store, read_store
from mempo_env.agents.models import load_model, make_codec
from mempo_env.algos.config import RunConfig
from mempo_env.algos.eval_agents import environment_settings, spec_contestant
from mempo_env.algos.eval_sweep import EvalPlan, measure
from mempo_env.algos.presets import get_preset
from mempo_env.algos.setup import load_base
from mempo_env.errors import UserError
from mempo_env.records import Episode

GOALS = (2, 4, 8, 16)
CONTEXTS = ("memory", "history")
STYLES: tuple[Literal["full", "terse"], ...] = ("full", "terse")
COUNTERS = {"closed-world": ("smollm2", "tiny", "regex"), "hotpotqa": ("smollm2", "regex")}
"""By world; the tiny tokenizer knows the words of the closed world and reads everything else byte by byte."""
MEANS = ("total", "total_less_task", "peak", "peak_less_task", "task", "turns", "memory_tokens", "f1")


def linearity(goals: Sequence[int], totals: Sequence[float]) -> dict[str, float]:
    """How far totals are from growing in proportion to the goals.

    Args:
        goals: Numbers of goals, at least two different ones.
        totals: A total for each.

    Returns:
        ``slope`` and ``intercept`` of the least-squares line, ``r2``, ``residual`` (the largest distance from the line
        as a share of the total), and ``exponent``: k of the fit total ~ goals^k, 1 where they grow in proportion.

    >>> linearity([2, 4, 8], [10, 20, 40])
    {'slope': 5.0, 'intercept': 0.0, 'r2': 1.0, 'residual': 0.0, 'exponent': 1.0}
    """
    x, y = np.asarray(goals, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if len(set(goals)) < 2:
        raise ValueError(f"goals {list(goals)}: a line needs two different numbers of goals")
    slope, intercept = np.polyfit(x, y, 1)
    off = y - (slope * x + intercept)
    spread = float(((y - y.mean()) ** 2).sum())
    exponent = np.polyfit(np.log(x), np.log(y), 1)[0]
    found = {
        "slope": slope,
        "intercept": intercept,
        "r2": 1 - float((off**2).sum()) / spread if spread else 1.0,
        "residual": np.abs(off / y).max(),
        "exponent": exponent,
    }
    return {name: round(float(value), 4) + 0.0 for name, value in found.items()}


def growth(rows: Mapping[int, Mapping[str, float]], context: str) -> dict[str, Any]:
    """Fits and ratios from 4 to 16 goals of one context, from its rows by number of goals."""
    goals = sorted(rows)
    found: dict[str, Any] = {"context": context}
    for name in ("total", "total_less_task"):
        found[name] = linearity(goals, [rows[n][name] for n in goals])
    for name in ("total", "total_less_task", "peak", "peak_less_task", "turns"):
        found[f"{name}_16_by_4"] = round(rows[16][name] / rows[4][name], 4)
    return found


def sums(episodes: Sequence[Episode], key: RowKey) -> dict[str, float]:
    """A row's means: those of ``mempo eval``, and TT less the task's tokens of every call."""
    row = row_of(key, episodes)
    task = [float(str(episode.turns[0].info[TASK_TOKENS])) for episode in episodes]
    repeated = sum(tokens * len(episode.turns) for tokens, episode in zip(task, episodes, strict=True))
    found = {
        "total": row.total_tokens,
        "total_less_task": row.total_tokens - repeated / len(episodes),
        "peak": row.peak_tokens,
        "peak_less_task": row.peak_tokens_less_task,
        "task": sum(task) / len(task),
        "turns": row.turns,
        "memory_tokens": row.memory_tokens,
        "f1": row.f1,
    }
    return {name: round(found[name], 2) for name in MEANS}


def codec_of(counter: str, config: RunConfig) -> Callable[[], ChatCodec]:
    """What gives the codec of ``smollm2`` or ``tiny``."""
    return lambda: make_codec(*(load_model(counter) if counter != "tiny" else load_base(config)))


def play(config: RunConfig, counter: str, episodes: int) -> list[dict[str, Any]]:
    """Rows of the expert in one world, priced by one counter."""
    priced = None if counter == "regex" else (counter, codec_of(counter, config))
    expert = spec_contestant(AgentSpec(kind="expert"), "expert", config, priced)
    plan = EvalPlan(CONTEXTS, ("paper",), GOALS, episodes)
    lists = {"contexts": list(CONTEXTS), "budgets": ["paper"], "goals": list(GOALS)}
    with tempfile.TemporaryDirectory(prefix="tokens-") as name:
        with open_store(Path(name) / "eval", environment_settings(config, 0), {"expert": expert.settings}, lists) as at:
            measure([expert], plan, at, Console(stderr=True))
        stored = read_store(Path(name) / "eval")
    faults = sum(episode.error is not None for played in stored.values() for episode in played)
    if faults:
        raise UserError(f"{faults} episodes ended on a fault of the environment; mend that and measure again")
    return [
        {"context": key.context, "goals": key.goals, "episodes": len(played)} | sums(played, key)
        for key, played in stored.items()
    ]


def main() -> None:
    """Parses, measures, writes."""
    parser = parser_for(__doc__)
    parser.add_argument("--data", default="../shared/data/hotpotqa", help="HotpotQA; left out where it is not there")
    parser.add_argument("--episodes", type=int, default=50, help="per row")
    parser.add_argument("--counters", nargs="+", help="only these of smollm2, tiny and regex")
    flags = parser.parse_args()
    result, begun = facts(), time.process_time()
    tiny = get_preset("tiny")
    worlds = {"closed-world": tiny}
    if Path(flags.data).is_dir():
        worlds["hotpotqa"] = dataclasses.replace(tiny, dataset="qa", data=(flags.data,))
    else:
        sys.stderr.write(f"{flags.data} is not there: HotpotQA is left out\n")
    result |= {"budget": "paper", "agent": "expert", "rows": [], "growth": []}
    cells = [
        (world, preset, counter, style)
        for world, preset in worlds.items()
        for counter in COUNTERS[world]
        for style in STYLES
        if counter in (flags.counters or COUNTERS[world])
    ]
    for world, preset, counter, style in cells:
        asked = dataclasses.replace(preset.env_args, instructions=style)
        try:
            rows = play(dataclasses.replace(preset, env_args=asked), counter, flags.episodes)
        except UserError as error:
            parser.error(str(error))
        where = {"world": world, "counter": counter, "instructions": style}
        result["rows"] += [where | row for row in rows]
        for context in CONTEXTS:
            of = {row["goals"]: row for row in rows if row["context"] == context}
            result["growth"].append(where | growth(of, context))
        sys.stderr.write(f"{where}: {result['growth'][-2]}\n")
    result["cpu_seconds"] = round(time.process_time() - begun, 1)
    write(result, flags.out)


if __name__ == "__main__":
    main()
