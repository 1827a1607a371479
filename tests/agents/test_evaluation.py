"""Evaluation: fixed tasks apart from training's, everything counted, intervals; and the price of full history."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from mempo_env.actions import Answer
from mempo_env.agents.contexts import HistoryContext
from mempo_env.agents.eval_rows import evaluation_row
from mempo_env.agents.evaluation import EVAL_SEED_START, EvaluationReport, eval_seeds, evaluate, report_table
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.history_cost import history_cost
from mempo_env.agents.rollout import EnvFactory, group_specs, rollout
from mempo_env.agents.scripted import RandomTextAgent
from mempo_env.agents.scripted_expert import Flaws
from mempo_env.agents.textual import count_messages
from mempo_env.envs.closed_world import split_of
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.errors import UserError
from mempo_env.metrics import token_costs
from mempo_env.records import Episode, Goal, Task, Turn
from mempo_env.tokens import RegexTokenCounter


def make_env(goals: int, **env: Any) -> EnvFactory:
    return lambda: MultiGoalEnv(goals=goals, split="dev", **env)


def turn(n_prompt: int, n_output: int, memory: str = "", result: str = "", text: str = "") -> Turn:
    observation = {"task": "T", "memory": "", "tool_result": result, "budget": ""}
    info: dict[str, object] = {"tool_calls": 3}
    return Turn(
        observation, text, Answer(("a",)), 0.0, {"outcome": 0.0}, memory, bool(memory), n_prompt, n_output, info=info
    )


def episode(turns: tuple[Turn, ...], f1: float = 0.0, error: str | None = None, truncated: bool = False) -> Episode:
    scores = {"em": float(f1 == 1), "f1": f1, "success": float(f1 == 1)}
    return Episode(turns, Task((Goal("?", ("a",)),)), "g", 0, 0, f1, not truncated, truncated, error, scores)


def test_a_row_by_hand() -> None:
    episodes = [
        episode((turn(10, 5, memory="a b c"), turn(20, 6)), f1=1.0),
        episode((turn(30, 1, memory="a"),), f1=0.5),
        episode((turn(2, 2), turn(2, 2)), truncated=True),
        episode((), error="server gone", truncated=True),
    ]
    row = evaluation_row(RandomTextAgent(), 1, "brief", episodes, RegexTokenCounter())
    assert (row.episodes, row.errors) == (3, 1)
    assert row.f1 == pytest.approx(50)
    assert row.em == row.success == row.truncated == pytest.approx(100 / 3)
    assert row.total_tokens == row.total_tokens_unique == pytest.approx((41 + 31 + 8) / 3)
    assert row.peak_tokens == pytest.approx((26 + 31 + 4) / 3)
    assert row.turns == pytest.approx(5 / 3)
    assert row.tool_calls == 3
    assert row.format_errors == 0
    assert row.memory_tokens == 2
    assert row.f1_interval[0] <= row.f1 <= row.f1_interval[1]
    assert row.em_interval[0] < row.em < row.em_interval[1]


def test_without_a_valid_episode_the_means_are_null_in_json() -> None:
    row = evaluation_row(RandomTextAgent(), 1, "brief", [episode((), error="x")], RegexTokenCounter())
    data = json.loads(EvaluationReport((row,), 0).to_json())
    assert data["rows"][0]["errors"] == 1
    assert data["rows"][0]["f1"] is None
    assert data["rows"][0]["em_interval"] == [None, None]


def test_the_expert_is_perfect_and_a_forgetful_one_worse() -> None:
    expert = evaluate(ExpertAgent(), make_env, [2, 10], 20, 0)
    forgetful = evaluate(ExpertAgent(flaws=Flaws(forget=0.3)), make_env, [2, 10], 20, 0)
    for ours, theirs in zip(expert.rows, forgetful.rows, strict=True):
        assert ours.f1 == ours.em == ours.success == 100
        assert ours.f1_interval == (100.0, 100.0)
        assert theirs.f1_interval[1] < 100
        assert theirs.f1_interval[0] < theirs.f1 < theirs.f1_interval[1]
        assert (ours.agent, ours.context, ours.budget) == ("expert", "memory", "brief")
    assert [e.task for e in expert.episodes] == [e.task for e in forgetful.episodes]
    first = [e for e in expert.episodes if len(e.task.goals) == 10]
    assert expert.rows[1].total_tokens == sum(token_costs(e).total for e in first) / 20


def test_results_do_not_depend_on_the_batch_and_more_episodes_keep_the_first() -> None:
    agent = ExpertAgent(flaws=Flaws(forget=0.3))
    small, large = evaluate(agent, make_env, [3], 7, 5, batch=2), evaluate(agent, make_env, [3], 7, 5, batch=100)
    assert small == large
    longer = evaluate(agent, make_env, [3], 9, 5)
    assert longer.episodes[:7] == small.episodes
    assert evaluate(agent, make_env, [3], 7, 6).episodes != small.episodes


def test_tasks_of_evaluation_are_not_those_of_training() -> None:
    seeds = [s for seed in (0, 1, 7) for goals in (1, 2, 16) for s in eval_seeds(seed, goals, 50)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) > EVAL_SEED_START > 2**31  # the trainer's task seeds lie below 2^31
    assert eval_seeds(0, 16, 2**20)[-1] < eval_seeds(1, 1, 1)[0]
    played = evaluate(ExpertAgent(), make_env, [2], 30, 0).episodes
    assert {split_of(e.task.goals) for e in played} == {"dev"}


@pytest.mark.parametrize(
    ("goals", "episodes", "seed", "options"),
    [([0], 1, 0, {}), ([2, 17], 1, 0, {}), ([2], 0, 0, {}), ([2], 1, -1, {}), ([2], 1, 0, {"batch": 0})],
)
def test_numbers_out_of_range_are_refused_before_anything_is_played(
    goals: list[int], episodes: int, seed: int, options: dict[str, int]
) -> None:
    def refuse(_: int) -> EnvFactory:
        raise AssertionError("an environment was made")

    with pytest.raises(UserError):
        evaluate(ExpertAgent(), refuse, goals, episodes, seed, **options)  # type: ignore[arg-type]


def test_truncated_and_malformed_play_is_counted() -> None:
    row = evaluate(RandomTextAgent(), make_env, [2], 40, 0).rows[0]
    assert row.episodes == 40
    assert row.format_errors > 0.5
    assert row.em < 50
    assert row.turns > 1


def test_the_table_shows_agents_beside_each_other() -> None:
    reports = [evaluate(agent, make_env, [4, 2], 5, 0) for agent in (ExpertAgent(), RandomTextAgent())]
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report_table(reports))
    lines = [line for line in console.export_text(clear=False).splitlines() if "expert" in line or "random" in line]
    assert [line.split()[:2] for line in lines] == [[g, agent] for g in "24" for agent in ("expert", "random")]
    assert "100.0 (100-100)" in lines[0]
    assert "context memory, budget brief" in console.export_text(clear=False)  # the same in all rows
    faulty = replace(reports[0].rows[0], errors=3)
    console.print(EvaluationReport((faulty,), 0).table())
    assert "5 + 3 errors" in console.export_text()


def test_history_cost_by_hand() -> None:
    # Contents in tokens: instructions 2, "Task: T" 3, "Result: .." 2 + its words, output 2; a line break is one too.
    turns = (turn(0, 0, text="x y"), turn(0, 0, result="r r r", text="x y"), turn(0, 0, result="r", text="x y"))
    cost = history_cost([episode(turns)], RegexTokenCounter(), "be good")
    memory = [2 + 3 + 2, 2 + 3 + 1 + 5 + 2, 2 + 3 + 1 + 3 + 2]
    history = [2 + 3 + 2, 2 + 3 + 2 + 5 + 2, 2 + 3 + 2 + 5 + 2 + 3 + 2]
    assert (cost.memory_total, cost.memory_peak) == (sum(memory), max(memory))
    assert (cost.history_total, cost.history_peak) == (sum(history), max(history))
    assert cost.saving_total == 1 - sum(memory) / sum(history)
    assert cost.saving_peak == 1 - max(memory) / max(history)
    assert (cost.episodes, cost.calls) == (1, 2)
    assert cost.bound == pytest.approx(1 - 2 / 3)


@pytest.mark.parametrize("calls", [5, 16])
def test_the_bound_is_reached_where_only_results_cost(calls: int) -> None:
    result = "word " * 5000
    turns = tuple(turn(0, 0, result=result if t else "", text="x") for t in range(calls + 1))
    cost = history_cost([episode(turns)], RegexTokenCounter())
    assert cost.bound == pytest.approx(1 - 2 / (calls + 1))
    assert cost.saving_total == pytest.approx(cost.bound, abs=2e-3)
    assert cost.saving_total < cost.bound


def test_the_price_of_history_is_what_a_history_agent_pays() -> None:
    specs = group_specs(range(5), 1)

    def made() -> MultiGoalEnv:
        return MultiGoalEnv(goals=6, memory="optional")

    memory = rollout(ExpertAgent(), made, specs, seed=0, step=0)
    history = rollout(ExpertAgent(context=HistoryContext()), made, specs, seed=0, step=0)
    cost = history_cost(memory, RegexTokenCounter(), made().instructions)
    assert cost.memory_total == sum(token_costs(e).total for e in memory)
    assert cost.history_total == sum(token_costs(e).total for e in history)
    assert cost.history_peak == sum(token_costs(e).peak for e in history)
    assert 0 < cost.saving_total < cost.bound


class Codec:
    """Four ids of template around each message, one id per character."""

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        return [0] * sum(4 + len(message["content"]) for message in messages)

    def encode_text(self, text: str) -> list[int]:
        return [0] * len(text)


def test_a_codec_prices_the_template_too() -> None:
    assert count_messages(Codec(), [{"role": "user", "content": "abc"}]) == 7
    assert history_cost([episode((turn(0, 0, text="xy"),))], Codec()).memory_total == 4 + 4 + len("Task: T") + 2
    assert ExpertAgent(tokens=Codec()).tokens is not None
    with pytest.raises(ValueError, match="at least one episode"):
        history_cost([episode(())], Codec())
