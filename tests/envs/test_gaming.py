"""Answers that try to be paid without knowing: each through an episode, with what it earns and what it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mempo_env.actions import Answer
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.envs.qa_data import QaDataset
from mempo_env.metrics import score_answers
from mempo_env.records import Goal, Passage, Task

PASSAGES = (Passage("p", "York", "York is older than Leeds."),)
OPTIONS = Goal("Which is older, York or Leeds?", ("York",))
NATIONALITY = Goal("Were both of the same nationality?", ("yes",))
LETTER = Goal("Which grade is the best?", ("A",))  # nothing is left of it when it is normalised
RIVER = Goal("What river runs through York?", ("River Ouse", "Ouse"))


def play(goals: tuple[Goal, ...], answer: str, outcome: str = "binary") -> dict[str, Any]:
    """One episode that answers at once; what ``info`` says of it, and the reward."""
    env = MultiGoalEnv(outcome=outcome)
    env.reset(options={"task": Task(goals, passages=PASSAGES)})
    _, reward, terminated, truncated, info = env.step(f"<mem>m</mem><answer>{answer}</answer>")
    return info | {"reward": reward, "terminated": terminated, "truncated": truncated}


def test_the_right_answer_is_paid() -> None:
    info = play((OPTIONS, RIVER), "York; the Ouse")
    assert (info["em"], info["f1"], info["success"], info["reward"]) == (1, 1, 1, 1)


@pytest.mark.parametrize("answer", ["", " ", ";", " ; ;; ", "\n"])
def test_an_empty_answer_is_a_format_error_and_ends_nothing(answer: str) -> None:
    info = play((OPTIONS, RIVER), answer)
    assert info["format_error"] == "empty_answer"
    assert not info["terminated"]
    assert info["reward"] == 0
    assert "em" not in info


@pytest.mark.parametrize("outcome", ["binary", "fraction", "f1"])
@pytest.mark.parametrize("answer", ["; .", "the; *", "<mem></mem>;<think></think>", "!;?"])
def test_what_normalises_to_nothing_earns_nothing(answer: str, outcome: str) -> None:
    info = play((LETTER, RIVER), answer, outcome)
    assert (info["em"], info["f1"], info["success"], info["reward"]) == (0, 0, 0, 0)


def test_all_options_in_one_answer_earn_no_em_and_a_bounded_f1() -> None:
    for count in (2, 3, 10, 1000):
        options = ", ".join(["York", *(f"town{at}" for at in range(count - 1))])
        info = play((OPTIONS,), options)
        assert (info["em"], info["success"], info["reward"]) == (0, 0, 0)
        assert info["f1"] == pytest.approx(2 / (count + 1))  # precision 1/count, recall 1
        assert play((OPTIONS,), options, "fraction")["reward"] == 0
        assert play((OPTIONS,), options, "f1")["reward"] == pytest.approx(2 / (count + 1))  # what F1 as published pays


@pytest.mark.parametrize("answer", ["yes or no", "yes, no", "no yes", "yes and no and noanswer", "yes yes"])
def test_yes_and_no_together_earn_nothing_at_all(answer: str) -> None:
    for outcome in ("binary", "fraction", "f1"):
        info = play((NATIONALITY,), answer, outcome)
        assert (info["em"], info["f1"], info["reward"]) == (0, 0, 0)


def test_a_copied_question_earns_no_em() -> None:
    info = play((OPTIONS, RIVER), f"{OPTIONS.question}; {RIVER.question}")
    assert (info["em"], info["success"], info["reward"]) == (0, 0, 0)
    # {york} of {which is older york or leeds}; {river} of {what river runs through york} and {river ouse}
    assert info["f1"] == pytest.approx((2 / 7 + 2 / 7) / 2)


@pytest.mark.parametrize("count", [1, 3, 17, 5000])
def test_a_wrong_number_of_answers_earns_nothing(count: int) -> None:
    for outcome in ("binary", "fraction", "f1"):
        info = play((OPTIONS, RIVER), "; ".join(["York", "Ouse"] * count)[: -len("; Ouse")], outcome)
        assert isinstance(info["action"], Answer)
        assert len(info["action"].answers) == 2 * count - 1
        assert info["terminated"]
        assert (info["em"], info["f1"], info["success"], info["reward"]) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        ("York; Leeds; Ouse", 3),  # hedging by the separator
        ("York;; Ouse", 3),
        ("York; Ouse;", 3),
        ("; York; Ouse", 3),
        ("York； Ouse", 1),  # a full-width semicolon is no separator
    ],
)
def test_separators_inside_an_answer_make_other_answers(answer: str, parts: int) -> None:
    info = play((OPTIONS, RIVER), answer)
    assert len(info["action"].answers) == parts
    assert (info["em"], info["f1"], info["reward"]) == (0, 0, 0)


def test_an_alias_with_the_separator_cannot_be_split_into_more_answers() -> None:
    goal = Goal("Who wrote it?", ("Lee", "Lee; Ann"))
    assert play((goal,), "Lee; Ann")["em"] == 0
    assert play((goal,), "Lee")["em"] == 1


@pytest.mark.parametrize(
    ("answer", "em"),
    [
        ("<answer>York", 0),  # the tag is text of the answer: answeryork
        ("York<answer>", 0),
        ("<mem>York", 0),
        ("<tool_call>York", 0),
        ('<tool_call>{"name": "search", "arguments": {"queries": ["York"]}}</tool_call>York', 0),
        ("<b>York</b>", 0),
        ("&lt;York&gt;", 0),
    ],
)
def test_tags_inside_an_answer_are_text_of_it(answer: str, em: float) -> None:
    for outcome in ("binary", "fraction"):
        info = play((OPTIONS,), answer, outcome)
        assert info["terminated"]
        assert (info["em"], info["reward"]) == (em, em)


def test_the_first_of_several_answer_blocks_counts() -> None:
    assert play((OPTIONS,), "Leeds</answer><answer>York")["em"] == 0
    assert play((OPTIONS,), "York</answer><answer>Leeds")["em"] == 1


def test_an_answer_of_a_megabyte_is_scored_like_any_other() -> None:
    info = play((OPTIONS,), "York " * 200_000)
    assert info["em"] == 0
    assert 0 < info["f1"] < 1.1e-5


@pytest.mark.parametrize("name", ["hotpotqa", "2wikimultihopqa", "musique", "nq"])
def test_on_real_questions_copying_and_listing_earn_no_em(shared_data: Path, name: str) -> None:
    data = QaDataset([shared_data / name], "dev")
    questions = data.questions[:150]
    for make, most in (
        (lambda question: question.text, 0.2),  # measured: 0.03 to 0.12 (benchmarks/results/answer_gaming.json)
        (lambda question: " ".join(data.passage(one).text for one in question.supporting_ids), 0.15),  # 0.03 to 0.08
        (lambda question: ", ".join(other.answers[0] for other in questions), 0.02),
        (lambda question: "yes or no", 0.02),
    ):
        scores = [
            score_answers([make(question).replace(";", ",")], data.compose([question]).goals) for question in questions
        ]
        assert sum(score.em for score in scores) == 0
        assert sum(score.f1 for score in scores) / len(scores) < most
