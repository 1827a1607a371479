"""Environments by id: which arguments they take, options as they are typed, and what a run hands to them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from mempo_env.algos.presets import get_preset
from mempo_env.algos.setup import env_settings
from mempo_env.env import MemoryEnv
from mempo_env.envs.making import env_arguments, make_env, parse_options
from mempo_env.errors import UserError
from mempo_env.records import Goal, Task
from mempo_env.tools import Tool


class PlainEnv(MemoryEnv):
    """Takes one argument of its own and hands on the rest."""

    def __init__(self, length: int = 3, **memory_env: Any) -> None:
        super().__init__(**memory_env)
        self.length = length

    @property
    def tools(self) -> Sequence[Tool]:
        return ()

    def sample_task(self, rng: np.random.Generator) -> Task:
        return Task(tuple(Goal(f"{rng.integers(10)}?", ("yes",)) for _ in range(self.draw_goals(rng))))


class ClosedEnv(MemoryEnv):
    def __init__(self, goals: int) -> None:
        super().__init__(goals=goals)

    @property
    def tools(self) -> Sequence[Tool]:
        return ()

    def sample_task(self, rng: np.random.Generator) -> Task:
        raise AssertionError("no task is drawn of an environment that is only made")


def make_anything(**kwargs: Any) -> PlainEnv:
    return PlainEnv(**kwargs)


@pytest.fixture(autouse=True)
def _registered() -> Any:
    ids: dict[str, Callable[..., MemoryEnv]] = {"MemPOTest-Plain-v0": PlainEnv, "MemPOTest-Closed-v0": ClosedEnv}
    ids["MemPOTest-Any-v0"] = make_anything
    for env_id, entry in ids.items():
        gym.register(env_id, entry_point=entry)
    yield
    for env_id in ids:
        del gym.registry[env_id]


def test_arguments_follow_the_classes_as_far_as_they_hand_them_on() -> None:
    plain = env_arguments("MemPOTest-Plain-v0")
    assert plain is not None
    assert {"length", "goals", "split", "budget", "reward_hook"} <= plain
    assert "topk" not in plain
    assert env_arguments("MemPOTest-Closed-v0") == {"goals"}
    assert env_arguments("MemPOTest-Any-v0") is None
    search = env_arguments("mempo_env:MemPO-MultiGoal-v0")
    assert search is not None
    assert {"topk", "dataset", "memory"} <= search


def test_options_are_json_or_text() -> None:
    given = ["a=1", "b=1.5", "c=true", 'd={"x": [1]}', "e=some=text", "f="]
    assert parse_options(given) == {"a": 1, "b": 1.5, "c": True, "d": {"x": [1]}, "e": "some=text", "f": ""}


@pytest.mark.parametrize(
    ("option", "says"), [("chunks", "write name=value"), ("=3", "no setting"), ("a-b=3", "no set")]
)
def test_an_option_without_a_name_is_refused(option: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_options([option])


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="twice"):
        parse_options(["a=1", "a=2"])


def test_a_run_hands_an_environment_what_it_takes() -> None:
    config = dataclasses.replace(get_preset("tiny"), env="MemPOTest-Plain-v0", env_options=("length=7",))
    settings = env_settings(config)
    assert settings["length"] == 7
    assert settings["outcome"] == "fraction"
    assert not {"dataset", "topk", "world"} & set(settings)
    env = make_env(config.env, goals=(2, 3), split="dev", **settings).unwrapped
    assert isinstance(env, PlainEnv)
    assert (env.length, env.min_goals, env.max_goals, env.split) == (7, 2, 3, "dev")


def test_a_search_setting_that_was_changed_is_never_dropped() -> None:
    config = get_preset("tiny")
    config = dataclasses.replace(
        config, env="MemPOTest-Plain-v0", env_args=dataclasses.replace(config.env_args, topk=config.env_args.topk + 1)
    )
    with pytest.raises(UserError, match="takes no topk"):
        env_settings(config)


@pytest.mark.parametrize(
    ("option", "says"), [("lenth=3", "did you mean 'length'"), ("budget=paper", "a flag of its own")]
)
def test_an_option_that_is_none_is_refused(option: str, says: str) -> None:
    config = dataclasses.replace(get_preset("tiny"), env="MemPOTest-Plain-v0", env_options=(option,))
    with pytest.raises(UserError, match=says):
        env_settings(config)


def test_a_range_of_goals_is_drawn_and_a_number_takes_no_randomness() -> None:
    env = PlainEnv(goals=(2, 4))
    drawn = [env.draw_goals(np.random.default_rng(seed)) for seed in range(50)]
    assert set(drawn) == {2, 3, 4}
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    assert PlainEnv(goals=3).draw_goals(rng) == 3
    assert rng.bit_generator.state == state
