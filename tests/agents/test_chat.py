"""The chat-completions agent against a server of this process, over real HTTP, that also misbehaves."""

from __future__ import annotations

import importlib.util
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import mempo_env  # noqa: F401  (registers the environments)
from mempo_env.actions import Answer, ToolCall, parse
from mempo_env.agents.agent_spec import AgentSpec
from mempo_env.agents.base import TurnRequest
from mempo_env.agents.chat import ChatAgent, cut, side_by_side
from mempo_env.agents.contexts import HistoryContext, Mem1Context
from mempo_env.agents.evaluation import evaluate
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.make_agent import make_agent
from mempo_env.agents.rollout import group_specs, rollout
from mempo_env.agents.wording import Wording
from mempo_env.errors import UserError
from mempo_env.prompt_styles import MEM1, OWN
from mempo_env.records import Episode
from mempo_env.tokens import RegexTokenCounter

if importlib.util.find_spec("openai") is None:
    pytest.skip("needs the openai client (pip install 'mempo-env[chat]')", allow_module_level=True)

_spec = importlib.util.spec_from_file_location("fake_chat_server", Path(__file__).parent / "fake_chat_server.py")
assert _spec is not None
assert _spec.loader is not None
fake = importlib.util.module_from_spec(_spec)
sys.modules["fake_chat_server"] = fake  # dataclasses look their module up
_spec.loader.exec_module(fake)
Reply, FakeChatServer = fake.Reply, fake.FakeChatServer

ANSWER = "<mem>m</mem><answer>chess"
MakeRequest = Callable[..., TurnRequest]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's first pause is half a second, which a test has no use for."""
    import openai._base_client

    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def agent(server: Any, context: Any = None, wording: Wording | None = None, **settings: Any) -> ChatAgent:
    spec = AgentSpec("chat", model="m", base_url=server.base_url, **{"timeout": 5.0, "retries": 2, **settings})
    return ChatAgent(spec, context, wording or Wording(), pause=0.01)


def always(reply: Any) -> Callable[[int, dict[str, Any]], Any]:
    return lambda _number, _body: reply


def test_an_episode_is_played_and_counted_by_the_server() -> None:
    """The server answers as the expert would: what it is sent must hold all the expert's words."""

    def factory() -> Any:
        return gym.make("MemPO-MultiGoal-v0", goals=2, split="dev")

    expected = rollout(ExpertAgent(), factory, group_specs([3], 1), seed=0, step=0)[0]

    def answer(_number: int, body: dict[str, Any]) -> Any:
        last = body["messages"][-1]["content"]
        turn = next(turn for turn in reversed(expected.turns) if (turn.observation["tool_result"] or "Task") in last)
        return Reply(turn.text)

    with FakeChatServer(answer) as server:
        played = rollout(agent(server), factory, group_specs([3], 1), seed=0, step=0)[0]
    assert [turn.text for turn in played.turns] == [turn.text for turn in expected.turns]
    assert played.scores == expected.scores == {"em": 1.0, "f1": 1.0, "success": 1.0}
    assert {(turn.n_prompt, turn.n_output) for turn in played.turns} == {(11, 7)}
    assert not any(turn.has_ids for turn in played.turns)
    first = server.requests[0]
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert first["temperature"] == 0.0
    assert first["max_tokens"] == 512
    assert first["stop"] == ["</tool_call>", "</answer>"]
    assert server.headers[0]["authorization"] == "Bearer none"


def test_outputs_keep_the_order_of_the_requests_and_the_bound_on_requests_under_way(turn_request: MakeRequest) -> None:
    def answer(_number: int, body: dict[str, Any]) -> Any:
        name = re.search(r"memory-(\d+)", body["messages"][-1]["content"])
        assert name is not None
        return Reply(f"<mem>{name[1]}</mem><answer>a</answer>", delay=0.05 * (int(name[1]) % 3 == 0))

    with FakeChatServer(answer) as server:
        outputs = agent(server, concurrency=3).act([turn_request(i, memory=f"memory-{i}") for i in range(12)])
    assert [parse(output.text).memory for output in outputs] == [str(i) for i in range(12)]
    assert 1 < server.most_at_once <= 3


def test_seeds_are_the_turns_own_and_sampling_is_as_asked(turn_request: MakeRequest) -> None:
    with FakeChatServer(always(Reply(ANSWER))) as server:
        for _ in range(2):
            agent(server, greedy=False, temperature=0.7, concurrency=1).act([turn_request(i) for i in range(3)])
        agent(server, send_seed=False, stop_at_action=False).act([turn_request()])
    seeds = [body.get("seed") for body in server.requests]
    assert len(set(seeds[:3])) == 3
    assert seeds[:3] == seeds[3:6]
    assert seeds[6] is None
    assert {(body["temperature"], body["top_p"]) for body in server.requests[:6]} == {(0.7, 1.0)}
    assert "stop" not in server.requests[6]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_passing_failure_is_tried_again(status: int, turn_request: MakeRequest) -> None:
    with FakeChatServer(lambda number, _: Reply("busy", status) if number < 2 else Reply(ANSWER)) as server:
        output = agent(server).act([turn_request()])[0]
    assert output.error is None
    assert output.text == f"{ANSWER}</answer>"
    assert len(server.requests) == 3


GARBAGE = [
    b"not json",
    b"{}",
    b"[]",
    b"null",
    b'{"choices": []}',
    b'{"choices": [{"message": null}]}',
    b'{"choices": [{"message": {"content": [1]}}]}',
    b'{"choices": "no"}',
]


@pytest.mark.parametrize("body", GARBAGE)
def test_garbage_is_tried_again_and_then_a_fault(body: bytes, turn_request: MakeRequest) -> None:
    with FakeChatServer(lambda number, _: Reply(body) if number < 2 else Reply(ANSWER)) as server:
        assert agent(server).act([turn_request()])[0].error is None
    with FakeChatServer(always(Reply(body))) as server:
        output = agent(server).act([turn_request()])[0]
    assert output.error is not None
    assert "Garbled" in output.error
    assert len(server.requests) == 3


def test_garbage_of_another_type_is_a_fault_too(turn_request: MakeRequest) -> None:
    with FakeChatServer(always(Reply(b"<html>proxy</html>", headers={"Content-Type": "text/html"}))) as server:
        assert "Garbled" in str(agent(server, retries=0).act([turn_request()])[0].error)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply("overloaded", 500), "InternalServerError"),
        (Reply("slow down", 429), "RateLimitError"),
        (Reply("the prompt is longer than the context", 400), "BadRequestError"),
        (Reply(ANSWER, delay=0.6), "APITimeoutError"),
    ],
)
def test_a_lasting_failure_ends_the_episode_as_an_error_and_scores_nothing(reply: Any, said: str) -> None:
    def factory(_goals: int) -> Any:
        return lambda: gym.make("MemPO-MultiGoal-v0", goals=1, split="dev")

    with FakeChatServer(always(reply)) as server:
        chat = agent(server, retries=1, timeout=0.2)
        report = evaluate(chat, factory, [1], 2, 0)
    assert [episode.turns for episode in report.episodes] == [(), ()]
    assert all(said in str(episode.error) for episode in report.episodes)
    assert (report.rows[0].episodes, report.rows[0].errors) == (0, 2)
    assert report.rows[0].f1 != report.rows[0].f1  # nan: a mean over nothing


def test_one_failing_request_does_not_touch_the_others(turn_request: MakeRequest) -> None:
    def answer(_number: int, body: dict[str, Any]) -> Any:
        return Reply("no", 500) if "memory-1" in body["messages"][-1]["content"] else Reply(ANSWER)

    with FakeChatServer(answer) as server:
        outputs = agent(server, retries=0).act([turn_request(i, memory=f"memory-{i}") for i in range(3)])
    assert [output.error is None for output in outputs] == [True, False, True]


def test_no_server_is_an_error_and_a_refused_key_is_the_users(turn_request: MakeRequest) -> None:
    with FakeChatServer(always(Reply(""))) as server:
        gone = agent(server, retries=0)
    assert "APIConnectionError" in str(gone.act([turn_request()])[0].error)
    for status in (401, 403, 404):
        with FakeChatServer(always(Reply("no such model", status))) as server, pytest.raises(UserError) as caught:
            agent(server).act([turn_request(i) for i in range(3)])
        assert "no such model" in str(caught.value)
        assert "it ends in /v1" not in str(caught.value)
        assert "\n" not in str(caught.value)
    with FakeChatServer(always(Reply("no such page", 404))) as server:
        server.base_url = server.base_url.removesuffix("/v1")
        lost = agent(server)
        with pytest.raises(UserError) as caught:
            lost.act([turn_request()])
    assert "check the address (of most servers it ends in /v1), the model's name" in str(caught.value)


def test_the_system_role_is_folded_where_the_server_refuses_it(turn_request: MakeRequest) -> None:
    def answer(_number: int, body: dict[str, Any]) -> Any:
        if body["messages"][0]["role"] == "system":
            return Reply("System role not supported", 400)
        return Reply(ANSWER)

    with FakeChatServer(answer) as server:
        chat = agent(server)
        assert [output.error for output in chat.act([turn_request(i) for i in range(4)])] == [None] * 4
        before = len(server.requests)
        chat.act([turn_request()])
        assert len(server.requests) == before + 1
        assert server.requests[-1]["messages"][0]["content"].startswith("Answer all.\n\nTask: ")
    with FakeChatServer(answer) as server:
        assert "System role" in str(agent(server, system_role="keep").act([turn_request()])[0].error)
        agent(server, system_role="fold").act([turn_request()])
        assert [len(body["messages"]) for body in server.requests] == [2, 1]


def test_the_limit_has_another_name_where_the_server_wants_it(turn_request: MakeRequest) -> None:
    def answer(_number: int, body: dict[str, Any]) -> Any:
        wrong = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return Reply(wrong, 400) if "max_tokens" in body else Reply(ANSWER)

    with FakeChatServer(answer) as server:
        assert agent(server, max_new_tokens=9).act([turn_request()])[0].error is None
    assert server.requests[-1]["max_completion_tokens"] == 9


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": -1, "completion_tokens": 7}, {"prompt_tokens": "9", "completion_tokens": 7}]
)
def test_tokens_are_counted_here_where_the_server_does_not(usage: Any, turn_request: MakeRequest) -> None:
    request, counter = turn_request(memory="m"), RegexTokenCounter()
    with FakeChatServer(always(Reply(ANSWER, usage=usage))) as server:
        chat = agent(server)
        output = chat.act([request])[0]
    assert output.n_output == counter.count(f"{ANSWER}</answer>")
    assert output.n_prompt == counter.count("Answer all.") + counter.count("Task: Mira plays what?\nMemory: m")
    assert chat.counted_by == "regex"


def test_who_counted_is_said_where_it_was_both(turn_request: MakeRequest) -> None:
    with FakeChatServer(lambda number, _: Reply(ANSWER, usage=None) if number else Reply(ANSWER)) as server:
        chat = agent(server, concurrency=1)
        chat.act([turn_request()])
        assert chat.counted_by == "server"
        chat.act([turn_request()])
    assert chat.counted_by == "server; regex where it reports no usage"


def test_an_answer_without_text_says_nothing_and_reasoning_is_no_part_of_it(turn_request: MakeRequest) -> None:
    thought = {"reasoning_content": "<mem>secret</mem><answer>chess</answer>"}
    with FakeChatServer(always(Reply(None, fields=thought, choice={"finish_reason": "length"}))) as server:
        output = agent(server).act([turn_request()])[0]
    assert (output.text, output.error, output.stop_reason) == ("", None, "length")
    assert output.n_output == 7
    with FakeChatServer(always(Reply("<think>a</think>" + ANSWER, fields=thought))) as server:
        assert agent(server).act([turn_request()])[0].text == f"<think>a</think>{ANSWER}</answer>"


def test_lone_surrogates_do_not_break_the_next_request() -> None:
    def factory() -> Any:
        return gym.make("MemPO-MultiGoal-v0", goals=1, memory="optional", budget={"max_turns": 2})

    with FakeChatServer(always(Reply("<mem>\ud800</mem> what"))) as server:
        episode = rollout(agent(server, HistoryContext()), factory, group_specs([0], 1), seed=0, step=0)[0]
    assert episode.error is None
    assert len(episode.turns) == 2


def test_under_a_foreign_style_the_environment_gets_its_own_grammar() -> None:
    def factory() -> Any:
        return gym.make("MemPO-MultiGoal-v0", goals=1, split="dev", budget="paper")

    def answer(number: int, _body: dict[str, Any]) -> Any:
        return Reply("<think>seen</think><search>Mira" if number == 0 else "<think>seen</think><answer>chess")

    with FakeChatServer(answer) as server:
        chat = agent(server, Mem1Context(), Wording.of(MEM1, factory().unwrapped))
        episode: Episode = rollout(chat, factory, group_specs([0], 1), seed=0, step=0)[0]
    assert isinstance(episode.turns[0].action, ToolCall)
    assert isinstance(episode.turns[1].action, Answer)
    assert episode.turns[1].info["raw_text"] == "<think>seen</think><answer>chess</answer>"
    assert server.requests[0]["stop"] == ["</search>", "</query>", "</answer>"]
    assert [message["role"] for message in server.requests[1]["messages"]] == ["user", "assistant", "user"]
    assert server.requests[1]["messages"][1]["content"] == "<think>seen</think><search>Mira</search>"
    assert server.requests[1]["messages"][2]["content"].startswith("<information>")


@pytest.mark.parametrize(
    ("text", "finish", "stopped_by", "expected"),
    [
        ("<mem>m</mem><answer>a", "stop", "", ("<mem>m</mem><answer>a</answer>", "action")),
        ("<mem>m</mem><answer>a", "length", "", ("<mem>m</mem><answer>a", "length")),
        ("<answer>a</answer> and then <answer>b</answer>", "stop", "", ("<answer>a</answer>", "action")),
        ("<answer>a</answer> and then", "length", "", ("<answer>a</answer>", "action")),
        ("<mem>a", "stop", "", ("<mem>a", "eos")),
        ("<mem>a", "stop", "</answer>", ("<mem>a</answer>", "eos")),
        ("hello", "stop", "", ("hello", "eos")),
        ("", "content_filter", "", ("", "")),
    ],
)
def test_outputs_end_where_their_first_action_does(
    text: str, finish: str, stopped_by: str, expected: tuple[str, str]
) -> None:
    assert cut(text, finish, OWN.tags, stopped_by) == expected


def test_threads_give_results_in_order_and_stop_at_the_first_error() -> None:
    assert side_by_side(lambda n: n * n, range(20), 4) == [n * n for n in range(20)]
    assert side_by_side(lambda n: n, [], 4) == []
    called = []

    def fails(n: int) -> int:
        called.append(n)
        if n == 1:
            raise KeyError(n)
        time.sleep(0.01)
        return n

    with pytest.raises(KeyError):
        side_by_side(fails, range(100), 2)
    assert len(called) < 100
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("chat-"))


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, turn_request: MakeRequest) -> None:
    env: Any = gym.make("MemPO-MultiGoal-v0", goals=1).unwrapped
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        make_agent(AgentSpec("chat", model="m"), env)
    with pytest.raises(UserError, match="MY_KEY is not set"):
        make_agent(AgentSpec("chat", model="m", base_url="http://localhost:1/v1", api_key_env="MY_KEY"), env)
    monkeypatch.setenv("MY_KEY", "secret")
    with FakeChatServer(always(Reply(ANSWER))) as server:
        spec = AgentSpec("chat", model="m", base_url=server.base_url, api_key_env="MY_KEY")
        make_agent(spec, env).act([turn_request()])
    assert server.headers[0]["authorization"] == "Bearer secret"


def test_a_missing_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'mempo-env\[chat\]'"):
        ChatAgent(AgentSpec("chat", model="m"))
