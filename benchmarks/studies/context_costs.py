"""What each context strategy costs in tokens when the very same turns are played.

The scripted expert plays each task once; its turns are then priced as every strategy would have shown them. A further
row, ``react``, is full history of an agent that writes no memory: the same turns with their ``<mem>`` blocks cut out of
the outputs, which is what history costs where nobody asks for a memory. Savings are given against both, beside the
bound 1 - 2 / (C + 1) of equal calls in which results are all that costs.

Invariant: all rows of one table line are of the same episodes and the same tool results; only what is shown differs.

    python benchmarks/studies/context_costs.py --data ../shared/data/hotpotqa --episodes 50 --out result.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

import mempo_env  # noqa: F401  (registers the environments)
from mempo_env.actions import Segment, encode_text, scan
from mempo_env.agents.base import SlotKey, TurnRequest
from mempo_env.agents.contexts import get_context, memory_mode
from mempo_env.agents.evaluation import eval_seeds
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.rollout import EpisodeSpec, rollout
from mempo_env.agents.textual import Tokens, count_messages, count_text
from mempo_env.prompts import MemoryMode
from mempo_env.records import Episode, Turn
from mempo_env.tokens import RegexTokenCounter
from mempo_env.versions import versions

CONTEXTS = ("memory", "mem1", "window-1", "window-3", "retrieved", "history")
REACT = "react"


def load_tokens(name: str) -> Tokens:
    """What prices the texts: the regex counter (contents only), or a model's tokenizer with its chat template."""
    if name == RegexTokenCounter.name:
        return RegexTokenCounter()
    from mempo_env.agents.models import load_model, make_codec

    return make_codec(*load_model(name))


def without_memory(turn: Turn) -> Turn:
    """The turn as an agent without a memory would have written it."""
    data = encode_text(turn.text)
    for block in reversed(scan(data)):
        if block.segment is Segment.MEMORY:
            data = data[: block.start] + data[block.end :]
    return dataclasses.replace(turn, text=data.decode())


def costs(episode: Episode, context: str, instructions: dict[MemoryMode, str], tokens: Tokens) -> tuple[int, int]:
    """TT and PT of an episode under a context strategy.

    Args:
        episode: Played under any of them.
        context: Name of the strategy, or ``react``.
        instructions: System message by memory mode: each strategy is given the one that goes with it.
        tokens: Prices texts.
    """
    react = context == REACT
    strategy = get_context("history" if react else context)
    system = instructions["off" if react else memory_mode(strategy)]
    turns = tuple(map(without_memory, episode.turns)) if react else episode.turns
    calls = []
    for t, turn in enumerate(turns):
        key = SlotKey(episode.seed, 0, episode.group_id, episode.rollout_id, t)
        request = TurnRequest(key, turn.observation, system, turns[:t], episode.task)
        calls.append(count_messages(tokens, strategy.messages(request)) + count_text(tokens, turn.text))
    return sum(calls), max(calls)


def measure(world: dict[str, Any], goals: int, budget: str, episodes: int, tokens: Tokens, seed: int) -> dict[str, Any]:
    """One line of the table: the same episodes under every strategy.

    Args:
        world: Arguments of the environment that name its data.
        goals: Goals per task.
        budget: Named budget.
        episodes: How many.
        tokens: Prices texts.
        seed: Seed of the tasks.

    Returns:
        Means of TT and PT by strategy, savings, calls, the bound, and the expert's scores.
    """

    def env(memory: MemoryMode = "required") -> Any:
        return gym.make("MemPO-MultiGoal-v0", goals=goals, budget=budget, split="dev", memory=memory, **world)

    specs = [EpisodeSpec(str(number), 0, number) for number in eval_seeds(seed, goals, episodes)]
    played = rollout(ExpertAgent(budget), env, specs, seed=seed, step=0)
    modes: tuple[MemoryMode, ...] = ("required", "optional", "off")
    instructions = {mode: env(mode).unwrapped.instructions for mode in modes}
    rows = {}
    for context in (*CONTEXTS, REACT):
        paid = np.array([costs(episode, context, instructions, tokens) for episode in played])  # (episodes, 2)
        rows[context] = {"total": float(paid[:, 0].mean()), "peak": float(paid[:, 1].mean())}
    shown = [sum(bool(turn.observation["tool_result"]) for turn in episode.turns) for episode in played]
    return {
        "goals": goals,
        "budget": budget,
        "episodes": episodes,
        "f1": float(np.mean([100 * episode.scores["f1"] for episode in played])),
        "calls": float(np.mean(shown)),
        "bound": 1 - sum(shown) / sum(c * (c + 1) / 2 for c in shown),
        "costs": rows,
        "savings": {
            against: {part: 1 - rows["memory"][part] / rows[against][part] for part in ("total", "peak")}
            for against in ("history", REACT)
        },
    }


def show(name: str, lines: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints the lines of one data set."""
    table = Table(title=f"{name}: TT / PT in tokens; what memory saves of TT / PT")
    for column in ("budget", "goals", "F1", "C", *CONTEXTS, REACT, "of history", f"of {REACT}", "bound"):
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(
            line["budget"],
            str(line["goals"]),
            f"{line['f1']:.1f}",
            f"{line['calls']:.1f}",
            *(f"{line['costs'][c]['total']:.0f} / {line['costs'][c]['peak']:.0f}" for c in (*CONTEXTS, REACT)),
            *(f"{saved['total']:.1%} / {saved['peak']:.1%}" for saved in line["savings"].values()),
            f"{line['bound']:.1%}",
        )
    console.print(table)


def main() -> None:
    """Measures, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data folder for a second table beside the closed world's")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--goals", type=int, nargs="+", default=[2, 4, 6, 8, 10])
    parser.add_argument("--budgets", nargs="+", default=["brief", "paper"])
    parser.add_argument("--topk", type=int, help="passages shown per query; by default the environment's")
    parser.add_argument(
        "--max-passage-tokens", type=int, help="longest text of a passage; by default the environment's"
    )
    parser.add_argument("--tokens", default="smollm2", help="regex, or a model whose tokenizer counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    worlds: dict[str, dict[str, Any]] = {"closed-world": {"dataset": "closed-world"}}
    if arguments.data is not None:
        worlds[arguments.data.name] = {"dataset": "qa", "data": [str(arguments.data)]}
    shown = {"topk": arguments.topk, "max_passage_tokens": arguments.max_passage_tokens}
    shown = {name: value for name, value in shown.items() if value is not None}
    console, tokens = Console(width=200), load_tokens(arguments.tokens)
    result: dict[str, Any] = {"tokens": arguments.tokens, "seed": arguments.seed, "versions": versions(), "worlds": {}}
    result |= {"shown": shown}
    for name, world in worlds.items():
        lines = [
            measure(world | shown, goals, budget, arguments.episodes, tokens, arguments.seed)
            for budget in arguments.budgets
            for goals in arguments.goals
        ]
        result["worlds"][name] = lines
        show(name, lines, console)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
