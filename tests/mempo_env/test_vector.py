"""Sync, async and our thread pool give the same; the text wrapper; registration."""

from __future__ import annotations

import json
import pickle
import threading
import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

import mempo_env
from mempo_env.prompts import render_observation
from mempo_env.vector import ThreadPoolVectorEnv

ID = "MemPO-MultiGoal-v0"
SETTINGS: dict[str, Any] = {"goals": (1, 3), "budget": {"max_turns": 4}, "outcome": "f1", "format_penalty": 0.1}
N = 3


def outputs(step: int) -> tuple[str, ...]:
    """Episodes of different lengths, so that autoreset happens at different steps."""
    search = '<mem>m{}</mem><tool_call>{{"name": "search", "arguments": {{"queries": ["Mira plays"]}}}}</tool_call>'
    answer = "<mem>m</mem><answer>x; y</answer>"
    return tuple(answer if (step + slot) % (slot + 3) == 0 else search.format(step) for slot in range(N))


def play(env: SyncVectorEnv | AsyncVectorEnv | ThreadPoolVectorEnv) -> list[Any]:
    record: list[Any] = [env.reset(seed=11)]
    record += [env.step(outputs(step)) for step in range(10)]
    record.append(env.reset(seed=[5, None, 7], options={})[0]["task"][::2])
    env.close()
    return record


def test_sync_async_and_threads_are_equal() -> None:
    sync = gym.make_vec(ID, N, vectorization_mode="sync", **SETTINGS)
    threads = gym.make_vec(ID, N, **SETTINGS)
    parallel = gym.make_vec(
        ID, N, vectorization_mode="async", vector_kwargs={"shared_memory": False, "context": "spawn"}, **SETTINGS
    )
    assert isinstance(sync, SyncVectorEnv)
    assert isinstance(threads, ThreadPoolVectorEnv)
    assert isinstance(parallel, AsyncVectorEnv)
    assert threads.metadata["autoreset_mode"] == sync.metadata["autoreset_mode"]
    expected = play(sync)
    ends = sum(int((step[2] | step[3]).sum()) for step in expected[1:-1])
    assert ends >= 5, "the outputs must end episodes, or autoreset is not tested"
    for other in (threads, parallel):
        for at, (ours, theirs) in enumerate(zip(expected, play(other), strict=True)):
            assert data_equivalence(ours, theirs, exact=True), at


def test_threads_step_side_by_side_in_slot_order() -> None:
    env = ThreadPoolVectorEnv(N, **SETTINGS)
    env.reset(seed=0)
    barrier = threading.Barrier(N, timeout=10)
    for slot, single in enumerate(env.envs):
        inner = single.unwrapped
        step = inner.step

        def slow(action: str, slot: int = slot, step: Any = step) -> Any:
            barrier.wait()  # breaks unless all are stepped at the same time
            time.sleep(0.02 * (N - slot))
            return step(action)

        inner.step = slow  # type: ignore[method-assign]
    observation, *_ = env.step(tuple(f"<mem>slot {slot}</mem>" for slot in range(N)))
    assert observation["memory"] == ("slot 0", "slot 1", "slot 2")
    env.close()
    env.close()


def test_an_error_in_one_environment_is_raised_and_the_others_stay_usable() -> None:
    env = ThreadPoolVectorEnv(N, **SETTINGS)
    with pytest.raises(RuntimeError, match="reset"):
        env.envs[0].unwrapped.step("")
    env.reset(seed=0)
    with pytest.raises(mempo_env.UserError, match="unknown reset option"):
        env.reset(seed=0, options={"nope": 1})
    assert env.reset(seed=0)[0]["task"] == env.reset(seed=0)[0]["task"]
    with pytest.raises(ValueError, match=r"shorter|longer|argument"):
        env.step(("too few",))
    mask = np.array([True, False, False])
    before = env.step(("",) * N)[0]
    after, _ = env.reset(seed=[9, None, None], options={"reset_mask": mask})
    assert after["task"][0] != before["task"][0]
    assert after["task"][1:] == before["task"][1:]
    env.close()
    with pytest.raises(ValueError, match="at least 1"):
        ThreadPoolVectorEnv(0)


@pytest.mark.parametrize("seed", [(3, 4, 5), np.int64(3), np.array([3, 4, 5]), [3, 4]])
def test_a_seed_of_another_type_is_as_in_gymnasium_and_never_ignored(seed: Any) -> None:
    def first(mode: str | None) -> Any:
        env = gym.make_vec(ID, N, vectorization_mode=mode, **SETTINGS)
        try:
            return env.reset(seed=seed)[0]["task"]
        except Exception as problem:
            return type(problem)
        finally:
            env.close()

    assert first(None) == first("sync")


def test_text_observation() -> None:
    single = gym.make(ID, goals=2)
    observation, _ = single.reset(seed=4)
    text = mempo_env.TextObservation(gym.make(ID, goals=2))
    shown, _ = text.reset(seed=4)
    assert shown == render_observation(observation)
    assert shown in text.observation_space
    assert text.spec is not None
    assert gym.make(text.spec).reset(seed=4)[0] == shown
    long, _ = mempo_env.TextObservation(gym.make(ID, goals=2), instructions=True).reset(seed=4)
    assert long == f"{single.get_wrapper_attr('instructions')}\n\n{shown}"
    vector = gym.make_vec(ID, 2, goals=2, text=True)
    assert vector.reset(seed=4)[0][0] == shown
    assert vector.step(("", ""))[0][0].startswith("Task: ")
    vector.close()


def test_registration_and_spec() -> None:
    mempo_env.register_envs()  # a second time changes nothing
    env = gym.make(f"mempo_env:{ID}", goals=4, dataset="closed-world", budget="brief", world={"distractors": 2})
    assert env.spec is not None
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    assert gym.make(spec).reset(seed=1)[0] == env.reset(seed=1)[0]
    assert json.loads(env.spec.to_json())["kwargs"]["goals"] == 4
    assert pickle.loads(pickle.dumps(env.unwrapped)).reset(seed=1)[0] == env.reset(seed=1)[0]


def test_all_exports_exist() -> None:
    assert all(hasattr(mempo_env, name) for name in mempo_env.__all__)
