"""The conformance kit accepts our environments and refuses one that breaks each of its promises, with a way to mend it.

Every class here is a proper environment but for the one promise it breaks.
"""

from __future__ import annotations

import functools
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import mempo_env
from mempo_env import Goal, MemoryEnv, Task, Tool, ToolArgumentError, ToolSpec
from mempo_env.actions import parse
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.metrics import AnswerScores
from mempo_env.testing import PROMISES, Check, check_memory_env
from mempo_env.testing.outputs import example, hostile_arguments
from mempo_env.testing.subject import Subject
from mempo_env.testing.vectors import vectors_agree
from mempo_env.vector import ThreadPoolVectorEnv

OURS = sorted(name for name in gym.registry if re.match(r"MemPO-", name))


def test_ours_are_registered() -> None:
    assert sorted(mempo_env.ENVIRONMENTS) == OURS


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"goals": (1, 5), "memory": "optional", "outcome": "f1", "format_penalty": 0.1},
        {"goals": 4, "memory": "off", "instructions": "terse", "split": "dev"},
    ],
)
def test_every_registered_environment_conforms(name: str, arguments: dict[str, Any]) -> None:
    checks = check_memory_env(gym.make(name, **arguments).unwrapped)  # type: ignore[arg-type]
    assert [check.promise for check in checks] == [promise for promise, _ in PROMISES]
    assert not any(check.skipped for check in checks)


@pytest.mark.parametrize(
    "arguments", [{"budget": "paper"}, {"goals": 16, "topk": 3}, {"budget": {"max_tool_calls": 1}}]
)
def test_the_search_environment_conforms_with_arguments_of_its_own(arguments: dict[str, Any]) -> None:
    check_memory_env(gym.make("MemPO-MultiGoal-v0", **arguments).unwrapped)  # type: ignore[arg-type]


def test_the_environment_conforms_on_real_data(shared_data: Path) -> None:
    check_memory_env(gym.make("MemPO-MultiGoal-v0", dataset="qa", data=str(shared_data / "nq")).unwrapped)  # type: ignore[arg-type]


# Proper environments of other shapes ----------------------------------------------------------------------------------


class Sums(MemoryEnv):
    """No tools at all."""

    def sample_task(self, rng: np.random.Generator) -> Task:
        numbers = [rng.integers(10, size=2).tolist() for _ in range(self.draw_goals(rng))]
        return Task(tuple(Goal(f"{a} + {b}?", (str(a + b),)) for a, b in numbers))


class Counter:
    """A tool with a place of its own."""

    spec = ToolSpec("next", "Counts on.", {"type": "object", "properties": {}})

    def __init__(self) -> None:
        self.at = 0

    def call(self, arguments: dict[str, Any]) -> str:
        if arguments:
            raise ToolArgumentError("next takes no arguments.")
        self.at += 1
        return str(self.at)


class Counting(Sums):
    stateful = True

    def __init__(self, **memory_env: Any) -> None:
        super().__init__(**memory_env)
        self.counter = Counter()

    @property
    def tools(self) -> Sequence[Tool]:
        return (self.counter,)

    def prepare(self, task: Task) -> None:
        self.counter.at = 0


class Shelf:
    """A tool with two arguments, neither of them a list of queries."""

    spec = ToolSpec(
        "take",
        "Takes from a shelf.",
        {
            "type": "object",
            "properties": {"shelf": {"type": "integer", "minimum": 1}, "side": {"enum": ["left", "right"]}},
            "required": ["shelf", "side"],
        },
    )

    def call(self, arguments: dict[str, Any]) -> str:
        shelf, side = arguments.get("shelf"), arguments.get("side")
        if type(shelf) is not int or not 1 <= shelf <= 9 or str(side).strip() not in ("left", "right"):
            raise ToolArgumentError("take takes a shelf from 1 to 9 and a side, left or right.")
        return f"{side} {shelf}: a book"


class Shelves(Sums):
    shelf: Tool = Shelf()

    @property
    def tools(self) -> Sequence[Tool]:
        return (self.shelf,)


@pytest.mark.parametrize("shape", [Sums, Counting, Shelves])
@pytest.mark.parametrize("memory", ["required", "off"])
def test_environments_of_other_shapes_conform(shape: type[Sums], memory: Any) -> None:
    checks = check_memory_env(shape(goals=(1, 3), memory=memory))
    skipped = [check for check in checks if check.skipped]
    assert Check("another instance with the same arguments plays alike", "it was not made by gym.make") in skipped


# Broken ones ----------------------------------------------------------------------------------------------------------


class GlobalRandom(MultiGoalEnv):
    def first_result(self, task: Task) -> str:
        return str(random.random())


class GlobalDraw(MultiGoalEnv):
    """Replays, since it seeds the global generator itself."""

    def prepare(self, task: Task) -> None:
        random.seed(1)
        super().prepare(task)


class GlobalNumpy(Sums):
    """Reads the global generator without moving it."""

    def first_result(self, task: Task) -> str:
        return str(np.random.get_state()[1][0])  # type: ignore[index]  # noqa: NPY002


class Clock(MultiGoalEnv):
    def step(self, action: str) -> Any:
        *rest, info = super().step(action)
        return (*rest, info | {"time": time.perf_counter()})


class Unpicklable(MultiGoalEnv):
    def __init__(self) -> None:
        super().__init__()
        self.hole = lambda: None


class Open(MultiGoalEnv):
    """Cannot be pickled while an episode runs."""

    def prepare(self, task: Task) -> None:
        super().prepare(task)
        self.lines = (line for line in ())  # type: ignore[var-annotated]


class Forgetful(MultiGoalEnv):
    """Loses what it knew of the episode when copied."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memory": "", "_tool_result": "", "_turn": 0}


class Diary(MultiGoalEnv):
    """Shows what was written before the last memory."""

    def step(self, action: str) -> Any:
        first = getattr(self, "first", None) or parse(action).memory or ""
        self.first = first
        observation, *rest = super().step(action)
        return (observation | {"tool_result": f"{observation['tool_result']} {first[:5]}"}, *rest)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.first = None
        return super().reset(seed=seed, options=options)


class Undeclared(Counting):
    stateful = False


class Remembering(Counting):
    """A stateful one that also shows what the agent thought."""

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        self.thoughts += "other" if "other" in action else ""
        return (observation | {"tool_result": observation["tool_result"] + self.thoughts}, *rest)

    def prepare(self, task: Task) -> None:
        super().prepare(task)
        self.thoughts = ""


class Dishonest(MultiGoalEnv):
    def step(self, action: str) -> Any:
        observation, reward, *rest = super().step(action)
        return (observation, reward + 1.0, *rest)


class Infinite(MultiGoalEnv):
    def step(self, action: str) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        parts = info["reward_components"] | {"own": float("nan")}
        return observation, sum(parts.values()), terminated, truncated, info | {"reward_components": parts}


class Raising(MultiGoalEnv):
    def step(self, action: str) -> Any:
        action.encode()
        return super().step(action)


class Trusting(Shelves):
    """Its tool believes the schema."""

    class _Shelf(Shelf):
        def call(self, arguments: dict[str, Any]) -> str:
            return f"{arguments['side']} {arguments['shelf'] + 1}"

    shelf = _Shelf()


class Exact(Shelves):
    """Its tool takes a text to the letter."""

    class _Shelf(Shelf):
        spec = ToolSpec("take", "Takes.", {"type": "object", "properties": {"side": {"enum": ["left", "right"]}}})

        def call(self, arguments: dict[str, Any]) -> str:
            if arguments.get("side") not in ("left", "right"):
                raise ToolArgumentError("take takes a side, left or right.")
            return "a book"

    shelf = _Shelf()


class BothEnds(MultiGoalEnv):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, truncated, info


class Accepting(MultiGoalEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed, options={k: v for k, v in (options or {}).items() if k == "task"})


class Deaf(MultiGoalEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed, options={k: v for k, v in (options or {}).items() if k != "task"})


class SetUpWhenDrawn(Sums):
    """Sets up what it shows when it draws the task, so that a task it is given looks otherwise."""

    hint = ""

    def sample_task(self, rng: np.random.Generator) -> Task:
        task = super().sample_task(rng)
        self.hint = task.text
        return task

    def first_result(self, task: Task) -> str:
        return self.hint

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        return (observation | {"tool_result": self.hint}, *rest)


class LeftOver(Counting):
    """Never goes back to the beginning."""

    def prepare(self, task: Task) -> None:
        pass

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"counter": Counter()}


class Endless(Sums):
    def step(self, action: str) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        self._done = terminated
        return observation, reward, terminated, False, info


class Uncounted(Counting):
    """Lets calls pass that are over the budget."""

    def step(self, action: str) -> Any:
        self._calls = 0
        return super().step(action)


class LongMemory(Sums):
    """Keeps the memory whole."""

    def _commit(self, memory: str | None) -> tuple[bool, bool]:
        self._memory = self._memory if memory is None else memory
        return memory is not None, False


class OwnMemory(Sums):
    """Writes into the agent's memory."""

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        return (observation | {"memory": observation["memory"] + " (noted)"}, *rest)


class Unescaped(Counting):
    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        return (observation | {"tool_result": observation["tool_result"].replace("&lt;", "<")}, *rest)


class Surrogates(Sums):
    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        return (observation | {"tool_result": "\ud800"}, *rest)


class Listening(Counting):
    """Takes what a tool says for an answer of the agent."""

    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        if "planted" in observation["tool_result"] and not truncated:
            terminated, info = True, info | {"em": 0.0, "f1": 0.0, "success": 0.0}
        return observation, reward, terminated, truncated, info


class Painting(MultiGoalEnv):
    """Takes a turn whenever it is looked at."""

    def render(self) -> Any:
        self._turn += 1
        return super().render()


class Blank(Sums):
    def render(self) -> Any:
        return None


class Loud(Sums):
    def render(self) -> Any:
        return "here I am"


class Brittle(Sums):
    def score(self, answers: Sequence[str], task: Task) -> AnswerScores:
        hits = tuple(float(int(answer) == 0) for answer in answers)
        return AnswerScores(hits, hits)


class Sentences(Sums):
    vocabulary = ("two words",)


class Growing(Sums):
    @property
    def vocabulary(self) -> Sequence[str]:
        return [] if self._task is None else ["more"]


class TwoTools(Shelves):
    @property
    def tools(self) -> Sequence[Tool]:
        return (self.shelf, self.shelf)


class NoSchema(Shelves):
    class _Shelf(Shelf):
        spec = ToolSpec("take", "Takes.", {"type": "object", "properties": {}, "required": ["shelf"]})

    shelf = _Shelf()


class Changing(Counting):
    @property
    def tools(self) -> Sequence[Tool]:
        return (self.counter,) if self._task is None or len(self.task.text) % 2 else ()


class TooMany(Sums):
    def sample_task(self, rng: np.random.Generator) -> Task:
        return Task((Goal("?", ("x",)),) * 7)


class Impossible(Sums):
    def sample_task(self, rng: np.random.Generator) -> Task:
        return Task((Goal("?", ()),))


class Careless(Sums):
    def __init__(self) -> None:
        pass


class OtherSpace(Sums):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Discrete(2)  # type: ignore[assignment]


class Warned(Sums):
    metadata = {"render_modes": []}  # noqa: RUF012

    def reset(self, *, seed: int | None = 3, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed, options=options)


SHARED: list[int] = []


class Sharing(Sums):
    """What one instance plays shows in another."""

    def first_result(self, task: Task) -> str:
        SHARED.append(1)
        return str(len(SHARED))


BROKEN: list[tuple[type[MemoryEnv], str, str]] = [
    (GlobalRandom, "seed 0 does not replay", "self.np_random"),
    (Clock, r"seed 0 does not replay .* info\['time'\]", "no clock"),
    (Sharing, "seed 0 does not replay", "nothing left over"),
    (GlobalDraw, "a global random generator was used", "never random or np.random"),
    (GlobalNumpy, "depend on a global random generator", "self.np_random"),
    (Unpicklable, "Unpicklable cannot be pickled", "no lambda"),
    (Open, "in the middle of an episode it cannot be pickled", "__getstate__"),
    (Forgetful, "a pickled copy goes on differently", "__getstate__"),
    (Diary, "'tool_result' depends on more than memory and the last call", "keep nothing else"),
    (Undeclared, "'tool_result' depends on more than memory", "set stateful = True"),
    (Remembering, "'tool_result' depends on more than memory", "keep nothing else"),
    (Dishonest, "the reward 1.0 is not the sum of its parts", "reward_hook"),
    (Infinite, "the reward parts are", "finite"),
    (Raising, "step raised UnicodeEncodeError: .*surrogates", "ToolArgumentError"),
    (Trusting, "step raised (KeyError|TypeError)", "a tool raises ToolArgumentError"),
    (Exact, r"tool take takes \{'side': 'left'\} but not \{'side': ' left '\}", "strip texts"),
    (Brittle, "step raised ValueError", "score takes any strings"),
    (BothEnds, "both terminated and truncated", "an answer terminates"),
    (Accepting, "an unknown reset option is accepted silently", "hand the options on"),
    (Deaf, "options={'task': ..} is not played", "hand the options on"),
    (SetUpWhenDrawn, "a task that is given plays differently", r"prepare\(task\)"),
    (LeftOver, "does not replay in the same environment", "nothing left over"),
    (Endless, "the episode goes on after 8 turns", "leave the turns"),
    (Uncounted, "no format error 'budget_spent'", "leave the calls"),
    (LongMemory, "the memory is over its cap of 256 tokens", "leave the memory"),
    (OwnMemory, r"the memory is '.*\(noted\)', but the agent wrote", "what the agent wrote and nothing else"),
    (Unescaped, "'tool_result' shows tags of the protocol", "escape_tags"),
    (Surrogates, "'tool_result' holds lone surrogates", "escape_tags"),
    (Listening, "a hostile result of tool next ended the episode", "a result is data"),
    (Painting, "an episode that is rendered goes on differently", "change nothing in render"),
    (Blank, "render gave None", "return text"),
    (Loud, "render gave something with render_mode=None", "return None"),
    (Sentences, "vocabulary has 'two words'", "single words"),
    (Growing, "vocabulary or phrases change with the episode", "words of all tasks"),
    (TwoTools, "two tools have one name", "its own"),
    (NoSchema, r"tool take requires \['shelf'\]", "add it to properties"),
    (Changing, "the tools or the instructions change", "the same tools in every episode"),
    (TooMany, "drew 7 goals; goals=1 was asked for", "draw_goals"),
    (Impossible, "reset.* raised ValueError: .* has no gold answer", "sample_task and prepare must work"),
    (Careless, "Careless has no budget", r"super\(\).__init__"),
    (OtherSpace, r"the fields of observation_space are \(\)", "keep the space"),
    (Warned, "check_env (warns|fails)", "Gymnasium's API"),
]


@pytest.mark.parametrize(("cheat", "seen", "mend"), BROKEN, ids=[cheat.__name__ for cheat, *_ in BROKEN])
def test_a_broken_promise_is_found_and_the_message_says_what_to_mend(
    cheat: type[MemoryEnv], seen: str, mend: str
) -> None:
    state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]  # noqa: NPY002
    with pytest.raises(AssertionError) as caught:
        check_memory_env(cheat())
    what, _, cure = str(caught.value).partition(". Mend: ")
    assert re.search(seen, what, re.DOTALL), what
    assert re.search(mend, cure), cure
    assert len(str(caught.value)) < 900, "a message is short, whatever was played"
    if cheat not in (GlobalRandom, GlobalDraw):
        assert random.getstate() == state
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[union-attr, index]  # noqa: NPY002


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
        import sets_of_trees  # type: ignore[import-not-found]

        checks = check_memory_env(sets_of_trees.Sets())
        assert Check("another process plays alike") in checks
    finally:
        del sys.modules["sets_of_trees"]


# What is played -------------------------------------------------------------------------------------------------------


def test_arguments_are_made_from_the_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "text": {"type": "string", "minLength": 3},
            "many": {"type": "array", "items": {"type": "integer", "minimum": 4}, "minItems": 2},
            "one_of": {"enum": ["red", "blue"]},
            "nested": {"type": "object", "properties": {"flag": {"type": "boolean"}}},
            "either": {"anyOf": [{"type": "number", "minimum": 2}, {"type": "string"}]},
        },
    }
    expected = {"text": "aaa", "many": [4, 4], "one_of": "red", "nested": {"flag": True}, "either": 2}
    assert example(schema) == expected
    found = hostile_arguments(ToolSpec("t", "T.", schema))
    for name in expected:
        assert {other: value for other, value in expected.items() if other != name} in found
        assert expected | {name: None} in found
        assert any(isinstance(arguments.get(name), list) and len(arguments[name]) == 1000 for arguments in found)
    assert not any(arguments == expected for arguments in found)


def test_phrases_are_the_json_around_arguments() -> None:
    spec = ToolSpec("t", "T.", {"type": "object", "properties": {"a": {"type": "array"}, "b": {"type": "string"}}})
    assert spec.phrases() == ['{"name": "t", "arguments": {"a": ["', '", "', '"], "b": "', '"}}']
    assert Counter.spec.phrases() == ['{"name": "next", "arguments": {}}']
    assert Counting().phrases == Counter.spec.phrases()


def test_an_environment_without_tools_says_so() -> None:
    env = Sums()
    env.reset(seed=0)
    assert "tool_call" not in env.instructions
    assert "<answer>" in env.instructions
    observation = env.step('<mem>m</mem><tool_call>{"name": "x", "arguments": {}}</tool_call>')[0]
    assert observation["tool_result"] == "Format error (unknown_tool): There is no tool; answer."


class Picky(Sums):
    def prepare(self, task: Task) -> None:
        if "planted" in task.text:
            raise mempo_env.UserError("no")


def test_a_hostile_task_may_be_refused_in_words() -> None:
    check_memory_env(Picky())
