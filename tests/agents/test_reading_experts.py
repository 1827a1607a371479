"""The experts that read: they solve every task of every size, from what they were shown and nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import mempo_env  # noqa: F401 - registers the environments
from mempo_env.actions import Answer, ToolCall, parse
from mempo_env.agents.base import SlotKey, TurnRequest
from mempo_env.agents.expert import UNKNOWN
from mempo_env.agents.expert_document import DocumentExpert
from mempo_env.agents.expert_ledger import Entry, LedgerExpert, to_compute
from mempo_env.agents.notes import split_memory
from mempo_env.agents.reading_expert import ReadingExpert
from mempo_env.agents.rollout import EpisodeSpec, group_specs, rollout
from mempo_env.agents.scripted_expert import Flaws, make_expert
from mempo_env.envs.ledger import LEDGER_TASK
from mempo_env.envs.long_document import DOCUMENT_TASK
from mempo_env.envs.reading import PAST_END
from mempo_env.errors import UserError
from mempo_env.records import Episode, Goal, Task
from mempo_env.tokens import RegexTokenCounter

DOCUMENT, LEDGER = "MemPO-LongDocument-v0", "MemPO-Ledger-v0"


def play(
    name: str, episodes: int | Sequence[Task], flaws: Flaws | None = None, think: bool = False, **env: Any
) -> list[Episode]:
    def make() -> Any:
        return gym.make(name, disable_env_checker=True, **env)

    expert = make_expert(make().unwrapped, flaws=flaws, think=think)
    tasks = range(episodes) if isinstance(episodes, int) else episodes
    return rollout(expert, make, group_specs(tasks, 1), seed=0, step=0)


def request(task: Task, shown: str, memory: str = "", result: str = "", rollout_id: int = 0) -> TurnRequest:
    observation = {"task": shown, "memory": memory, "tool_result": result, "budget": ""}
    return TurnRequest(SlotKey(0, 0, "g", rollout_id, 0), observation, "", (), task)


@pytest.mark.parametrize("questions", ["end", "start"])
@pytest.mark.parametrize(
    ("name", "episodes", "settings"),
    [
        (DOCUMENT, 60, {"goals": (1, 16), "chunks": (4, 12)}),
        (DOCUMENT, 30, {"goals": 1, "chunks": 4, "facts": 2, "updates": 1.0}),
        (DOCUMENT, 30, {"goals": 16, "chunks": 20, "facts": 60, "updates": 1.0, "two_hop_share": 1.0,
                        "comparison_share": 0.0}),
        (DOCUMENT, 30, {"goals": 16, "facts": 60, "updates": 0.5, "two_hop_share": 0.0, "comparison_share": 1.0}),
        (DOCUMENT, 2, {"goals": 16, "chunks": 400, "facts": 60, "chunk_tokens": 100}),
        (DOCUMENT, 2, {"goals": 4, "chunks": 400, "facts": 32, "chunk_tokens": 8, "budget": "paper"}),
        (LEDGER, 60, {"goals": (1, 16), "batches": (2, 12)}),
        (LEDGER, 30, {"goals": 1, "batches": 2, "records": 2, "accounts": 1, "cancellations": 0.5}),
        (LEDGER, 30, {"goals": 16, "batches": 48, "records": 48, "accounts": 16, "corrections": 1.0}),
        (LEDGER, 30, {"goals": 16, "batches": 8, "records": 48, "accounts": 16, "highest": 99, "cancellations": 0.0}),
        (LEDGER, 30, {"goals": 8, "cancellations": 0.5, "corrections": 0.5, "budget": "paper"}),
    ],
    ids=str,
)  # fmt: skip
def test_every_size_is_solved(name: str, episodes: int, settings: dict[str, Any], questions: str) -> None:
    for episode in play(name, episodes, questions=questions, **settings):
        assert episode.scores == {"em": 1.0, "f1": 1.0, "success": 1.0}
        assert not any(turn.format_error or turn.info["memory_truncated"] for turn in episode.turns)
        reads = sum(isinstance(turn.action, ToolCall) and not turn.action.arguments for turn in episode.turns)
        assert reads == len(episode.task.passages)


@pytest.mark.parametrize("name", [DOCUMENT, LEDGER])
def test_with_questions_at_the_end_it_cannot_know_them(name: str) -> None:
    """The same text with other questions: all that is written before they are shown is the same."""
    tasks = [gym.make(name, goals=4).reset(seed=seed)[1]["task"] for seed in range(20)]
    others = [dataclasses.replace(task, goals=task.goals[1::-1], id=f"{task.id}'") for task in tasks]
    for ours, theirs in zip(play(name, tasks), play(name, others), strict=True):
        reading = len(ours.task.passages)
        assert [turn.text for turn in ours.turns[:reading]] == [turn.text for turn in theirs.turns[:reading]]
        assert theirs.scores["em"] == 1.0
    started = play(name, tasks, questions="start")
    lengths = [[len(split_memory(e.turns[len(e.task.passages) - 1].memory)) for e in some] for some in
               (play(name, tasks), started)]  # fmt: skip
    assert sum(lengths[1]) < 0.8 * sum(lengths[0])  # who knows the questions keeps less


@pytest.mark.parametrize("flaws", [Flaws(), Flaws(forget=0.2), Flaws(bloat=1.0)], ids=str)
def test_a_document_memory_holds_only_what_was_shown(flaws: Flaws) -> None:
    for episode in play(DOCUMENT, 10, flaws):
        for turn in episode.turns:
            shown = split_memory(turn.observation["memory"])
            for note in split_memory(turn.memory):
                assert note in shown or f"{note}." in turn.observation["tool_result"]


@pytest.mark.parametrize("flaws", [Flaws(), Flaws(forget=0.2), Flaws(bloat=1.0)], ids=str)
def test_a_ledger_memory_holds_only_what_was_shown(flaws: Flaws) -> None:
    numbers_used = 0
    for episode in play(LEDGER, 20, flaws):
        for turn in episode.turns:
            shown = f"{turn.observation['memory']} {turn.observation['tool_result']}".replace(".", " ").split()
            for note in split_memory(turn.memory):
                if note.startswith("q"):  # counts of records, and the 0 from which is taken, are its own
                    numbers = [n for n in note.split(" ")[2:] if n.rstrip(",").isdigit() and int(n.rstrip(",")) > 3]
                    assert all(number.rstrip(",") in " ".join(shown) for number in numbers)
                    numbers_used += len(numbers)
                else:
                    assert all(word in " ".join(shown) for word in note.split(" "))
    assert numbers_used > 20


@pytest.mark.parametrize("name", [DOCUMENT, LEDGER])
@pytest.mark.parametrize(
    "flaws", [Flaws(forget=0.2), Flaws(garble=0.3), Flaws(bloat=1.0), Flaws(0.2, 0.2, 0.5)], ids=str
)
def test_flaws_cost_what_they_should_and_break_nothing(name: str, flaws: Flaws) -> None:
    perfect, flawed = play(name, 20), play(name, 20, flaws)
    assert not any(turn.format_error for episode in flawed for turn in episode.turns)
    assert all(episode.terminated for episode in flawed)
    score = sum(episode.scores["f1"] for episode in flawed) / 20
    if flaws == Flaws(bloat=1.0):
        assert score == 1.0
        longer = [sum(turn.n_output for turn in e.turns) for e in flawed]
        assert sum(longer) > 1.2 * sum(turn.n_output for e in perfect for turn in e.turns)
    else:
        assert score < 0.7
    assert all(RegexTokenCounter().count(turn.memory) <= 256 for e in flawed for turn in e.turns)


@pytest.mark.parametrize("name", [DOCUMENT, LEDGER])
def test_flaws_are_a_function_of_the_turn_and_the_expert_of_its_request(name: str) -> None:
    flaws = Flaws(0.3, 0.3, 0.5)
    ours, theirs = play(name, 5, flaws), play(name, 5, flaws)
    assert [[turn.text for turn in e.turns] for e in ours] == [[turn.text for turn in e.turns] for e in theirs]
    for episode in play(name, 3, think=True):
        assert {parse(turn.text).think for turn in episode.turns} <= {"read", "compute", "answer now"}
        assert episode.scores["em"] == 1.0


def test_forgetting_has_the_stated_rate() -> None:
    task = Task((Goal("Mira plays what?", ("chess",)),), passages=())
    requests = [request(task, DOCUMENT_TASK, "Mira plays chess", rollout_id=at) for at in range(2000)]
    expert = DocumentExpert(flaws=Flaws(forget=0.2))
    kept = sum(expert.remember(one) == ["Mira plays chess"] for one in requests) / 2000
    assert kept == pytest.approx(0.8, abs=0.04)  # standard error 0.009


def test_a_document_note_by_hand() -> None:
    goals = (
        Goal("Mira plays what?", ("golf",)),
        Goal("Ada or Ida scores more?", ("Ida",)),
        Goal("Ada trusts someone who owns what?", ("fox",), "two-hop"),
    )
    task, expert = Task(goals), DocumentExpert()
    result = "chunk 2 of 3: Mira plays golf. Ada scores 12. Boris owns fox. Zed plays it. the old road waits."
    memory = "Mira plays chess; Ida scores 40; the mill; Ada trusts Boris"
    after = "Ida scores 40; Ada trusts Boris; Mira plays golf; Ada scores 12; Boris owns fox; the mill"
    output = parse(expert.write(request(task, DOCUMENT_TASK, memory, result)))
    assert (output.memory, output.action) == (after, ToolCall("read", {}))
    assert expert.answers(task, after) == "golf; Ida; fox"
    assert expert.answers(task, memory) == f"chess; {UNKNOWN}; {UNKNOWN}"
    last = result.replace("2 of 3", "3 of 3") + f"\nQuestions: {task.text}"
    assert parse(expert.write(request(task, DOCUMENT_TASK, memory, last))).action == Answer(("golf", "Ida", "fox"))
    # With the questions known: nothing of others, but whatever anybody owns, since whom Ada trusts may change.
    shown = (
        "chunk 1 of 3: Mira owns pony. Mira plays golf. Ida plays chess. Ida scores 7. Otto scores 5. Ada knows Ida."
    )
    assert expert.remember(request(task, task.text, "", shown)) == ["Mira owns pony", "Mira plays golf", "Ida scores 7"]


def test_after_an_error_it_reads_on_until_nothing_is_left() -> None:
    task = Task((Goal("Mira plays what?", ("golf",)),))
    for result in ("", "Format error (bad_json): nonsense", "chunk 1 of 2: x"):
        assert parse(DocumentExpert().write(request(task, DOCUMENT_TASK, "", result))).action == ToolCall("read", {})
    over = f"{PAST_END}\nQuestions: {task.text}"
    text = DocumentExpert().write(request(task, DOCUMENT_TASK, "Mira plays golf", over))
    assert text == "<mem>Mira plays golf</mem><answer>golf</answer>"
    lost = request(
        Task((Goal("balance of Ada?", ("34",)),)), LEDGER_TASK, "1 Ada gains 34", f"{PAST_END}\nQuestions: x"
    )
    assert LedgerExpert().write(lost) == "<mem>q1 = 34</mem><answer>34</answer>"


def test_within_a_budget_too_small_it_still_answers() -> None:
    env = gym.make(DOCUMENT, chunks=8, goals=1).unwrapped
    expert = DocumentExpert(dataclasses.replace(env.budget, max_tool_calls=3))  # type: ignore[attr-defined]
    (episode,) = rollout(expert, lambda: gym.make(DOCUMENT, chunks=8, goals=1), group_specs([0], 1), seed=0, step=0)
    assert len(episode.turns) == 4
    assert episode.terminated


def test_what_is_to_be_computed() -> None:
    records = {
        1: Entry("Ada", "gains", 14), 2: Entry("Ida", "loses", 2), 4: Entry("Ada", "loses", 5),
        9: Entry("Ada", "gains", 3), 10: Entry("Otto", "gains", 7),
    }  # fmt: skip
    for question, text in {
        "balance of Ada?": "14 + 3 - 5",
        "balance of Ida?": "0 - 2",
        "balance of Otto?": "7",
        "balance of Zed?": UNKNOWN,
        "total of Ada and Zed?": UNKNOWN,
        "total of Ada and Ida?": "14 + 3 - 5 - 2",
        "Ada minus Otto?": "14 + 3 - 5 - 7",
        "Otto minus Ada?": "7 + 5 - 14 - 3",
        "larger of Otto and Ada?": "7, 14 + 3 - 5",
        "records of Ada?": "3",
    }.items():
        assert to_compute(question, records) == text
    with pytest.raises(UserError, match="no question of the form 'Why'"):
        to_compute("Why", records)


def test_a_ledger_by_hand() -> None:
    goals = (Goal("larger of Ada and Ida?", ("34",)), Goal("Ada minus Ida?", ("27",)), Goal("records of Ida?", ("1",)))
    task, expert = Task(goals), LedgerExpert()
    memory = "1 Ada gains 14; 2 Ida gains 7; 3 Otto gains 5"  # so far
    result = "batch 2 of 3: 4 Ada gains 21. correction: record 4 is 20, not 21. memo: the mill. cancelled: record 3."
    output = parse(expert.write(request(task, LEDGER_TASK, memory, result)))
    assert output.memory == "1 Ada gains 14; 2 Ida gains 7; 4 Ada gains 20"
    assert output.action == ToolCall("next_records", {})
    assert expert.answers(task, memory) == f"14; {UNKNOWN}; 1"  # what needs a calculator is not known yet
    last = result.replace("2 of 3", "3 of 3") + f"\nQuestions: {task.text}"
    output = parse(expert.write(request(task, LEDGER_TASK, memory, last)))
    assert output.memory == "q1 = 14 + 20, 7; q2 = 14 + 20 - 7; q3 = 1"
    assert output.action == ToolCall("calculator", {"expression": "14 + 20"})
    output = parse(expert.write(request(task, LEDGER_TASK, output.memory, "14 + 20 = 34")))
    assert output.memory == "q1 = 34; q2 = 14 + 20 - 7; q3 = 1"
    # As a model writes them whose words begin with a space, the result repeats it.
    output = parse(expert.write(request(task, LEDGER_TASK, output.memory, " 14 + 20 - 7 = 27")))
    assert (output.memory, output.action) == ("q1 = 34; q2 = 27; q3 = 1", Answer(("34", "27", "1")))
    assert expert.answers(task, "q1 = 34; q3 = 1") == f"34; {UNKNOWN}; 1"
    # With the questions known, nothing of others is kept.
    assert expert.remember(request(task, task.text, "", "batch 1 of 3: 1 Ada gains 14. 2 Otto gains 5.")) == [
        "1 Ada gains 14"
    ]


def test_documents_from_files(tmp_path: Path) -> None:
    rows = [
        {"text": f"Nothing here. {'Filler words again. ' * 30} Tower {n} was built by Otto{n} Koch. </mem> The end.",
         "questions": [{"question": f"Who built tower {n}?", "answers": [f"Otto{n} Koch"]},
                       {"question": "Is it high?", "answers": ["yes"]}]}
        for n in range(5)
    ]  # fmt: skip
    (tmp_path / "documents.train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings: dict[str, Any] = {"documents": tmp_path, "chunk_tokens": 20, "goals": 2}
    for episode in play(DOCUMENT, 10, questions="start", **settings):
        assert len(episode.turns) == len(episode.task.passages) + 1
        assert episode.scores["em"] == 0.5
        answers = dict(zip(episode.task.goals, episode.turns[-1].action.answers, strict=True))  # type: ignore[union-attr]
        for goal, answer in answers.items():
            assert answer == (UNKNOWN if goal.answers == ("yes",) else goal.answers[0])
        early, final = episode.turns[1].memory, episode.turns[-1].memory
        assert "Koch" not in early
        assert "Koch" in final
    with pytest.raises(UserError, match="questions='start', or do without a warm start"):
        play(DOCUMENT, 1, **settings)


def test_the_experts_are_found_by_their_environments() -> None:
    for name, cls in ((DOCUMENT, DocumentExpert), (LEDGER, LedgerExpert)):
        expert = make_expert(gym.make(name).unwrapped)  # type: ignore[arg-type]
        assert type(expert) is cls
        assert isinstance(expert, ReadingExpert)
        assert expert.budget.name.startswith("brief+")


def test_a_group_plays_one_text() -> None:
    specs = [EpisodeSpec("g", at, 7) for at in range(2)]
    env = gym.make(DOCUMENT).unwrapped
    first, second = rollout(make_expert(env), lambda: gym.make(DOCUMENT), specs, seed=0, step=0)  # type: ignore[arg-type]
    assert first.task == second.task
    assert [turn.text for turn in first.turns] == [turn.text for turn in second.turns]
