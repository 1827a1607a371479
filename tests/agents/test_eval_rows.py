"""Rows by hand: sums over goals, PT less the task, means over memories, intervals over episodes; notes; overflow."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempo_env.actions import Answer, FormatError, FormatErrorKind
from mempo_env.agents.base import TurnOutput, TurnRequest
from mempo_env.agents.contexts import ContextStrategy, HistoryContext, MemoryContext
from mempo_env.agents.eval_notes import noted
from mempo_env.agents.eval_rows import QUALITY, RowKey, episode_metrics, memory_metric, row_of
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.overflow import OVERFLOW, OverflowLosesTurn
from mempo_env.agents.rollout import group_specs, rollout
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.errors import UserError
from mempo_env.metrics import bootstrap_ratio_interval, token_costs
from mempo_env.records import Episode, Goal, Task, Turn
from mempo_env.tokens import RegexTokenCounter

KEY = RowKey("a", "memory", "brief", 2)


def turn(n_prompt: int, n_output: int, memory: str | None = None, **info: Any) -> Turn:
    observation = {"task": "one two three", "memory": "", "tool_result": "", "budget": ""}
    facts: dict[str, object] = {"tool_calls": 3} | info
    return Turn(
        observation, "", Answer(("a",)), 0.0, {}, memory or "", memory is not None, n_prompt, n_output, info=facts
    )


def episode(turns: tuple[Turn, ...], f1: float = 0.0, seed: int = 0, **changes: Any) -> Episode:
    task = Task((Goal("?", ("a",)), Goal("!", ("b",))))
    scores = {"em": float(f1 == 1), "f1": f1, "success": float(f1 == 1)}
    values: dict[str, Any] = {"terminated": True, "truncated": False, "scores": scores} | changes
    return Episode(turns, task, f"g{seed}", 0, seed, f1, **values)


def test_metrics_of_an_episode_by_hand() -> None:
    first = turn(10, 5, "m", task_tokens=3, new_tokens=15)
    lost = turn(0, 0, stop_reason=OVERFLOW, new_tokens=2)
    wrong = Turn(**vars(lost) | {"action": FormatError(FormatErrorKind.NO_ACTION, "")})
    metrics = episode_metrics(episode((first, wrong), f1=0.5))
    assert metrics == {
        "f1": 50, "em": 0, "f1_sum": 1.0, "em_sum": 0, "success": 0, "truncated": 0, "overflowed": 100,
        "total_tokens": 15, "total_tokens_unique": 17, "peak_tokens": 15, "peak_tokens_less_task": 12,
        "turns": 2, "tool_calls": 3, "format_errors": 1,
    }  # fmt: skip
    assert math.isnan(episode_metrics(episode((turn(1, 1),)))["peak_tokens_less_task"]), "not noted, not guessed"
    with pytest.raises(ValueError, match="no turn"):
        episode_metrics(episode(()))


def test_means_over_memories_weigh_memories_and_intervals_resample_episodes() -> None:
    many = episode(tuple(turn(1, 1, "x", quality=0.2, memory_tokens=7) for _ in range(3)))
    one = episode((turn(1, 1, "x y", quality=1.0), turn(1, 1)), seed=1)
    row = row_of(KEY, [many, one, episode((turn(1, 1, "z", quality=0.0),), error="down")])
    assert row.quality == pytest.approx((3 * 0.2 + 1.0) / 4)
    assert row.memory_tokens == pytest.approx((3 * 7 + 2) / 4), (
        "the noted length, and the counter's where there is none"
    )
    assert row.interval(QUALITY) == pytest.approx((0.2, 1.0)), "two episodes, so either may be all"
    assert row.errors == 1
    assert memory_metric(one, QUALITY) == [1.0]


def test_intervals_cover_every_mean_and_nothing_is_null() -> None:
    rng = np.random.default_rng(0)
    played = [
        episode((turn(int(rng.integers(5, 50)), 3, "m", task_tokens=1),), f1=float(rng.random())) for _ in range(30)
    ]
    row = row_of(KEY, played)
    for name in ("f1", "em_sum", "total_tokens", "peak_tokens", "peak_tokens_less_task", "memory_tokens"):
        low, high = row.interval(name)
        assert low <= getattr(row, name) <= high, name
    assert row.f1_sum == pytest.approx(2 * row.f1 / 100)
    flat = row_of(KEY, [episode((), error="down")]).flat()
    assert json.loads(json.dumps(flat, allow_nan=False))["f1"] is None
    assert flat["total_tokens_interval"] == [None, None]
    assert (flat["episodes"], flat["errors"]) == (0, 1)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 9)), min_size=1, max_size=20))
def test_a_ratio_of_equal_parts_is_the_mean_and_lies_in_its_interval(pairs: list[tuple[float, int]]) -> None:
    above, below = [value * size for value, size in pairs], [float(size) for _, size in pairs]
    low, high = bootstrap_ratio_interval(above, below, draws=200)
    values = [value for value, _ in pairs]
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    same = bootstrap_ratio_interval([3.0 * size for size in below], below, draws=50)
    assert same == pytest.approx((3.0, 3.0))


def test_a_ratio_over_nothing() -> None:
    assert all(map(math.isnan, bootstrap_ratio_interval([], [])))
    assert all(map(math.isnan, bootstrap_ratio_interval([0.0], [0.0])))
    with pytest.raises(ValueError, match="one of each"):
        bootstrap_ratio_interval([1.0], [])


# Notes ----------------------------------------------------------------------------------------------------------------


def test_notes_price_history_as_a_history_agent_pays_and_drop_ids() -> None:
    made, counter, specs = MultiGoalEnv(goals=3, memory="optional"), RegexTokenCounter(), group_specs(range(3), 1)
    expert, historian = ExpertAgent(context=MemoryContext()), ExpertAgent(context=HistoryContext())
    paid = rollout(historian, lambda: MultiGoalEnv(goals=3, memory="optional"), specs, seed=0, step=0)
    for played, other in zip(
        rollout(expert, lambda: MultiGoalEnv(goals=3, memory="optional"), specs, seed=0, step=0), paid, strict=True
    ):
        stored = noted(played, expert, counter, made.instructions)
        assert [t.info["history_tokens"] for t in stored.turns] == [t.n_prompt + t.n_output for t in other.turns]
        assert {t.info["task_tokens"] for t in stored.turns} == {counter.count(played.turns[0].observation["task"])}
        assert token_costs(stored) == token_costs(played)
        assert [t.text for t in stored.turns] == [t.text for t in played.turns]
        assert [t.info["memory_tokens"] for t in stored.turns] == [counter.count(t.memory) for t in played.turns]


def test_notes_keep_unique_tokens_when_ids_go() -> None:
    def sampled(prompt: tuple[int, ...], output: tuple[int, ...]) -> Turn:
        return Turn(
            **vars(turn(len(prompt), len(output)))
            | {
                "prompt_ids": prompt,
                "output_ids": output,
                "logprobs": (0.0,) * len(output),
                "segments": (0,) * len(output),
            }
        )

    played = episode((sampled((1, 2, 3), (4,)), sampled((1, 2, 9), (5, 6)), sampled((1, 2, 9, 5, 6, 7), (8,))))
    stored = noted(played, object(), RegexTokenCounter(), "")  # type: ignore[arg-type]
    assert [t.info["new_tokens"] for t in stored.turns] == [4, 3, 2]
    assert episode_metrics(stored)["total_tokens_unique"] == token_costs(played).total_unique == 9
    assert not any(t.has_ids or t.segments or t.logprobs for t in stored.turns)
    assert "history_tokens" not in stored.turns[0].info, "who cannot count is not priced"


# Overflow -------------------------------------------------------------------------------------------------------------


class TooLongError(UserError):
    pass


class Short:
    """Answers "yes"; refuses a batch with a prompt of more than two turns of history, as a policy does."""

    name = "short"
    context: ContextStrategy = HistoryContext()

    def __init__(self) -> None:
        self.calls: list[int] = []

    def prompt_ids(self, request: TurnRequest) -> tuple[int, ...]:
        if len(request.history) > 2:
            raise TooLongError("too long")
        return (1,)

    def act(self, requests: Any) -> list[TurnOutput]:
        for request in requests:
            self.prompt_ids(request)
        self.calls.append(len(requests))
        return [TurnOutput("no action", 10, 2) for _ in requests]


def test_a_prompt_that_is_too_long_costs_its_turn_and_not_the_batch() -> None:
    agent = OverflowLosesTurn(Short(), TooLongError)
    played = rollout(agent, lambda: MultiGoalEnv(goals=1, memory="optional"), group_specs(range(2), 1), seed=0, step=0)
    for one in played:
        assert one.error is None
        assert one.truncated
        assert one.scores["f1"] == 0
        assert [t.n_prompt for t in one.turns] == [10] * 3 + [0] * (len(one.turns) - 3)
        metrics = episode_metrics(one)
        assert metrics["overflowed"] == 100
        assert metrics["total_tokens"] == 36
        assert metrics["format_errors"] == len(one.turns)
