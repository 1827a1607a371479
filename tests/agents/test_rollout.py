"""The rollout loop: ids untouched, order by slot, faults apart from failures, nothing dependent on batch or threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from mempo_env.actions import Answer, FormatError
from mempo_env.agents.base import TurnOutput, TurnRequest
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.rollout import EnvPool, EpisodeSpec, as_groups, group_specs, rollout
from mempo_env.agents.scripted import RandomTextAgent
from mempo_env.agents.scripted_expert import Flaws
from mempo_env.env import MemoryEnv
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.errors import InfrastructureError, UserError
from mempo_env.metrics import token_costs
from mempo_env.records import Goal, Task, Turn
from mempo_env.rewards import TurnContext
from mempo_env.tools import Tool, ToolSpec
from mempo_env.wrappers import BlankMemory, BudgetSchedule, ScaleReward

CALL = '<mem>m{turn}</mem><tool_call>{{"name": "ping", "arguments": {{}}}}</tool_call>'


class PingTool:
    spec = ToolSpec("ping", "Answers pong.", {"type": "object", "properties": {}})

    def __init__(self, delay: float) -> None:
        self.down = False
        self.delay = delay

    def call(self, arguments: dict[str, Any]) -> str:
        if self.down:
            raise InfrastructureError("ping is down")
        time.sleep(self.delay)
        return "pong"


class PingEnv(MemoryEnv):
    """Asks for the number of the task; the tool of a task called ``down`` is down."""

    made = 0

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        type(self).made += 1
        self.ping = PingTool(delay=0.002 * (6 - type(self).made % 6))  # threads finish in another order than they start
        self.closed = 0

    @property
    def tools(self) -> Sequence[Tool]:
        return (self.ping,)

    def sample_task(self, rng: np.random.Generator) -> Task:
        number = int(rng.integers(1000))
        return Task((Goal(f"number {number}?", (str(number),)),), id=f"n{number}")

    def prepare(self, task: Task) -> None:
        self.ping.down = task.id == "down"

    def close(self) -> None:
        self.closed += 1


class IdAgent:
    """Calls the tool ``rollout_id`` times, then answers right; gives ids, as a policy does."""

    name = "ids"

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.given: dict[tuple[str, int, int], TurnOutput] = {}

    def act(self, requests: Sequence[TurnRequest]) -> list[TurnOutput]:
        self.batches.append(len(requests))
        return [self._one(request) for request in requests]

    def _one(self, request: TurnRequest) -> TurnOutput:
        key = request.key
        assert key.turn == len(request.history)
        text = CALL.format(turn=key.turn)
        if key.turn >= key.rollout_id:
            text = f"<mem>last</mem><answer>{request.task.goals[0].answers[0]}</answer>"
        ids = tuple(range(100 * key.rollout_id + key.turn, 100 * key.rollout_id + key.turn + 3))
        output = TurnOutput(text, 7, 3, (9, 9, 8, 8, 7, 7, 6), ids, (-0.1, -0.2, -0.3), (1, 3, 0), "action", 5)
        self.given[key.group_id, key.rollout_id, key.turn] = output
        return output


def specs_of(*lengths: int) -> list[EpisodeSpec]:
    return [EpisodeSpec("g", length, 3) for length in lengths]


def test_ids_pass_through_untouched_and_results_keep_the_order_of_the_slots() -> None:
    agent = IdAgent()
    episodes = rollout(agent, PingEnv, specs_of(3, 0, 2, 1), seed=0, step=0)
    assert [episode.rollout_id for episode in episodes] == [3, 0, 2, 1]
    assert [len(episode.turns) for episode in episodes] == [4, 1, 3, 2]
    assert agent.batches == [4, 3, 2, 1]  # lock-step, finished episodes leave
    for episode in episodes:
        assert episode.terminated
        assert not episode.truncated
        assert episode.outcome == 1.0
        assert episode.scores == {"em": 1.0, "f1": 1.0, "success": 1.0}
        for t, turn in enumerate(episode.turns):
            given = agent.given["g", episode.rollout_id, t]
            for name in ("text", "n_prompt", "n_output", "prompt_ids", "output_ids", "logprobs", "segments"):
                assert getattr(turn, name) == getattr(given, name)
            assert turn.info["stop_reason"] == "action"
            assert turn.info["weights_version"] == 5
    costs = token_costs(episodes[2])
    assert costs.total == 30
    assert costs.total_unique == 3 * 3 + 7  # the prompts are one common prefix


def test_turns_are_filled_from_the_step_that_followed() -> None:
    turns = rollout(IdAgent(), PingEnv, specs_of(2), seed=0, step=0)[0].turns
    assert [turn.observation["memory"] for turn in turns] == ["", "m0", "m1"]
    assert [turn.memory for turn in turns] == ["m0", "m1", "last"]
    assert [turn.observation["tool_result"] for turn in turns] == ["", "pong", "pong"]
    assert [turn.info["tool_calls"] for turn in turns] == [1, 2, 2]
    assert [turn.reward for turn in turns] == [0.0, 0.0, 1.0]
    assert all(turn.memory_written for turn in turns)
    assert isinstance(turns[-1].action, Answer)


def test_a_group_shares_one_task_drawn_from_its_seed() -> None:
    specs = group_specs([4, 9], 3)
    assert [spec.group_id for spec in specs] == ["0/4"] * 3 + ["1/9"] * 3
    episodes = rollout(IdAgent(), PingEnv, specs, seed=0, step=0)
    groups = as_groups(reversed(episodes))
    assert [[episode.rollout_id for episode in group] for group in groups] == [[0, 1, 2]] * 2
    for group in groups:
        assert all(episode.task is group[0].task for episode in group)  # drawn once, handed to the others
        assert PingEnv().reset(seed=group[0].seed)[1]["task"] == group[0].task
    assert groups[0][0].task != groups[1][0].task


def test_a_given_task_is_played() -> None:
    task = Task((Goal("capital?", ("Oslo",)),), id="mine")
    episodes = rollout(IdAgent(), PingEnv, group_specs([task], 2), seed=0, step=0)
    assert all(episode.task is task and episode.group_id == "0/mine" for episode in episodes)


def test_specs_that_contradict_each_other_are_refused() -> None:
    for specs in ([EpisodeSpec("g", 0, 1)] * 2, [EpisodeSpec("g", 0, 1), EpisodeSpec("g", 1, 2)]):
        with pytest.raises(ValueError, match=r"slot needs a name|differ in seed"):
            rollout(IdAgent(), PingEnv, specs, seed=0, step=0)
    with pytest.raises(ValueError, match="at least one"):
        group_specs([1], 0)


def hook(context: TurnContext) -> dict[str, float]:
    return {"length": float(len(context.memory)), "turn": 0.5 * context.turn}


def test_a_hooks_rewards_land_in_the_turns() -> None:
    episode = rollout(IdAgent(), lambda: PingEnv(reward_hook=hook), specs_of(1), seed=0, step=0)[0]
    assert [turn.reward_components for turn in episode.turns] == [
        {"outcome": 0.0, "hook/length": 2.0, "hook/turn": 0.0},
        {"outcome": 1.0, "hook/length": 4.0, "hook/turn": 0.5},
    ]
    assert episode.episode_return == 7.5
    assert episode.outcome == 1.0


def test_a_fault_of_a_tool_is_an_error_of_that_episode_alone() -> None:
    down = Task((Goal("?", ("a",)),), id="down")
    specs = [EpisodeSpec("up", 2, 0), EpisodeSpec("down", 2, 0, down)]
    healthy, faulty = rollout(IdAgent(), PingEnv, specs, seed=0, step=0)
    assert healthy.error is None
    assert healthy.outcome == 1.0
    assert faulty.error == "InfrastructureError: ping is down"
    assert (faulty.terminated, faulty.truncated, len(faulty.turns), faulty.outcome) == (False, True, 1, 0.0)
    assert faulty.scores == {"em": 0.0, "f1": 0.0, "success": 0.0}


class FailingAgent(IdAgent):
    """Fails at the second turn: for one request, for all, or with a bug."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def act(self, requests: Sequence[TurnRequest]) -> list[TurnOutput]:
        outputs = super().act(requests)
        if requests[0].key.turn == 1:
            if self.how == "all":
                raise InfrastructureError("server gone")
            if self.how == "bug":
                raise KeyError("bug")
            if self.how == "short":
                return outputs[:-1]
            outputs[0] = replace(outputs[0], error="server refused")
        return outputs


def test_a_fault_of_the_agent_is_an_error_of_the_episodes_it_concerns() -> None:
    one = rollout(FailingAgent("one"), PingEnv, specs_of(3, 0, 2), seed=0, step=0)
    assert [(episode.error, len(episode.turns)) for episode in one] == [("server refused", 1), (None, 1), (None, 3)]
    everyone = rollout(FailingAgent("all"), PingEnv, specs_of(3, 0, 2), seed=0, step=0)
    assert [episode.error for episode in everyone] == [
        "InfrastructureError: server gone",
        None,
        "InfrastructureError: server gone",
    ]
    assert [episode.truncated for episode in everyone] == [True, False, True]


def test_a_bug_of_the_agent_is_raised() -> None:
    with pytest.raises(KeyError, match="bug"):
        rollout(FailingAgent("bug"), PingEnv, specs_of(3, 0), seed=0, step=0)
    with pytest.raises(ValueError, match="gave 1 outputs for 2"):
        rollout(FailingAgent("short"), PingEnv, specs_of(3, 2), seed=0, step=0)


def test_a_truncated_episode_scores_zero_without_an_error() -> None:
    episode = rollout(IdAgent(), PingEnv, specs_of(99), seed=0, step=0)[0]
    assert (episode.terminated, episode.truncated, episode.error) == (False, True, None)
    assert len(episode.turns) == 8
    assert isinstance(episode.turns[-1].action, FormatError)  # beyond the five calls
    assert episode.scores == {"em": 0.0, "f1": 0.0, "success": 0.0}
    assert episode.outcome == 0.0


@pytest.mark.parametrize(
    "agent", [RandomTextAgent(), ExpertAgent(flaws=Flaws(forget=0.4))], ids=lambda agent: str(agent.name)
)
def test_episodes_depend_on_their_slot_alone(agent: Any) -> None:
    specs = group_specs([5, 6, 7], 3)
    whole = rollout(agent, lambda: MultiGoalEnv(goals=3), specs, seed=1, step=2)
    assert whole == rollout(agent, lambda: MultiGoalEnv(goals=3), specs, seed=1, step=2)
    reversed_ = rollout(agent, lambda: MultiGoalEnv(goals=3), specs[::-1], seed=1, step=2)
    assert whole == reversed_[::-1]
    assert whole[4] == rollout(agent, lambda: MultiGoalEnv(goals=3), [specs[4]], seed=1, step=2)[0]
    texts = [[turn.text for turn in episode.turns] for episode in whole]
    other = rollout(agent, lambda: MultiGoalEnv(goals=3), specs, seed=1, step=3)
    assert texts != [[turn.text for turn in episode.turns] for episode in other]
    assert texts[0] != texts[1]


def test_threads_change_nothing() -> None:
    with EnvPool(PingEnv) as plain, EnvPool(PingEnv, threads=4) as threaded:
        specs = specs_of(3, 1, 0, 4, 2, 5)
        assert rollout(IdAgent(), plain, specs, seed=0, step=0) == rollout(IdAgent(), threaded, specs, seed=0, step=0)


def test_a_pool_is_reused_and_closed_once() -> None:
    PingEnv.made = 0
    with EnvPool(PingEnv) as pool:
        rollout(IdAgent(), pool, specs_of(0, 1), seed=0, step=0)
        rollout(IdAgent(), pool, specs_of(2, 1, 0), seed=0, step=1)
        assert PingEnv.made == 3
        assert pool.memory_env.budget.name == "brief"
        envs = [env.unwrapped for env in pool.take(3)]
        assert [env.closed for env in envs] == [0, 0, 0]  # type: ignore[attr-defined]
    assert [env.closed for env in envs] == [1, 1, 1]  # type: ignore[attr-defined]
    pool.close()
    assert [env.closed for env in envs] == [1, 1, 1]  # type: ignore[attr-defined]


def test_every_turn_is_reported_in_the_order_of_the_slots() -> None:
    seen: list[tuple[int, str]] = []

    def on_turn(spec: EpisodeSpec, turn: Turn) -> None:
        seen.append((spec.rollout_id, turn.memory))

    rollout(IdAgent(), PingEnv, specs_of(1, 0), seed=0, step=0, on_turn=on_turn)
    assert seen == [(1, "m0"), (0, "last"), (1, "last")]


class Shout(gym.ObservationWrapper):
    def observation(self, observation: dict[str, str]) -> dict[str, str]:
        return observation | {"task": observation["task"].upper()}


class AsText(gym.ObservationWrapper):
    def observation(self, observation: dict[str, str]) -> str:
        return observation["task"]


def test_wrappers_are_respected() -> None:
    episode = rollout(IdAgent(), lambda: Shout(PingEnv()), specs_of(0), seed=0, step=0)[0]
    assert episode.turns[0].observation["task"].startswith("NUMBER")


def test_a_turn_tells_what_was_shown_and_what_was_stored() -> None:
    turns = rollout(IdAgent(), lambda: BlankMemory(PingEnv()), specs_of(2), seed=0, step=0)[0].turns
    assert [turn.observation["memory"] for turn in turns] == ["", "", ""]
    assert [turn.memory for turn in turns] == ["m0", "m1", "last"]


def test_instructions_follow_a_budget_that_changes_with_the_episode() -> None:
    asked: list[str] = []

    class Asking(IdAgent):
        def act(self, requests: Sequence[TurnRequest]) -> list[TurnOutput]:
            asked.extend(request.instructions for request in requests)
            return super().act(requests)

    stages = [{"memory_tokens": 100}, {"memory_tokens": 50}]
    with EnvPool(lambda: BudgetSchedule(PingEnv(), stages, episodes_per_stage=1)) as pool:
        for step in range(2):
            episode = rollout(Asking(), pool, specs_of(0), seed=0, step=step)[0]
            assert episode.turns[0].info["budget_stage"] == step
    assert [text.count("At most 100 tokens") for text in asked] == [1, 0]
    assert [text.count("At most 50 tokens") for text in asked] == [0, 1]


def test_a_time_limit_truncates_and_an_answer_at_it_terminates() -> None:
    def limited() -> gym.Env[Any, Any]:
        return gym.wrappers.TimeLimit(PingEnv(), 2)

    answered, cut = rollout(IdAgent(), limited, specs_of(1, 4), seed=0, step=0)
    assert (answered.terminated, answered.truncated, len(answered.turns)) == (True, False, 2)
    assert (cut.terminated, cut.truncated, len(cut.turns), cut.error) == (False, True, 2, None)
    assert answered.outcome == 1.0


def test_scaled_rewards_reach_the_return() -> None:
    episode = rollout(IdAgent(), lambda: ScaleReward(PingEnv(reward_hook=hook), 2), specs_of(1), seed=0, step=0)[0]
    assert episode.episode_return == 15.0
    assert episode.outcome == 1.0
    assert all(turn.reward == sum(turn.reward_components.values()) for turn in episode.turns)


class Forgetful(gym.Wrapper):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return observation, reward, terminated, truncated, {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gym.wrappers.TransformReward(PingEnv(), lambda r: 2 * float(r)), "ScaleReward or a reward_hook"),
        (lambda: Forgetful(PingEnv()), "a wrapper dropped"),
        (lambda: AsText(PingEnv()), "TextObservation"),
        (lambda: gym.make("CartPole-v1"), "is no mempo_env.env.MemoryEnv"),
    ],
)
def test_unfit_environments_are_refused_in_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rollout(IdAgent(), make, specs_of(0), seed=0, step=0)


def test_random_text_never_breaks_the_loop() -> None:
    specs = group_specs(range(30), 2)
    episodes = rollout(RandomTextAgent(), lambda: MultiGoalEnv(goals=2), specs, seed=0, step=0)
    assert all(episode.terminated != episode.truncated and episode.error is None for episode in episodes)
    assert all(turn.reward == sum(turn.reward_components.values()) for e in episodes for turn in e.turns)
