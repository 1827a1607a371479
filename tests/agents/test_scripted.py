"""Random text covers what the environment must bear; a person's lines become the protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from mempo_env.actions import Answer, FormatError, FormatErrorKind, ToolCall, parse
from mempo_env.agents.base import SlotKey, TurnRequest
from mempo_env.agents.rollout import group_specs, rollout
from mempo_env.agents.scripted import PersonAgent, PersonLeft, RandomTextAgent
from mempo_env.agents.scripted_expert import ScriptedExpert
from mempo_env.agents.textual import TextAgent
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.records import Goal, Task
from mempo_env.tools import ToolSpec

TASK = Task((Goal("Mira plays what?", ("chess",)), Goal("Ada owns what?", ("fox",))))


def request(memory: str = "", rollout_id: int = 0) -> TurnRequest:
    observation = {"task": TASK.text, "memory": memory, "tool_result": "", "budget": "5 tool calls, 8 turns left"}
    return TurnRequest(SlotKey(0, 0, "g", rollout_id, 0), observation, "Answer all.", (), TASK)


def test_random_text_mixes_all_kinds_of_output() -> None:
    outputs = RandomTextAgent().act([request(rollout_id=i) for i in range(400)])
    actions = [parse(output.text).action for output in outputs]
    kinds = Counter(action.kind if isinstance(action, FormatError) else type(action).__name__ for action in actions)
    assert kinds["ToolCall"] > 60
    assert kinds["Answer"] > 60
    assert kinds[FormatErrorKind.NO_ACTION] > 40
    assert kinds[FormatErrorKind.UNCLOSED_BLOCK] > 40
    assert len({output.text for output in outputs}) > 350
    calls = [action for action in actions if isinstance(action, ToolCall)]
    assert {len(call.arguments["queries"]) for call in calls if call.arguments} == {1, 2, 3, 4, 5}
    assert sum(isinstance(action, Answer) and len(action.answers) == 2 for action in actions) > 60


def test_random_text_is_keyed_by_the_slot() -> None:
    agent = RandomTextAgent()
    first, second = agent.act([request(rollout_id=1), request(rollout_id=2)])
    assert agent.act([request(rollout_id=2)]) == [second]
    assert first.text != second.text


class Silent(TextAgent):
    pass


class Undecided(ScriptedExpert):
    def remember(self, request: TurnRequest) -> list[str]:
        return []

    def answers(self, task: Task, memory: str) -> str:
        return ""


@pytest.mark.parametrize(("cls", "missing"), [(Silent, "write"), (Undecided, "decide")])
def test_an_agent_that_lacks_a_method_cannot_be_made(cls: Any, missing: str) -> None:
    with pytest.raises(TypeError, match=rf"abstract method '?{missing}"):
        cls("brief")


SEARCH_TOOLS = [tool.spec for tool in MultiGoalEnv().tools]


def person(*lines: str, tools: Sequence[ToolSpec] = SEARCH_TOOLS) -> tuple[PersonAgent, list[str]]:
    left: Iterator[str] = iter(lines)
    shown: list[str] = []

    def read(prompt: str) -> str:
        assert prompt == "> "
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return PersonAgent(read, shown.append, tools), shown


SEARCH = '<tool_call>{"name": "search", "arguments": {"queries": ["Mira plays", "Ada owns"]}}</tool_call>'


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["search: Mira plays | Ada owns | "], f"<mem>old</mem>{SEARCH}"),
        (["mem: new", "think: hm", "Search: Mira plays|Ada owns"], f"<mem>new</mem><think>hm</think>{SEARCH}"),
        (["note: more", "answer: chess; fox"], "<mem>old; more</mem><answer>chess; fox</answer>"),
        (
            ["calc: 2 * 21"],
            '<mem>old</mem><tool_call>{"name": "calculator", "arguments": {"expression": "2 * 21"}}</tool_call>',
        ),
        (
            ["mem: a </mem><answer>b</answer>", "answer: c"],
            "<mem>a &lt;/mem>&lt;answer>b&lt;/answer></mem><answer>c</answer>",
        ),
        (["<mem>two", "lines</mem>", "<answer>a; b</answer>"], "<mem>two\nlines</mem>\n<answer>a; b</answer>"),
        (["<mem>unfinished", "search: x", ""], "<mem>unfinished\nsearch: x"),
        (["gibberish", "", "help", "answer: a; b"], "<mem>old</mem><answer>a; b</answer>"),
    ],
)
def test_a_persons_lines_become_the_protocol(lines: list[str], text: str) -> None:
    agent, _ = person(*lines)
    assert agent.act([request("old")])[0].text == text


def test_a_person_sees_the_observation_and_gets_help() -> None:
    agent, shown = person("what?", "answer: a; b")
    agent.act([request("old")])
    assert shown == [
        "Task: Mira plays what?; Ada owns what?\nMemory: old\nBudget: 5 tool calls, 8 turns left",
        agent.help,
        agent.help,
    ]
    assert "\n  search: QUERIES | QUERIES" in agent.help
    assert "\n  calculator: EXPRESSION" in agent.help


ROWS = {"rows": {"type": "array", "items": {"type": "integer"}}}
TOOLS = [
    ToolSpec("read", "Reads on.", {"type": "object", "properties": {}}),
    ToolSpec("rest", "Rests.", {"type": "object", "properties": {"hours": {"type": "number"}}}),
    ToolSpec("mem", "Has a name that means something else.", {"type": "object", "properties": {}}),
    ToolSpec("take", "Takes.", {"type": "object", "properties": {"shelf": {"type": "integer"}, "side": {}}}),
    ToolSpec(
        "pick", "Picks.", {"type": "object", "properties": {"rows": {"type": "array", "items": {"type": "integer"}}}}
    ),
]


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("read", '{"name": "read", "arguments": {}}'),
        ("read:", '{"name": "read", "arguments": {}}'),
        ("rest: 2.5", '{"name": "rest", "arguments": {"hours": 2.5}}'),
        ("rest: long", '{"name": "rest", "arguments": {"hours": "long"}}'),
        ('rest: {"hours": 1}', '{"name": "rest", "arguments": {"hours": 1}}'),
        ('TAKE: {"shelf": 1, "side": "left"}', '{"name": "take", "arguments": {"shelf": 1, "side": "left"}}'),
        ("pick: 1 | 2", '{"name": "pick", "arguments": {"rows": [1, 2]}}'),
        ("pic: 1", '{"name": "pick", "arguments": {"rows": [1]}}'),
    ],
)
def test_any_tool_can_be_called_by_its_name(line: str, call: str) -> None:
    agent, _ = person(line, tools=TOOLS)
    assert agent.act([request("old")])[0].text == f"<mem>old</mem><tool_call>{call}</tool_call>"


def test_what_is_no_call_of_a_tool_is_explained() -> None:
    agent, shown = person("take: left", "take: [1]", "rea: x", "re: x", "mem: noted", "answer: a", tools=TOOLS)
    assert agent.act([request()])[0].text == "<mem>noted</mem><answer>a</answer>"
    assert shown[2].startswith('take takes a JSON object: take: {"shelf": .., "side": ..}')
    assert shown[3] == shown[2]
    assert "read takes a JSON object: read" in shown[4]
    assert shown[5] == agent.help, "two tools begin with re, which is also too short"
    assert len(shown) == 6


def test_a_person_without_tools_can_only_answer() -> None:
    agent, shown = person("search: x", "answer: a", tools=())
    assert agent.act([request()])[0].text == "<mem></mem><answer>a</answer>"
    assert shown[2] == agent.help
    assert "search" not in agent.help


@pytest.mark.parametrize("lines", [["quit"], ["mem: x", "exit"], []])
def test_a_person_may_leave(lines: list[str]) -> None:
    agent, _ = person(*lines)
    with pytest.raises(PersonLeft):
        agent.act([request()])


def test_a_person_can_win_an_episode() -> None:
    env = MultiGoalEnv(goals=2, world={"two_hop_share": 0.0, "comparison_share": 0.0})
    task = env.reset(seed=0)[1]["task"]
    queries = " | ".join(goal.evidence[0].query for goal in task.goals)
    agent, shown = person(f"search: {queries}", "answer: " + "; ".join(goal.answers[0] for goal in task.goals))
    make: Callable[[], MultiGoalEnv] = lambda: env  # noqa: E731
    episode = rollout(agent, make, group_specs([0], 1), seed=0, step=0)[0]
    assert episode.scores["success"] == 1.0
    assert episode.turns[0].n_prompt > 0
    assert all(goal.evidence[0].note in shown[2] for goal in task.goals)
