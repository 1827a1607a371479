"""The examples in docs/contexts.md are what the strategies show, and stay so.

Each example stands behind a line ``<!-- shown: STRATEGY -->``, with `` in STYLE`` where the prompt style is not the
project's own; the table of costs behind ``<!-- costs -->`` is made from the stored results. To write both anew after a
change that is meant: ``MEMPO_WRITE_DOCS=1 pytest tests/agents/test_contexts_doc.py``
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import mempo_env  # noqa: F401  (registers the environments)
from mempo_env.agents.base import SlotKey, TurnRequest
from mempo_env.agents.contexts import CONTEXTS, get_context, memory_mode
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.rollout import group_specs, rollout
from mempo_env.agents.textual import count_messages
from mempo_env.agents.wording import Wording
from mempo_env.prompt_styles import STYLES, get_style
from mempo_env.tokens import RegexTokenCounter

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "contexts.md"
EXAMPLE = re.compile(r"(<!-- shown: (\S+)(?: in (\S+))? -->\n)```text\n(.*?)```\n", re.DOTALL)
COSTS = re.compile(r"(<!-- costs -->\n\n)(.*?)(?=\n\n)", re.DOTALL)
RESULTS = DOCUMENT.parents[1] / "benchmarks" / "results"
SEED, TURN = 11, 3


def make_env(memory: Any) -> Any:
    return gym.make("MemPO-MultiGoal-v0", goals=3, split="dev", budget="paper", memory=memory)


@cache
def episode() -> Any:
    return rollout(ExpertAgent("paper"), lambda: make_env("required"), group_specs([SEED], 1), seed=0, step=0)[0]


def shown(context: str, style: str = "own") -> str:
    """What a model is given at the turn, one message after the other, instructions left out, and what it costs."""
    strategy, played = get_context(context), episode()
    env = make_env(memory_mode(strategy)).unwrapped
    turn = played.turns[TURN - 1]
    key = SlotKey(0, 0, played.group_id, 0, TURN - 1)
    request = TurnRequest(key, turn.observation, env.instructions, played.turns[: TURN - 1], played.task)
    wording = Wording.of(get_style(style), env)
    messages = wording.messages(strategy, request)
    instructions = wording.instructions or env.instructions
    parts = [
        f"[{message['role']}]\n{message['content'].replace(instructions, '(the instructions)')}" for message in messages
    ]
    tokens = count_messages(RegexTokenCounter(), messages)
    without = tokens - RegexTokenCounter().count(instructions)
    return "\n".join([*parts, f"-- {tokens} tokens, {without} without the instructions"]) + "\n"


def cost_table() -> str:
    """The lines of 10 goals of the two stored results."""
    strategies = ("memory", "mem1", "window-1", "window-3", "retrieved", "history", "react")
    head = ["data", "budget", "passages", "C", *(f"`{name}`" for name in strategies), "saved of `history`"]
    rows = [[*head, "saved of `react`", "bound on TT"], ["---"] * 2 + ["---:"] * 12]
    for file, passages in (("context_costs.json", 1), ("context_costs_topk3.json", 3)):
        result = json.loads((RESULTS / file).read_text(encoding="utf-8"))
        assert result["tokens"] == "smollm2"
        assert result["shown"].get("topk", 1) == passages
        for world, lines in result["worlds"].items():
            for line in (line for line in lines if line["goals"] == 10):
                assert line["episodes"] == 50
                paid = [
                    f"{line['costs'][name]['total']:.0f} / {line['costs'][name]['peak']:.0f}" for name in strategies
                ]
                saved = [f"{part['total']:.1%} / {part['peak']:.1%}" for part in line["savings"].values()]
                about = [world, line["budget"], str(passages), f"{line['calls']:.1f}"]
                rows.append([*about, *paid, *saved, f"{line['bound']:.1%}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def test_the_table_of_costs_is_of_the_stored_results() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    found = COSTS.search(text)
    assert found is not None
    if os.environ.get("MEMPO_WRITE_DOCS"):
        DOCUMENT.write_text(COSTS.sub(lambda old: old[1] + cost_table(), text), encoding="utf-8")
        return
    assert found[2] == cost_table()


def test_every_example_is_what_is_shown() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    examples = list(EXAMPLE.finditer(text))
    assert {found[2].partition("-")[0] for found in examples} == set(CONTEXTS.names())
    assert {found[3] or "own" for found in examples} >= set(STYLES.names()) - {"search-r1"}
    if os.environ.get("MEMPO_WRITE_DOCS"):
        text = EXAMPLE.sub(lambda found: f"{found[1]}```text\n{shown(found[2], found[3] or 'own')}```\n", text)
        DOCUMENT.write_text(text, encoding="utf-8")
        return
    for found in examples:
        assert found[4] == shown(found[2], found[3] or "own"), f"{found[1].strip()} is out of date"


def test_the_example_shows_the_middle_of_an_episode() -> None:
    turns = episode().turns
    assert len(turns) > TURN
    assert all(turns[TURN - 1].observation.values())
    assert episode().scores["success"] == 1.0


@pytest.mark.parametrize("name", ["memory", "mem1", "history"])
def test_all_strategies_are_shown_the_same_turn(name: str) -> None:
    assert episode().turns[TURN - 1].observation["tool_result"] in shown(name)
