"""The conformance kit refuses an environment that breaks any of its promises, with a way to mend it."""

from __future__ import annotations

import functools
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import mempo_env
from mempo_env import MemoryEnv, Task
from mempo_env.testing import Check, check_memory_env
from mempo_env.testing.subject import Subject
from mempo_env.testing.vectors import vectors_agree
from mempo_env.vector import ThreadPoolVectorEnv

from . import broken_environments as broken
from . import broken_tools
from .environment_shapes import Sums

BROKEN: list[tuple[type[MemoryEnv], str, str]] = [
    (broken.GlobalRandom, "seed 0 does not replay", "self.np_random"),
    (broken.Clock, r"seed 0 does not replay .* info\['time'\]", "no clock"),
    (broken.Sharing, "seed 0 does not replay", "nothing left over"),
    (broken.GlobalDraw, "a global random generator was used", "never random or np.random"),
    (broken.GlobalNumpy, "depend on a global random generator", "self.np_random"),
    (broken.Unpicklable, "Unpicklable cannot be pickled", "no lambda"),
    (broken.Open, "in the middle of an episode it cannot be pickled", "__getstate__"),
    (broken.Forgetful, "a pickled copy goes on differently", "__getstate__"),
    (broken.Diary, "'tool_result' depends on more than memory and the last call", "keep nothing else"),
    (broken.Undeclared, "'tool_result' depends on more than memory", "set stateful = True"),
    (broken.Remembering, "'tool_result' depends on more than memory", "keep nothing else"),
    (broken.Dishonest, "the reward 1.0 is not the sum of its parts", "reward_hook"),
    (broken.Infinite, "the reward parts are", "finite"),
    (broken.Raising, "step raised UnicodeEncodeError: .*surrogates", "ToolArgumentError"),
    (broken.Trusting, "step raised (KeyError|TypeError)", "a tool raises ToolArgumentError"),
    (broken.Exact, r"tool take takes \{'side': 'left'\} but not \{'side': ' left '\}", "strip texts"),
    (broken.Brittle, "step raised ValueError", "score takes any strings"),
    (broken.BothEnds, "both terminated and truncated", "an answer terminates"),
    (broken.Accepting, "an unknown reset option is accepted silently", "hand the options on"),
    (broken.Deaf, "options={'task': ..} is not played", "hand the options on"),
    (broken.SetUpWhenDrawn, "a task that is given plays differently", r"prepare\(task\)"),
    (broken.LeftOver, "does not replay in the same environment", "nothing left over"),
    (broken.Endless, "the episode goes on after 8 turns", "leave the turns"),
    (broken.Uncounted, "no format error 'budget_spent'", "leave the calls"),
    (broken.LongMemory, "the memory is over its cap of 256 tokens", "leave the memory"),
    (broken.OwnMemory, r"the memory is '.*\(noted\)', but the agent wrote", "what the agent wrote and nothing else"),
    (broken.Unescaped, "'tool_result' shows tags of the protocol", "escape_tags"),
    (broken.Surrogates, "'tool_result' holds lone surrogates", "escape_tags"),
    (broken.Listening, "a hostile result of tool next ended the episode", "a result is data"),
    (broken.Painting, "an episode that is rendered goes on differently", "change nothing in render"),
    (broken.Blank, "render gave None", "return text"),
    (broken.Loud, "render gave something with render_mode=None", "return None"),
    (broken.Sentences, "vocabulary has 'two words'", "single words"),
    (broken.Growing, "vocabulary or phrases change with the episode", "words of all tasks"),
    (broken.TwoTools, "two tools have one name", "its own"),
    (broken.NoSchema, r"tool take requires \['shelf'\]", "add it to properties"),
    (broken.Changing, "the tools or the instructions change", "the same tools in every episode"),
    (broken.TooMany, "drew 7 goals; goals=1 was asked for", "draw_goals"),
    (broken.Impossible, "reset.* raised ValueError: .* has no gold answer", "sample_task and prepare must work"),
    (broken.Careless, "Careless has no budget", r"super\(\).__init__"),
    (broken.OtherSpace, r"the fields of observation_space are \(\)", "keep the space"),
    (broken.Warned, "check_env (warns|fails)", "Gymnasium's API"),
    (
        broken_tools.DictSpecs,
        r"the spec of tool DictSpec is of type dict: \{'name': 'ask'",
        r"mempo_env\.ToolSpec\(name",
    ),
    (broken_tools.OneTool, r"tools is <.*Shelf object.*>, no list or tuple", r"returns a list or a tuple.*\(one,\)"),
    (broken_tools.NoTools, "tools is None, no list or tuple", "@property"),
    (broken_tools.Method, "tools is <bound method .*, no list or tuple", "@property"),
    (broken_tools.Late, "reading tools raised AttributeError: .*'shelf'", "make in __init__ what it needs"),
    (broken_tools.ToolClass, "tools has the class Counter", r"give an object: Counter\(\.\.\)"),
    (broken_tools.NoList, "the parameters of tool take are no JSON schema: TypeError", "required"),
    (broken_tools.Number, "tool 'give' returned 7, of type int; its call.* must return a str", r"str\(result\)"),
    (broken_tools.Nothing, "tool 'give' returned None, of type NoneType", r"str\(result\)"),
    (broken_tools.Rows, r"tool 'give' returned \['a row', .*\.\., of type list", r"json\.dumps\(result\)"),
    (broken_tools.Wordless, "vocabulary is None, no list or tuple", "@property"),
]


@pytest.mark.parametrize(("cheat", "seen", "mend"), BROKEN, ids=[cheat.__name__ for cheat, *_ in BROKEN])
def test_a_broken_promise_is_found_and_the_message_says_what_to_mend(
    cheat: type[MemoryEnv], seen: str, mend: str
) -> None:
    state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    with pytest.raises(AssertionError) as caught:
        check_memory_env(cheat())
    what, _, cure = str(caught.value).partition(". Mend: ")
    assert re.search(seen, what, re.DOTALL), what
    assert re.search(mend, cure), cure
    assert len(str(caught.value)) < 900, "a message is short, whatever was played"
    if cheat not in (broken.GlobalRandom, broken.GlobalDraw):
        assert random.getstate() == state
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index]  # noqa: NPY002


def test_wrapped_environments_are_refused() -> None:
    with pytest.raises(AssertionError, match="without wrappers"):
        check_memory_env(gym.make(mempo_env.MULTI_GOAL_ID))  # type: ignore[arg-type]


# Promises that need a registered environment, or a module that others can import --------------------------------------


@pytest.fixture
def registered() -> Iterator[Any]:
    made = []

    def register(env_id: str, entry_point: Any, **more: Any) -> MemoryEnv:
        gym.register(env_id, entry_point=entry_point, **more)
        made.append(env_id)
        return gym.make(env_id).unwrapped  # type: ignore[return-value]

    yield register
    for env_id in made:
        del gym.registry[env_id]


def test_a_vector_environment_of_another_id_is_found(registered: Any) -> None:
    env = registered("Sums-v0", Sums, vector_entry_point="mempo_env.vector:ThreadPoolVectorEnv")
    with pytest.raises(AssertionError, match=r"make_vec makes MultiGoalEnv. Mend: .*env_id='Sums-v0'"):
        check_memory_env(env)
    env = registered("Sums-v1", Sums, vector_entry_point=functools.partial(ThreadPoolVectorEnv, env_id="Sums-v1"))
    skipped = [check.promise for check in check_memory_env(env) if check.skipped]
    assert not any("vector" in promise or "instance" in promise for promise in skipped)


class Numbered(Sums):
    """Every instance is another one."""

    made = 0

    def __init__(self, **memory_env: Any) -> None:
        super().__init__(**memory_env)
        Numbered.made += 1
        self.number = Numbered.made

    def first_result(self, task: Task) -> str:
        return str(self.number)


def test_instances_that_differ_are_found(registered: Any) -> None:
    with pytest.raises(AssertionError, match=r"another instance .* differently: reset.*'tool_result'.*Mend: draw"):
        check_memory_env(registered("Numbered-v0", Numbered))


class Rushed(Sums):
    """Instances that play at the same time get in each other's way."""

    running = 0

    def step(self, action: str) -> Any:
        Rushed.running += 1
        time.sleep(0.01)
        among = Rushed.running
        Rushed.running -= 1
        observation, *rest = super().step(action)
        return (observation | {"tool_result": f"{among}"}, *rest)


def test_episodes_that_disturb_each_other_are_found(registered: Any) -> None:
    env = registered("Rushed-v0", Rushed)
    with pytest.raises(AssertionError, match=r"in a vector environment .* ThreadPool.*Mend: share nothing"):
        vectors_agree(Subject(env, 0))


SETS = """
from mempo_env import Goal, MemoryEnv, Task

class Sets(MemoryEnv):
    def sample_task(self, rng):
        words = list({"ash", "beech", "cedar", "elm", "fir", "larch", "oak", "pine", "yew"})
        return Task((Goal(f"{words[int(rng.integers(9))]}?", ("x",)),))
"""


def test_the_order_of_a_set_is_found_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sets_of_trees.py").write_text(SETS)
    monkeypatch.syspath_prepend(tmp_path)
    import sets_of_trees  # type: ignore[import-not-found]

    try:
        with pytest.raises(AssertionError, match=r"another process plays differently: .*Mend: .*no order of a set"):
            check_memory_env(sets_of_trees.Sets())
        (tmp_path / "sets_of_trees.py").write_text(SETS.replace('list({"ash"', 'sorted({"ash"'))
        del sys.modules["sets_of_trees"]
        import sets_of_trees

        checks = check_memory_env(sets_of_trees.Sets())
        assert Check("another process plays alike") in checks
    finally:
        del sys.modules["sets_of_trees"]
