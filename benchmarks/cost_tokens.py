"""How long the parts of the scripted expert's episodes are, and what two numbers of goals say of others.

Prices are those of SmolLM2's tokenizer; Qwen2.5's has a larger vocabulary and makes fewer tokens of the same text.

Invariant: both context strategies are priced on the same turns.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import gymnasium as gym
from cost_episodes import EpisodeLaw, EpisodeShape

import mempo_env  # noqa: F401  (registers the environments)
from mempo_env.actions import ToolCall
from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.evaluation import eval_seeds
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.models import load_model, make_codec
from mempo_env.agents.rollout import EpisodeSpec, rollout
from mempo_env.algos.memory_reward import joint_answer
from mempo_env.budgets import get_budget
from mempo_env.records import Episode

sys.path.insert(0, str(Path(__file__).parent / "studies"))
from context_costs import costs

FITTED, CHECKED = (2, 10), (4, 6, 8)


def shape_of(episodes: Sequence[Episode], goals: int, codec: ChatCodec) -> EpisodeShape:
    """Mean lengths of episodes that were priced by the same codec."""

    def count(text: str) -> int:
        return len(codec.encode_text(text))

    def queries(episode: Episode) -> int:
        return sum(len(t.action.arguments["queries"]) for t in episode.turns if isinstance(t.action, ToolCall))

    asked = [queries(episode) for episode in episodes]
    total = sum(asked)
    first = [episode.turns[0] for episode in episodes]
    tasks = [count(turn.observation["task"]) for turn in first]
    calls = [turn for episode in episodes for turn in episode.turns if isinstance(turn.action, ToolCall)]
    actions = [turn.action for turn in calls if isinstance(turn.action, ToolCall)]
    asking = [sum(count(query) for query in action.arguments["queries"]) for action in actions]
    results = sum(count(turn.observation["tool_result"]) for episode in episodes for turn in episode.turns)
    last = [episode.turns[-1] for episode in episodes]
    written = [count(turn.memory) for turn in last]
    memories = [count(turn.memory) for turn in calls]
    capped = max(count(turn.memory) for episode in episodes for turn in episode.turns)
    return EpisodeShape(
        goals=goals,
        turns=fmean(len(episode.turns) for episode in episodes),
        queries=fmean(asked),
        frame=fmean(turn.n_prompt - task for turn, task in zip(first, tasks, strict=True)),
        task=fmean(tasks),
        # A query found what the next memory holds, as long as that is not full.
        note=sum(written) / total,
        memory_cap=capped,
        result=results / total,
        call=fmean(t.n_output - m - q for t, m, q in zip(calls, memories, asking, strict=True)),
        query=sum(asking) / total,
        answer=fmean(turn.n_output - memory for turn, memory in zip(last, written, strict=True)),
        gold=fmean(count(joint_answer(episode.task)) for episode in episodes),
    )


def measure(data: Path, goals: int, budget: str, episodes: int, codec: ChatCodec) -> dict[str, Any]:
    """Shape and costs of the expert's episodes of one number of goals, three passages a query as the 7B preset has."""

    def env(memory: str = "required") -> Any:
        return gym.make(
            "MemPO-MultiGoal-v0", goals=goals, budget=budget, split="dev", memory=memory, dataset="qa",
            data=[str(data)], topk=3, max_passage_tokens=160,
        )  # fmt: skip

    specs = [EpisodeSpec(str(number), 0, number) for number in eval_seeds(0, goals, episodes)]
    played = rollout(ExpertAgent(budget, tokens=codec), env, specs, seed=0, step=0)
    modes = ("required", "optional", "off")
    instructions: Any = {mode: env(mode).unwrapped.instructions for mode in modes}
    paid = {
        context: [costs(each, context, instructions, codec) for each in played] for context in ("memory", "history")
    }
    return {
        "shape": asdict(shape_of(played, goals, codec)),
        "costs": {
            context: {"total": fmean(a for a, _ in found), "peak": fmean(b for _, b in found)}
            for context, found in paid.items()
        },
    }


def check_tokens(data: Path, episodes: int) -> dict[str, Any]:
    """Shapes at the fitted numbers of goals, and TT and PT that their law predicts beside those measured."""
    codec = make_codec(*load_model("smollm2"))
    laws, lines = {}, []
    for budget in ("brief", "paper"):
        found = {goals: measure(data, goals, budget, episodes, codec) for goals in (*FITTED, *CHECKED)}
        low, high = (EpisodeShape(**found[goals]["shape"]) for goals in FITTED)
        laws[budget] = {"low": asdict(low), "high": asdict(high)}
        for goals in sorted(found):
            shape = EpisodeLaw(low, high).at(goals, get_budget(budget))
            for context in ("memory", "history"):
                lines.append(
                    {
                        "budget": budget,
                        "goals": goals,
                        "context": context,
                        "predicted": {"total": shape.total(context), "peak": shape.peak(context)},
                        "measured": found[goals]["costs"][context],
                        "calibrated": goals in FITTED,
                    }
                )
    return {"laws": laws, "tokens": lines, "episodes": episodes, "data": data.name}
