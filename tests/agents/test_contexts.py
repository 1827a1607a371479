"""Context strategies: what each shows, purity, names with numbers, and that policies and experts play under each."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import mempo_env  # noqa: F401  (registers the environments)
from mempo_env.actions import Segment, ToolCall, parse
from mempo_env.agents.base import SlotKey, TurnRequest
from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.contexts import (
    CONTEXTS,
    HistoryContext,
    Mem1Context,
    MemoryContext,
    WindowContext,
    fold_system,
    get_context,
    memory_mode,
)
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.models import add_lora
from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.retrieved import RetrievedContext
from mempo_env.agents.rollout import group_specs, rollout
from mempo_env.agents.settings import SamplingConfig
from mempo_env.agents.textual import count_messages
from mempo_env.agents.wording import Wording
from mempo_env.errors import UserError
from mempo_env.metrics import token_costs
from mempo_env.prompt_styles import MEM1, SEARCH_R1
from mempo_env.records import Episode, Goal, Task, Turn
from mempo_env.tokens import RegexTokenCounter

TASK = Task((Goal("Mira plays what?", ("chess",)), Goal("Ida speaks what?", ("Dutch",))), id="t")
ALL = ("memory", "history", "window-2", "mem1", "retrieved", "retrieved-1")


def observation(memory: str = "", result: str = "", budget: str = "5 tool calls, 8 turns left") -> dict[str, str]:
    return {"task": TASK.text, "memory": memory, "tool_result": result, "budget": budget}


def turn(text: str, **fields: Any) -> Turn:
    return Turn(observation(**fields), text, parse(text).action, 0.0, {}, "", False, 1, 1)


def call(query: str, memory: str = "") -> str:
    asked = json.dumps({"name": "search", "arguments": {"queries": [query]}})
    return f"<mem>{memory}</mem><tool_call>{asked}</tool_call>"


HISTORY = (
    turn(call("Mira")),
    turn(call("Ida", "M chess"), memory="", result="Mira: plays chess"),
    turn(call("go", "M chess; I Dutch"), memory="M chess", result="Ida: speaks Dutch"),
)
NOW = TurnRequest(
    SlotKey(0, 0, "g", 0, 3), observation("M chess; I Dutch", "go: nothing found"), "Answer all.", HISTORY, TASK
)


def roles(messages: list[dict[str, str]]) -> str:
    return "".join(message["role"][0] for message in messages)


def shown(messages: list[dict[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages[1:])


def test_a_window_shows_the_last_turns_and_nothing_before() -> None:
    messages = WindowContext(1).messages(NOW)
    assert roles(messages) == "suau"
    assert messages[1]["content"].startswith(f"Task: {TASK.text}\nResult: Ida: speaks Dutch")
    assert messages[2]["content"] == HISTORY[2].text
    assert messages[3]["content"] == "Result: go: nothing found\nBudget: 5 tool calls, 8 turns left"
    assert "plays chess" not in shown(messages)
    assert WindowContext(3).messages(NOW) == WindowContext(9).messages(NOW) == HistoryContext().messages(NOW)
    first = dataclasses.replace(NOW, history=(), observation=observation())
    assert WindowContext(1).messages(first) == MemoryContext().messages(first)


def test_mem1_shows_state_query_and_information() -> None:
    messages = Mem1Context().messages(NOW)
    assert roles(messages) == "suau"
    assert messages[1]["content"] == f"Task: {TASK.text}"
    assert messages[2]["content"] == call("go", "M chess; I Dutch")
    assert messages[3]["content"] == "Result: go: nothing found\nBudget: 5 tool calls, 8 turns left"
    styled = Mem1Context().messages(dataclasses.replace(NOW, style=MEM1))
    assert styled[2]["content"] == "<think>M chess; I Dutch</think><search>go</search>"
    assert styled[3]["content"].startswith("<information>go: nothing found</information>")


def test_mem1_state_is_the_stored_memory_not_what_was_written() -> None:
    cut = dataclasses.replace(NOW, observation=NOW.observation | {"memory": "M ch"})
    assert Mem1Context().messages(cut)[2]["content"] == call("go", "M ch")


def test_mem1_without_a_state_or_a_query_has_no_empty_message() -> None:
    lost = dataclasses.replace(NOW, history=(turn("hm"),), observation=observation(result="Format error"))
    assert roles(Mem1Context().messages(lost)) == "su"
    assert "Format error" in shown(Mem1Context().messages(lost))
    kept = dataclasses.replace(NOW, history=(turn("hm"),), observation=observation("m", "Format error"))
    assert Mem1Context().messages(kept)[2] == {"role": "assistant", "content": "<mem>m</mem>"}
    first = dataclasses.replace(NOW, history=(), observation=observation())
    assert Mem1Context().messages(first) == MemoryContext().messages(first)


def test_retrieved_brings_back_the_turns_that_the_task_is_about() -> None:
    one = RetrievedContext(1).entries(NOW)
    assert len(one) == 1
    assert one == RetrievedContext(1).entries(NOW)
    both = RetrievedContext(2).entries(NOW)
    assert both == [
        '[turn 1] search {"queries": ["Mira"]}\nMira: plays chess',
        '[turn 2] search {"queries": ["Ida"]}\nIda: speaks Dutch',
    ]
    messages = RetrievedContext(2).messages(NOW)
    assert roles(messages) == "su"
    lines = messages[1]["content"].splitlines()
    assert [line.split(":")[0] for line in lines if line.split(":")[0] in ("Task", "Memory", "Result", "Budget")] == [
        "Task",
        "Memory",
        "Result",
        "Budget",
    ]
    assert messages[1]["content"].index("Earlier: [turn 1]") > messages[1]["content"].index("Memory:")


def test_retrieved_is_bounded_in_tokens_and_shows_the_last_result_once() -> None:
    long = (turn(call("Mira")), turn(call("x"), result="Mira plays chess " * 500), turn(call("y"), result="Ida " * 500))
    request = dataclasses.replace(NOW, history=long)
    for bound in (1, 40, 1024):
        entries = RetrievedContext(3, bound).entries(request)
        assert 0 < sum(map(RegexTokenCounter().count, entries)) <= bound
    assert "go: nothing found" not in "".join(RetrievedContext(3).entries(NOW))
    assert RetrievedContext().entries(dataclasses.replace(NOW, history=HISTORY[:1])) == []
    garbage = (turn("hm"), turn("hm", result="Format error"), turn("hm", result="Format error"))
    assert RetrievedContext().entries(dataclasses.replace(NOW, history=garbage)) == []


@pytest.mark.parametrize("name", ALL)
def test_a_strategy_is_a_pure_function_of_the_request(name: str) -> None:
    context = get_context(name)
    before = context.messages(NOW)
    context.messages(dataclasses.replace(NOW, history=HISTORY[:1], observation=observation("other", "other")))
    assert context.messages(NOW) == before == get_context(name).messages(NOW)
    assert before[-1]["role"] == "user"
    assert all(a["role"] != b["role"] for a, b in itertools.pairwise(before))
    assert all(message["content"] for message in before)


def test_names_take_numbers_where_the_strategy_does() -> None:
    assert CONTEXTS.names() == ["history", "mem1", "memory", "retrieved", "window"]
    assert [get_context(name).name for name in ALL] == [
        "memory",
        "history",
        "window-2",
        "mem1",
        "retrieved-3",
        "retrieved-1",
    ]
    own = get_context("mempo_env.agents.contexts:WindowContext-4")
    assert own.name == "window-4"
    for name, said in (
        ("window", "needs a number"),
        ("window-0", "no turn of the past"),
        ("retrieved-0", "nothing of the past"),
        ("memory-3", "takes no number"),
        ("windows-3", "did you mean 'window'"),
        ("mempo_env.budgets:PAPER", "must be a class with a method messages"),
    ):
        with pytest.raises(UserError, match=said):
            get_context(name)


def test_a_strategy_of_your_own_goes_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_context.py").write_text(
        "from mempo_env.agents.contexts import ContextStrategy, MemoryContext\n\n\n"
        "class Bare(MemoryContext):\n    name = 'bare'\n    needs_memory = False\n\n\n"
        "class Heir(ContextStrategy):\n    name = 'heir'\n\n"
        "    def messages(self, request):\n        return [{'role': 'user', 'content': request.observation['task']}]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert get_context("own_context:Bare").messages(NOW) == MemoryContext().messages(NOW)
    assert get_context("own_context:Heir").messages(NOW) == [{"role": "user", "content": TASK.text}]
    assert memory_mode("own_context:Bare") == memory_mode("own_context:Heir") == "optional"
    with pytest.raises(UserError, match="takes no number"):
        get_context("own_context:Heir-2")


def test_the_memory_is_demanded_where_it_is_all_that_is_kept() -> None:
    assert [memory_mode(name) for name in ALL] == [
        "required",
        "optional",
        "optional",
        "required",
        "optional",
        "optional",
    ]
    assert memory_mode("history", "off") == "off"
    assert memory_mode("memory", "optional") == "optional"


def test_folding_moves_the_instructions_into_the_first_user_message() -> None:
    folded = fold_system(WindowContext(1).messages(NOW))
    assert roles(folded) == "uau"
    assert folded[0]["content"].startswith("Answer all.\n\nTask: ")
    assert fold_system(folded) == folded


# Playing under them ---------------------------------------------------------------------------------------------------


def make_env(context: str, **kwargs: Any) -> gym.Env[dict[str, str], str]:
    return gym.make(
        "MemPO-MultiGoal-v0",
        **{"goals": 3, "budget": "paper", "split": "dev", "memory": memory_mode(context), **kwargs},
    )


def expert_episodes(context: str, n: int = 4, **kwargs: Any) -> list[Episode]:
    agent = ExpertAgent(kwargs.get("budget", "paper"), context=get_context(context))
    return rollout(agent, lambda: make_env(context, **kwargs), group_specs(range(n), 1), seed=0, step=0)


def test_the_expert_plays_alike_and_pays_by_the_context() -> None:
    played = {name: expert_episodes(name) for name in ALL}
    texts = {name: [turn.text for episode in episodes for turn in episode.turns] for name, episodes in played.items()}
    assert all(texts[name] == texts["memory"] for name in ALL)
    assert all(episode.scores["success"] == 1.0 for episode in played["history"])
    counter = RegexTokenCounter()
    for name, episodes in played.items():
        env: Any = make_env(name).unwrapped
        for episode in episodes:
            for t, turn in enumerate(episode.turns):
                key = SlotKey(0, 0, episode.group_id, 0, t)
                request = TurnRequest(key, turn.observation, env.instructions, episode.turns[:t], episode.task)
                assert turn.n_prompt == count_messages(counter, get_context(name).messages(request))
    # Instructions differ by memory mode, so compare strategies of the same mode.
    total = {name: sum(token_costs(episode).total for episode in episodes) for name, episodes in played.items()}
    assert total["memory"] < total["mem1"]
    assert total["window-2"] < total["history"]
    assert total["retrieved-1"] < total["retrieved"]


@pytest.mark.parametrize("name", ALL)
def test_a_policy_plays_and_keeps_its_ids_under_each(name: str, tiny_model: Any, tiny_codec: ChatCodec) -> None:
    policy = LoraPolicy(add_lora(tiny_model), tiny_codec, get_context(name), SamplingConfig(max_new_tokens=12))
    env = {"goals": 1, "instructions": "terse", "budget": {"max_turns": 3}}
    episodes = rollout(policy, lambda: make_env(name, **env), group_specs([0], 2), seed=0, step=0)
    again = rollout(policy, lambda: make_env(name, **env), group_specs([0], 2), seed=0, step=0)
    assert episodes == again
    for episode in episodes:
        for t, turn in enumerate(episode.turns):
            key = SlotKey(0, 0, episode.group_id, episode.rollout_id, t)
            request = TurnRequest(key, turn.observation, "Answer all.", episode.turns[:t], episode.task)
            assert turn.prompt_ids == policy.prompt_ids(request)
            assert turn.has_ids
            assert "raw_text" not in turn.info


def test_a_foreign_style_keeps_the_sampled_ids_and_gives_the_environment_its_own_grammar(
    tiny_model: Any, tiny_codec: ChatCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is made to say MEM1's words: its turns must keep those very ids."""
    env = make_env("mem1", goals=1, budget={"max_turns": 3}).unwrapped
    policy = LoraPolicy(
        add_lora(tiny_model),
        tiny_codec,
        get_context("mem1"),
        SamplingConfig(max_new_tokens=64),
        wording=Wording.of(MEM1, env),  # type: ignore[arg-type]
    )
    ids = tuple(tiny_codec.encode_text("<think>Mira plays chess</think><search>Ida</search>"))
    said = tiny_codec.decode(ids)
    sample = policy.sampler.sample

    def scripted(requests: Any, config: Any) -> Any:
        return [
            dataclasses.replace(result, output_ids=ids, logprobs=(-1.0,) * len(ids), stop_reason="action")
            for result in sample(requests, dataclasses.replace(config, max_new_tokens=1))
        ]

    monkeypatch.setattr(policy.sampler, "sample", scripted)
    episode = rollout(policy, lambda: make_env("mem1", goals=1), group_specs([0], 1), seed=0, step=0)[0]
    for turn in episode.turns:
        assert turn.output_ids == ids
        assert turn.info["raw_text"] == said
        assert turn.text == MEM1.read(said)
        assert turn.memory == "Mira plays chess"
        assert len(turn.segments) == len(turn.output_ids)
        assert set(turn.segments) == {Segment.MEMORY, Segment.TOOL_CALL}
    assert isinstance(episode.turns[0].action, ToolCall)
    second = tiny_codec.decode(episode.turns[1].prompt_ids).replace(" ", "")
    assert said.replace(" ", "") in second
    assert "<information>" in second
    assert "<mem>" not in second


def test_the_sampler_stops_at_the_styles_own_action(tiny_model: Any, tiny_codec: ChatCodec) -> None:
    env: Any = make_env("mem1").unwrapped
    policy = LoraPolicy(tiny_model, tiny_codec, get_context("mem1"), wording=Wording.of(MEM1, env))
    sampler: Any = policy.sampler
    said = tiny_codec.encode_text("<think>a</think><search>Ida</search>")
    flags = [int(flag) for flag in sampler._token_flags(tiny_model.config.vocab_size)[said]]
    import torch

    assert sampler._stops(flags[-1], torch.tensor(said)) == "action"
    assert sampler._stops(flags[-1], torch.tensor(said[:-1])) is None
    own: Any = LoraPolicy(tiny_model, tiny_codec, get_context("memory")).sampler
    assert own._stops(flags[-1], torch.tensor(said)) is None


def test_a_style_without_memory_is_refused_where_one_is_demanded() -> None:
    env: Any = make_env("memory").unwrapped
    with pytest.raises(UserError, match="search-r1 has no memory"):
        Wording.of(SEARCH_R1, env)
    with pytest.raises(ValueError, match=r"Wording\.of"):
        Wording(MEM1)
