"""What is shown of an episode: stored numbers, the marks that the metrics give, and the whole output."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempo_env.actions import Answer, FormatError, FormatErrorKind
from mempo_env.agents.viewer.content import body, index_row
from mempo_env.records import Goal

from .conftest import GOALS, faulty_episode, hostile_episode, make_episode, make_turn, plain_episode


def test_the_row_of_an_episode() -> None:
    row = index_row(plain_episode(3))
    assert row == {
        "g": "eval/2/3",
        "r": 0,
        "m": "10",
        "f": 50.0,
        "R": 0.4,
        "e": "answered",
        "t": 3,
        "k": 210,
        "x": 0,
        "q": 0.5,
        "p": "Mira plays what?\nOtto owns what?\nchess\nChess game\ncat\nchess\ndog 3\n",
    }


def test_the_turns_of_an_episode() -> None:
    shown = body(plain_episode())
    assert [turn.get("q") for turn in shown["turns"]] == [0.1, 0.4, 0.5]
    last = shown["turns"][2]
    assert last["before"] == "Mira plays chess; Otto trusts Ida; Kim is old"
    assert last["parts"] == {"outcome": 0.5, "format": -0.1}
    assert last["goals"] == [0.95, 0.25]
    assert last["cut"] is True
    assert last["action"] == {"type": "answer", "answers": ["chess", "dog 0"]}
    assert shown["goals"][0] == {
        "question": "Mira plays what?", "gold": ["chess", "Chess game"], "kind": "one-hop", "given": "chess", "f1": 1.0,
    }  # fmt: skip
    assert "quality" not in json.dumps(shown["turns"][0]), "info itself stays out"


def test_a_fault_has_no_marks_and_no_score() -> None:
    row, shown = index_row(faulty_episode()), body(faulty_episode())
    assert (row["m"], row["f"], row["e"]) == ("??", None, "error")
    assert shown["error"].startswith("InfrastructureError")
    assert [goal["f1"] for goal in shown["goals"]] == [None, None]


def test_a_wrong_number_of_answers_counts_for_no_goal() -> None:
    turn = make_turn(action=Answer(("chess", "cat", "more")))
    episode = make_episode([turn], GOALS, scores={"em": 0.0, "f1": 0.0})
    assert index_row(episode)["m"] == "00"
    assert body(episode)["given"] == ["chess", "cat", "more"]
    assert [goal["given"] for goal in body(episode)["goals"]] == [None, None]


def test_an_environment_with_its_own_score_gets_no_marks_of_ours() -> None:
    episode = make_episode([make_turn(action=Answer(("chess", "cat")))], GOALS, scores={"em": 0.25, "f1": 0.25})
    assert index_row(episode)["m"] == "??"
    assert index_row(episode)["f"] == 25.0


def test_numbers_that_json_does_not_have_are_left_out() -> None:
    turn = make_turn(reward=float("nan"), reward_components={"hook": float("inf")}, info={"quality": float("nan")})
    shown = body(make_episode([turn], GOALS, outcome=float("nan")))
    json.dumps(shown, allow_nan=False)
    assert shown["turns"][0]["parts"] == {"hook": None}
    assert "q" not in shown["turns"][0]


def test_a_format_error_is_shown_with_its_kind() -> None:
    turn = make_turn(action=FormatError(FormatErrorKind.BAD_CALL, "No."), memory_written=False)
    shown = body(make_episode([turn], GOALS, terminated=False, truncated=True))
    assert shown["turns"][0]["action"] == {"type": "error", "kind": "bad_call", "message": "No."}
    assert "written" not in shown["turns"][0]
    assert shown["ended"] == "truncated"
    assert index_row(make_episode([turn], GOALS))["x"] == 1


def test_advantages_are_shown_token_by_token() -> None:
    info = {"tokens": ["<mem>", "a", "</mem>"], "advantages": [0.5, -0.25, 0.0]}
    turn = make_turn("a", info=info, output_ids=(1, 2, 3), segments=(1, 1, 1))
    shown = body(make_episode([turn], GOALS))["turns"][0]
    assert (shown["tokens"], shown["advantages"], shown["segments"]) == (info["tokens"], [0.5, -0.25, 0.0], [1, 1, 1])
    assert "text" not in shown


@given(
    st.lists(st.sampled_from(["<mem>", "</mem>", "<think>", "</answer>", "<answer>", "x", "\u00e9", " "]), max_size=12)
)
def test_the_pieces_join_to_the_output(parts: list[str]) -> None:
    text = "".join(parts)
    pieces: list[Any] = body(make_episode([make_turn(text=text)], [Goal("q", ("a",))]))["turns"][0].get("text", [])
    assert "".join(part for _, part in pieces) == text


@pytest.mark.parametrize("make", [plain_episode, hostile_episode, faulty_episode])
def test_everything_shown_is_json(make: Any) -> None:
    json.dumps([index_row(make()), body(make())], allow_nan=False).encode("ascii")
