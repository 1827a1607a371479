"""The wrappers of experiments: what they change and what they leave alone; specs, copies and vectors keep them."""

from __future__ import annotations

import functools
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest

import mempo_env
from mempo_env.env import MemoryEnv
from mempo_env.errors import UserError
from mempo_env.rewards import TurnContext, check_reward
from mempo_env.vector import ThreadPoolVectorEnv
from mempo_env.wrappers import BlankMemory, BudgetSchedule, ScaleReward, ShuffledMemory, TextObservation

ID = "MemPO-MultiGoal-v0"
Wrap = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]
DONORS = [["d1", "d2"], ["e1", "e2", "e3"]]
WRAPPERS: dict[str, Wrap] = {
    "text": TextObservation,
    "blank": BlankMemory,
    "words": ShuffledMemory,
    "turns": functools.partial(ShuffledMemory, unit="turns", seed=3),
    "episodes": functools.partial(ShuffledMemory, unit="episodes", donors=DONORS),
    "budget": functools.partial(BudgetSchedule, stages=[{}, {"memory_tokens": 2}], episodes_per_stage=1),
    "scale": functools.partial(ScaleReward, scale=0.5),
}


def search(memory: str) -> str:
    return f'<mem>{memory}</mem><tool_call>{{"name": "search", "arguments": {{"queries": ["x"]}}}}</tool_call>'


OUTPUTS = [search("one two three four five"), search("six seven eight nine"), "no action", search("ten eleven twelve")]


def play(env: gym.Env[Any, Any], seed: int = 5) -> list[Any]:
    record: list[Any] = [env.reset(seed=seed)]
    record += [env.step(output) for output in OUTPUTS]
    return [*record, env.reset()]


def shown(env: gym.Env[Any, Any], seed: int = 5) -> list[str]:
    return [step[0]["memory"] for step in play(env, seed)[1:-1]]


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_specs_and_copies_make_the_same_stack(wrap: Wrap) -> None:
    env = wrap(gym.make(ID, goals=2, format_penalty=0.1))
    copy = pickle.loads(pickle.dumps(env))
    assert env.spec is not None
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    expected = play(env)
    assert play(copy) == expected
    assert play(again) == expected
    env.step(OUTPUTS[0])
    middle = pickle.loads(pickle.dumps(env))
    assert middle.step(OUTPUTS[1]) == env.step(OUTPUTS[1])


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_changes_what_it_is_named_after_and_nothing_else(wrap: Wrap) -> None:
    plain, wrapped = gym.make(ID, goals=2, format_penalty=0.1), wrap(gym.make(ID, goals=2, format_penalty=0.1))
    for bare, other in zip(play(plain), play(wrapped), strict=True):
        if isinstance(other[0], dict):
            for name in ("task", "tool_result", "budget"):
                assert other[0][name] == bare[0][name]  # the noise took nothing from the environment's generator
        if len(bare) == 2:
            assert other[1]["task"] == bare[1]["task"]
            continue
        assert other[2:4] == bare[2:4]
        assert other[1] == sum(other[4]["reward_components"].values())
        assert {**other[4], "reward_components": 0, "memory_truncated": 0} == {
            **bare[4],
            "reward_components": 0,
            "memory_truncated": 0,
            **({"budget_stage": other[4]["budget_stage"]} if "budget_stage" in other[4] else {}),
        }


def test_blank_memory_hides_what_is_stored() -> None:
    env = BlankMemory(gym.make(ID))
    env.reset(seed=0)
    observation, *_, info = env.step(OUTPUTS[0])
    assert observation["memory"] == ""
    assert info["memory_written"]
    inner = env.unwrapped
    assert isinstance(inner, MemoryEnv)
    assert inner.stored_memory == "one two three four five"
    assert gym.make(ID).unwrapped.stored_memory == ""  # type: ignore[attr-defined]


def test_words_are_kept_and_their_order_is_not() -> None:
    first, *_, last = shown(ShuffledMemory(gym.make(ID)))
    assert Counter(first.split()) == Counter(["one", "two", "three", "four", "five"])
    assert first != "one two three four five"
    assert Counter(last.split()) == Counter(["ten", "eleven", "twelve"])
    orders = {tuple(shown(ShuffledMemory(gym.make(ID), seed=seed))) for seed in range(12)}
    assert len(orders) > 8


def test_a_turn_is_an_earlier_one_of_the_same_episode() -> None:
    stored = ["", "one two three four five", "six seven eight nine", "six seven eight nine", "ten eleven twelve"]
    seen: dict[int, set[str]] = {1: set(), 2: set(), 3: set(), 4: set()}
    for seed in range(40):
        for turn, memory in enumerate(shown(ShuffledMemory(gym.make(ID), unit="turns", seed=seed)), start=1):
            seen[turn].add(memory)
    assert seen == {turn: set(stored[:turn]) for turn in seen}  # never the present one, and each of the others


def test_donors_keep_their_turns_for_a_whole_episode() -> None:
    seen = {tuple(shown(ShuffledMemory(gym.make(ID), "episodes", seed, DONORS))) for seed in range(20)}
    assert seen == {("d1", "d2", "d2", "d2"), ("e1", "e2", "e3", "e3")}


def test_the_first_observation_is_shown_as_it_is() -> None:
    for wrap in (WRAPPERS["words"], WRAPPERS["turns"], WRAPPERS["episodes"]):
        assert play(wrap(gym.make(ID)))[0][0]["memory"] == ""


def test_noise_depends_on_neither_earlier_episodes_nor_the_environments_generator() -> None:
    env = WRAPPERS["turns"](gym.make(ID))
    first = shown(env)
    shown(env, seed=9)
    env.unwrapped.np_random.random(7)
    assert shown(env) == first


def test_budget_stages_by_episodes() -> None:
    stages = [{}, {"memory_tokens": 2, "max_turns": 3}, {"max_tool_calls": 1}]
    env = BudgetSchedule(gym.make(ID), stages, episodes_per_stage=2)
    seen = []
    for _ in range(7):
        observation, info = env.reset(seed=0)
        memory = env.step(OUTPUTS[0])[0]["memory"]
        seen.append((info["budget_stage"], observation["budget"], memory))
    full = "one two three four five"
    brief, short, one = "5 tool calls, 8 turns left", "5 tool calls, 3 turns left", "1 tool calls, 8 turns left"
    assert seen == [(0, brief, full)] * 2 + [(1, short, "one two")] * 2 + [(2, one, full)] * 3
    assert env.step("")[4]["budget_stage"] == 2
    assert "At most 1 tool calls" in env.get_wrapper_attr("instructions")


def test_a_stage_set_from_outside_begins_with_the_next_episode() -> None:
    env = TextObservation(BudgetSchedule(gym.make(ID), [{"memory_tokens": 4}, {"memory_tokens": 2}]))
    env.reset(seed=0)
    env.set_wrapper_attr("stage", 1)
    assert "Memory: one two three four\n" in env.step(OUTPUTS[0])[0]
    env.reset()
    assert "Memory: one two\n" in env.step(OUTPUTS[0])[0]
    assert env.get_wrapper_attr("stage") == 1
    wrap = functools.partial(BudgetSchedule, stages=[{}, {"memory_tokens": 1}])
    vector: Any = gym.make_vec(ID, 2, env_wrappers=[wrap])
    vector.set_attr("stage", 1)
    vector.reset(seed=0)
    assert vector.step((OUTPUTS[0], OUTPUTS[1]))[0]["memory"] == ("one", "six")
    vector.close()


def test_scaled_rewards_keep_their_parts_and_leave_the_scores() -> None:
    env = ScaleReward(gym.make(ID, outcome="f1", format_penalty=0.1, reward_hook=_bonus), scale=10)
    env.reset(seed=0)
    _, reward, *_, info = env.step("nothing")
    assert info["reward_components"] == {"outcome": 0.0, "format": -1.0, "hook/bonus": 2.5}
    assert reward == 1.5
    answers = "; ".join(goal.answers[0] for goal in env.get_wrapper_attr("task").goals)
    _, reward, *_, info = env.step(f"<mem>m</mem><answer>{answers}</answer>")
    assert (reward, info["outcome"], info["f1"]) == (12.5, 1.0, 1.0)


def _bonus(context: TurnContext) -> dict[str, float]:
    return {"bonus": 0.25}


def test_a_reward_changed_alone_is_refused() -> None:
    env = ScaleReward(gym.wrappers.TransformReward(gym.make(ID), lambda reward: float(reward) + 1), scale=2)
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"ScaleReward or a reward_hook"):
        env.step("")
    check_reward(0.1 + 0.2, {"reward_components": {"a": 0.3}})  # rounding is no change
    for reward, info in (
        (1.0, {}),
        (float("nan"), {"reward_components": {"a": 1.0}}),
        (1.0, {"reward_components": {}}),
    ):
        with pytest.raises(UserError):
            check_reward(reward, info)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (functools.partial(ShuffledMemory, unit="word"), "did you mean 'words'"),  # type: ignore[arg-type]
        (functools.partial(ShuffledMemory, unit="episodes"), "needs donors"),
        (functools.partial(ShuffledMemory, unit="episodes", donors=[["a"], []]), "needs donors"),
        (functools.partial(ShuffledMemory, donors=[["a"]]), "uses no donors"),
        (functools.partial(BudgetSchedule, stages=[]), "at least one stage"),
        (functools.partial(BudgetSchedule, stages=[{"queries_per_call": 1}]), "budget field of a stage"),
        (functools.partial(BudgetSchedule, stages=[{"max_turns": 1}]), "at least 2"),
        (functools.partial(BudgetSchedule, stages=[{}], episodes_per_stage=0), "at least 1"),
        (functools.partial(ScaleReward, scale=0), "above 0"),
        (functools.partial(ScaleReward, scale=float("inf")), "finite"),
        (functools.partial(ScaleReward, scale="2"), "finite number"),  # type: ignore[arg-type]
        (lambda env: BlankMemory(TextObservation(env)).reset(), "around it"),  # type: ignore[arg-type]
        (lambda env: ShuffledMemory(TextObservation(env)).reset(), "around it"),  # type: ignore[arg-type]
        (lambda env: TextObservation(TextObservation(env)).reset(), "around it"),  # type: ignore[arg-type]
        (lambda env: BudgetSchedule(gym.make("CartPole-v1"), [{}]), "MemoryEnv"),
        (lambda env: setattr(BudgetSchedule(env, [{}]), "stage", 1), "between 0 and 0"),
        (lambda env: setattr(BudgetSchedule(env, [{}], 3), "stage", 0), "counted by episodes"),
    ],
)
def test_what_cannot_be_meant_is_a_user_error(wrap: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        wrap(gym.make(ID))


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != "text"])
def test_in_the_vector_environment_each_is_as_alone(name: str) -> None:
    vector = gym.make_vec(ID, 2, env_wrappers=[WRAPPERS[name]], text=True, format_penalty=0.1)
    assert isinstance(vector, ThreadPoolVectorEnv)
    singles = [TextObservation(WRAPPERS[name](gym.make(ID, format_penalty=0.1))) for _ in range(2)]
    texts, _ = vector.reset(seed=5)
    assert texts == tuple(env.reset(seed=5 + slot)[0] for slot, env in enumerate(singles))
    for output in OUTPUTS:
        texts, rewards, *_ = vector.step((output, output))
        alone = [env.step(output) for env in singles]
        assert texts == tuple(step[0] for step in alone)
        assert rewards.tolist() == [step[1] for step in alone]
    vector.close()


def test_wrappers_are_exported() -> None:
    for wrapper in (TextObservation, BlankMemory, ShuffledMemory, BudgetSchedule, ScaleReward):
        assert getattr(mempo_env, wrapper.__name__) is wrapper
