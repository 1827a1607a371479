"""Why goals fail, by hand: one cause per wrong goal, the first one on the way to its answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from memory_study.failures import CAUSES, episode_failures, failures, given_anywhere

from mempo_env.actions import Answer, FormatError, FormatErrorKind, ToolCall
from mempo_env.records import Episode, Turn

from .two_goals import TASK

CALL = ToolCall("search", {"queries": ["Ada plays"]})
BEN = "Ben trusts Cy. Cy eats rice."
KNOWN = "Ben trusts Cy; Cy eats rice"
"""Shown and noted for the second goal, where a case is about the first one."""


def episode(*turns: tuple[str, str, Any], **changes: Any) -> Episode:
    """An episode of (result, memory, action)."""
    played = tuple(
        Turn(
            {"task": TASK.text, "memory": "", "tool_result": result, "budget": ""},
            *("", action, 0.0, {}, memory, True, 10, 5),
            info={},
        )
        for result, memory, action in turns
    )
    return Episode(played, TASK, "g", 0, 7, 0.0, True, False, scores={}).replace(**changes)


def causes(played: Episode) -> dict[str, int]:
    """The causes that occur."""
    found = episode_failures(played)
    assert sum(found[cause] for cause in CAUSES) == found["wrong"]
    return {cause: found[cause] for cause in CAUSES if found[cause]}


@pytest.mark.parametrize(
    ("turns", "cause"),
    [
        ([("", KNOWN, Answer(("unknown", "rice")))], "not looked up"),
        ([("Ada likes red.", KNOWN, Answer(("red", "rice")))], "not looked up"),
        ([("Ada plays chess.", KNOWN, Answer(("go", "rice")))], "not noted"),
        ([("Ada plays chess.", f"Ada plays go; {KNOWN}", Answer(("go", "rice")))], "garbled"),
        ([("Ada plays chess.", f"Eve plays chess; {KNOWN}", Answer(("go", "rice")))], "garbled"),
        # True of Eve, so not a wrong word.
        (
            [("Ada plays chess. Eve plays chess.", f"Eve plays chess; {KNOWN}", Answer(("go", "rice")))],
            "not noted",
        ),
        # A guess before anything was shown is no garbled note: what was shown later was never taken down.
        ([("", f"Ada plays go; {KNOWN}", CALL), ("Ada plays chess.", KNOWN, Answer(("go", "rice")))], "not noted"),
        (
            [("Ada plays chess.", "Ada plays chess", CALL), (BEN, KNOWN, Answer(("unknown", "rice")))],
            "forgotten",
        ),
        (
            [("Ada plays chess.", "Ada plays chess", CALL), (BEN, f"Ada plays go; {KNOWN}", Answer(("go", "rice")))],
            "garbled",
        ),
        # Garbled, put right, and lost at last.
        (
            [
                ("Ada plays chess.", "Ada plays go", CALL),
                ("Ada plays chess.", f"Ada plays chess; {KNOWN}", CALL),
                ("", KNOWN, Answer(("unknown", "rice"))),
            ],
            "forgotten",
        ),
        ([("Ada plays chess.", f"Ada plays chess; {KNOWN}", Answer((" Unknown", "rice")))], "gave up"),
        ([("Ada plays chess.", f"Ada plays chess; {KNOWN}", Answer(("go", "rice")))], "misread"),
    ],
)
def test_the_first_step_that_fails_is_the_cause(turns: list[tuple[str, str, Any]], cause: str) -> None:
    assert causes(episode(*turns)) == {cause: 1}


def test_evidence_is_followed_in_order() -> None:
    # The friend was garbled, so the second fact was asked of the wrong person: the first failure counts.
    played = episode(
        ("Ada plays chess. Ben trusts Cy.", "Ada plays chess; Ben trusts Di", CALL),
        ("Di eats soup.", "Ada plays chess; Ben trusts Di; Di eats soup", Answer(("chess", "soup"))),
    )
    assert causes(played) == {"garbled": 1}


def test_a_wrong_number_of_answers_fails_all_goals_but_is_not_the_cause_of_a_lost_fact() -> None:
    played = episode(("Ada plays chess.", "Ada plays chess", Answer(("chess",))))
    assert causes(played) == {"wrong number": 1, "not looked up": 1}


def test_an_episode_without_an_answer_has_one_cause() -> None:
    error = FormatError(FormatErrorKind.NO_ACTION, "no action")
    assert causes(episode(("Ada plays chess.", "Ada plays chess", error))) == {"no answer": 2}


def test_nothing_is_wrong_where_all_is_right_and_faults_are_left_out() -> None:
    good = episode((f"Ada plays chess. {BEN}", f"Ada plays chess; {KNOWN}", Answer(("chess", "rice"))))
    assert causes(good) == {}
    bad = episode(("", "Ada plays what? Ben trusts someone", Answer(("a", "b"))))
    found = failures([good, bad, good.replace(error="down")])
    assert found["2"] == dict.fromkeys(CAUSES, 0) | {
        "episodes": 2,
        "goals": 4,
        "wrong": 2,
        "not looked up": 2,
        "copied_question": 1,
    }


def test_right_answers_count_at_any_place_and_by_chance() -> None:
    one, two = (goal.answers[0] for goal in TASK.goals)
    swapped = episode(("", KNOWN, Answer((two, one, "of no goal"))))
    half = episode(("", KNOWN, Answer((two.upper(),))))
    none = episode(("", KNOWN, CALL))
    fault = episode(("", KNOWN, Answer((one, two)))).replace(error="broke")
    assert given_anywhere([swapped]) == {"2": {"goals": 2, "given": 2, "chance": 2}}  # of itself, being alone
    found = given_anywhere([swapped, half, none, fault])
    assert found == {"2": {"goals": 6, "given": 3, "chance": 3}}  # the same task thrice
    other = replace(TASK, goals=tuple(replace(goal, answers=("elsewhere",)) for goal in TASK.goals))
    assert given_anywhere([swapped, half.replace(task=other)])["2"] == {"goals": 4, "given": 2, "chance": 1}
