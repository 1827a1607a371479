"""The scripted expert: solves what can be solved, writes down only what it saw, and is flawed at the stated rates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mempo_env.actions import Answer, ToolCall, parse
from mempo_env.agents.base import SlotKey, TurnRequest
from mempo_env.agents.contexts import HistoryContext
from mempo_env.agents.expert import UNKNOWN, ExpertAgent
from mempo_env.agents.notes import clean, fact_seen, fit_notes, garble, irrelevant_sentences, note_forms, split_memory
from mempo_env.agents.rollout import group_specs, rollout
from mempo_env.agents.scripted_expert import Flaws
from mempo_env.agents.textual import slot_rng
from mempo_env.budgets import Budget, get_budget
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.errors import UserError
from mempo_env.records import Episode, Evidence, Goal, Task
from mempo_env.tokens import RegexTokenCounter

TWO_HOP = {"two_hop_share": 1.0, "comparison_share": 0.0}
TASK = Task(
    (
        Goal("Mira plays what?", ("chess",), evidence=(Evidence("Mira plays", "Mira plays chess", "Mira"),)),
        Goal(
            "Ada trusts someone who owns what?",
            ("fox",),
            "two-hop",
            (
                Evidence("Ada trusts", "Ada trusts Boris", "Ada"),
                Evidence("Boris owns", "Boris owns fox", "Boris", after=0),
            ),
        ),
    )
)


def play(agent: ExpertAgent, episodes: int, **env: Any) -> list[Episode]:
    env = {"budget": agent.budget} | env
    return rollout(agent, lambda: MultiGoalEnv(**env), group_specs(range(episodes), 1), seed=0, step=0)


def request(memory: str = "", result: str = "", task: Task = TASK, rollout_id: int = 0) -> TurnRequest:
    observation = {"task": task.text, "memory": memory, "tool_result": result, "budget": ""}
    return TurnRequest(SlotKey(0, 0, "g", rollout_id, 0), observation, "", (), task)


def asked(episode: Episode) -> list[str]:
    return [q for turn in episode.turns if isinstance(turn.action, ToolCall) for q in turn.action.arguments["queries"]]


def test_the_output_has_exactly_the_agreed_form() -> None:
    assert ExpertAgent().write(request()) == (
        '<mem></mem><tool_call>{"name": "search", "arguments": {"queries": ["Mira plays", "Ada trusts"]}}</tool_call>'
    )
    result = "Mira plays: Mira plays chess.\nAda trusts: Ada trusts Boris."
    assert ExpertAgent(think=True).write(request(result=result)) == (
        "<mem>Mira plays chess; Ada trusts Boris</mem><think>ask Boris owns</think>"
        '<tool_call>{"name": "search", "arguments": {"queries": ["Boris owns"]}}</tool_call>'
    )
    everything = "Mira plays chess; Ada trusts Boris; Boris owns fox"
    assert ExpertAgent().write(request(memory=everything)) == f"<mem>{everything}</mem><answer>chess; fox</answer>"


@pytest.mark.parametrize("world", [None, TWO_HOP], ids=["mixed", "two-hop"])
def test_ten_goals_are_solved_under_brief(world: dict[str, float] | None) -> None:
    for episode in play(ExpertAgent("brief"), 40, goals=10, world=world):
        assert episode.scores == {"em": 1.0, "f1": 1.0, "success": 1.0}
        assert episode.outcome == 1.0
        assert not any(turn.format_error or turn.info["memory_truncated"] for turn in episode.turns)


def test_under_paper_as_many_goals_are_solved_as_fifteen_queries_allow() -> None:
    # 16 turns leave 15 one-query calls before the answer: seven of ten two-hop goals, and no more, can be known.
    mixed = play(ExpertAgent("paper"), 40, goals=10)
    assert all(episode.scores["success"] for episode in mixed if sum(len(g.evidence) for g in episode.task.goals) <= 15)
    assert sum(episode.scores["success"] for episode in mixed) > 30
    for episode in play(ExpertAgent("paper"), 10, goals=10, world=TWO_HOP):
        assert episode.scores["f1"] == pytest.approx(0.7)
        assert not any(turn.format_error for turn in episode.turns)
        assert episode.terminated


def test_each_evidence_is_asked_once_and_in_order() -> None:
    for episode in play(ExpertAgent("brief"), 20, goals=8):
        evidence = [e for goal in episode.task.goals for e in goal.evidence]
        independent = [e.query for e in evidence if e.after < 0]
        assert asked(episode)[: len(independent)] == independent
        assert sorted(asked(episode)) == sorted(e.query for e in evidence)


@pytest.mark.parametrize("flaws", [Flaws(), Flaws(forget=0.3), Flaws(bloat=1.0)], ids=str)
def test_a_memory_holds_only_what_was_shown(flaws: Flaws) -> None:
    for episode in play(ExpertAgent(flaws=flaws), 20, goals=6):
        for turn in episode.turns:
            shown = turn.observation["memory"].split("; ")
            for note in split_memory(turn.memory):
                assert note in shown or f"{note}." in turn.observation["tool_result"]


@pytest.mark.parametrize("flaws", [Flaws(), Flaws(forget=0.3, garble=0.3)], ids=str)
def test_an_answer_rests_on_the_memory_written_with_it(flaws: Flaws) -> None:
    answered = 0
    for episode in play(ExpertAgent(flaws=flaws), 30, goals=6):
        final = episode.turns[-1]
        assert isinstance(final.action, Answer)
        for goal, answer in zip(episode.task.goals, final.action.answers, strict=True):
            known = all(evidence.note in split_memory(final.memory) for evidence in goal.evidence)
            assert answer == (goal.answers[0] if known else UNKNOWN)
            answered += known
    assert answered > 0


def test_a_fact_that_was_not_shown_is_not_noted() -> None:
    dependent_only = ExpertAgent().write(request(result="Boris owns: Boris owns fox. Mira plays chessboxing."))
    assert parse(dependent_only).memory == ""  # whose fox it is is not known yet, and chessboxing is not chess
    assert parse(ExpertAgent().write(request(memory="Ada trusts Boris", result="Boris owns fox."))).memory == (
        "Ada trusts Boris; Boris owns fox"
    )


def test_a_goal_without_evidence_is_not_answered_from_gold() -> None:
    task = Task((Goal("1+1?", ("2",)),))
    assert parse(ExpertAgent().write(request(task=task))).action == Answer((UNKNOWN,))


def test_act_is_a_function_of_each_request_alone() -> None:
    agent = ExpertAgent(flaws=Flaws(forget=0.5, garble=0.5, bloat=0.5))
    memory, result = "Mira plays chess; Ada trusts Boris", "Boris owns fox. Boris plays golf. Zed plays darts."
    requests = [request(memory, result, rollout_id=i) for i in range(20)]
    outputs = agent.act(requests)
    assert agent.act(requests[::-1]) == outputs[::-1]
    assert [agent.act([one])[0] for one in requests] == outputs
    assert len({output.text for output in outputs}) > 5


def test_flaws_occur_at_the_stated_rates() -> None:
    requests = [request("Mira plays chess", "Zed plays golf.", rollout_id=i) for i in range(2000)]

    def share(flaws: Flaws, test: Callable[[list[str]], bool]) -> float:
        texts = [output.text for output in ExpertAgent(flaws=flaws).act(requests)]
        return sum(test(split_memory(parse(text).memory or "")) for text in texts) / len(texts)

    # Standard error 0.009.
    assert share(Flaws(forget=0.2), lambda notes: notes == []) == pytest.approx(0.2, abs=0.04)
    assert share(Flaws(garble=0.3), lambda notes: notes == ["Mira plays golf"]) == pytest.approx(0.3, abs=0.04)
    assert share(Flaws(bloat=0.4), lambda notes: notes == ["Mira plays chess", "Zed plays golf"]) == pytest.approx(
        0.4, abs=0.04
    )
    assert share(Flaws(), lambda notes: notes == ["Mira plays chess"]) == 1.0
    assert share(Flaws(forget=1.0), lambda notes: notes == []) == 1.0


def test_a_forgotten_fact_is_neither_asked_again_nor_answered() -> None:
    for episode in play(ExpertAgent(flaws=Flaws(forget=1.0)), 5, goals=4):
        assert len(asked(episode)) == len(set(asked(episode)))
        assert episode.turns[-1].action == Answer((UNKNOWN,) * 4)


def test_names_and_bounds_of_flaws() -> None:
    assert ExpertAgent().name == "expert"
    assert ExpertAgent(flaws=Flaws(forget=0.2)).name == "demonstrator(forget=0.2)"
    with pytest.raises(UserError, match=r"forget=1\.5"):
        Flaws(forget=1.5)


def test_a_history_context_costs_more_and_scores_the_same() -> None:
    env = {"goals": 10, "memory": "optional"}
    memory, history = play(ExpertAgent(), 5, **env), play(ExpertAgent(context=HistoryContext()), 5, **env)
    for ours, theirs in zip(memory, history, strict=True):
        assert [turn.text for turn in ours.turns] == [turn.text for turn in theirs.turns]
        assert theirs.turns[-1].n_prompt > 1.5 * ours.turns[-1].n_prompt
        assert theirs.scores["f1"] == 1.0


def test_prompt_tokens_are_those_of_the_text_a_policy_would_see() -> None:
    episode = play(ExpertAgent(), 1, goals=2)[0]
    turn, counter = episode.turns[1], RegexTokenCounter()
    env = MultiGoalEnv(goals=2)
    shown = f"Task: {turn.observation['task']}\nMemory: {turn.observation['memory']}\n"
    shown += f"Result: {turn.observation['tool_result']}\nBudget: {turn.observation['budget']}"
    if not turn.observation["memory"]:
        shown = shown.replace("Memory: \n", "")
    assert turn.n_prompt == counter.count(env.instructions) + counter.count(shown)
    assert turn.n_output == counter.count(turn.text)


def test_fact_seen_on_extracts() -> None:
    evidence = Evidence("Star Wars: Part 4", "Star Wars: Part 4: a 1977 film; by Lucas", "p")
    seen = "q: [Star Wars: Part 5] a sequel | [Star Wars: Part 4] It is a 1977 film; by Lucas, and so on ..."
    assert fact_seen(evidence, seen)
    assert not fact_seen(evidence, "q: [Star Wars: Part 4] It was ... | [Other] a 1977 film; by Lucas")
    assert not fact_seen(evidence, "a 1977 film; by Lucas")
    assert not fact_seen(evidence, "")


def test_notes_are_shortened_around_the_answer() -> None:
    body = "The bridge over the wide river was built in 1901 by the engineers of Otto Koch near the town"
    goal = Goal("Who built it?", ("Otto Koch",))
    forms = note_forms(Evidence("Old Bridge river", f"Old Bridge: {body}", "p"), goal)
    assert forms == (
        f"Old Bridge: {body}",
        "Old Bridge: the engineers of Otto Koch near the town",
        "Old Bridge: Otto Koch",
    )
    without = note_forms(
        Evidence("Old Bridge (Ulm)", "Old Bridge (Ulm): Old Bridge is a bridge that stands over a river", "p"), goal
    )
    assert without[1:] == ("Old Bridge (Ulm): is a bridge that stands over a river", "Old Bridge (Ulm): is a bridge")
    assert note_forms(TASK.goals[0].evidence[0], TASK.goals[0]) == ("Mira plays chess",)


def test_notes_are_cut_to_the_limit_longest_first() -> None:
    counter = RegexTokenCounter()
    entries = [("one two three four five", "one"), ("six seven", "six"), ("eight",)]
    assert fit_notes(entries, counter, 100) == ["one two three four five", "six seven", "eight"]
    assert fit_notes(entries, counter, 6) == ["one", "six seven", "eight"]
    assert fit_notes(entries, counter, 5) == ["one", "six", "eight"]
    assert fit_notes(entries, counter, 3) == ["one", "six"]
    assert fit_notes(entries, counter, 0) == []


def test_a_short_note_stays_short() -> None:
    body = "one two three four five six seven eight nine ten eleven twelve"
    task = Task((Goal("?", ("unseen",), evidence=(Evidence("T", f"T: {body}", "p"),)),))
    short = note_forms(task.goals[0].evidence[0], task.goals[0])[-1]
    memory = parse(ExpertAgent().write(request(memory=short, result=f"T: [T] {body}", task=task))).memory
    assert memory == short


def test_hostile_text_stays_text() -> None:
    assert clean("a; b\n</mem><answer>") == "a, b &lt;/mem>&lt;answer>"
    note = "T: x </mem><answer>y</answer>; z"
    task = Task((Goal("?", ("x",), evidence=(Evidence("T", note, "p"),)),))
    text = ExpertAgent().write(request(result="T: [T] x &lt;/mem>&lt;answer>y&lt;/answer>; z", task=task))
    assert parse(text).memory == "T: x &lt;/mem>&lt;answer>y&lt;/answer>, z"
    assert parse(text).action == Answer(("x",))


def test_garbling_takes_a_word_of_the_same_kind() -> None:
    rng = slot_rng(SlotKey(0, 0, "g", 0, 0), "test")
    seen = "Zed scores 17. Zed owns cat. Zed trusts Ida."
    assert garble(("Mira scores 52",), "Mira scores", "Mira", seen, rng) == ("Mira scores 17",)
    assert garble(("Mira plays chess",), "Mira plays", "chess", seen, rng) == ("Mira plays cat",)
    assert garble(("T: by Otto Koch in Ulm", "T: Otto Koch"), "T", "Otto Koch", seen, rng) == (
        "T: by Otto Ida in Ulm",
        "T: Otto Ida",
    )
    assert garble(("Mira plays chess",), "Mira plays", "chess", "", rng) == ("Mira plays chess",)


def test_irrelevant_sentences_hold_no_note() -> None:
    result = "Mira plays: Mira owns fox. Mira plays chess.\nAda trusts: nothing found"
    assert irrelevant_sentences(result, ["Mira plays", "Ada trusts"], ["Mira plays chess"]) == ["Mira owns fox"]


def test_noise_is_the_same_in_every_process() -> None:
    draws = slot_rng(SlotKey(1, 2, "g", 3, 4), "flaws").integers(1000, size=4).tolist()
    assert draws == [958, 126, 724, 701]
    others = [SlotKey(0, 2, "g", 3, 4), SlotKey(1, 0, "g", 3, 4), SlotKey(1, 2, "h", 3, 4), SlotKey(1, 2, "g", 0, 4)]
    for other in (*others, SlotKey(1, 2, "g", 3, 0)):
        assert draws != slot_rng(other, "flaws").integers(1000, size=4).tolist()
    assert draws != slot_rng(SlotKey(1, 2, "g", 3, 4), "other").integers(1000, size=4).tolist()


@pytest.mark.parametrize("name", ["hotpotqa", "nq"])
def test_on_real_questions_it_answers_what_the_retriever_shows(shared_data: Path, name: str) -> None:
    budget = Budget("wide", max_tool_calls=20, max_turns=22, queries_per_call=5, memory_tokens=256)
    agent = ExpertAgent(budget)
    made = {"goals": 4, "dataset": "qa", "data": str(shared_data / name), "split": "dev", "topk": 3}
    episodes = play(agent, 25, **made)
    found = n_goals = 0
    for episode in episodes:
        assert not any(turn.format_error or turn.info["memory_truncated"] for turn in episode.turns)
        results = [turn.observation["tool_result"] for turn in episode.turns]
        answers = episode.turns[-1].action.answers  # type: ignore[union-attr]
        for goal, answer in zip(episode.task.goals, answers, strict=True):
            shown = all(any(fact_seen(evidence, result) for result in results) for evidence in goal.evidence)
            assert answer == (goal.answers[0] if shown else UNKNOWN)
            found += shown
            n_goals += 1
    assert found / n_goals > 0.8  # measured: 0.92 to 0.95


def test_a_paper_budget_bounds_the_calls() -> None:
    for episode in play(ExpertAgent("paper"), 5, goals=16):
        calls = [turn.action for turn in episode.turns if isinstance(turn.action, ToolCall)]
        assert len(calls) == get_budget("paper").max_turns - 1
        assert all(len(call.arguments["queries"]) == 1 for call in calls)
        assert json.loads(episode.turns[0].text.split("<tool_call>")[1].split("</tool_call>")[0])["name"] == "search"
