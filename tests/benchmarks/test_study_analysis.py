"""What is read off episodes, by hand: facts over rewrites, columns, templates."""

from __future__ import annotations

import pytest
from memory_study.analysis import columns, episode_facts, template_share

from mempo_env.actions import Answer, FormatError, FormatErrorKind

from .two_goals import CALL, episode, turn


def test_facts_are_counted_over_rewrites() -> None:
    played = episode(
        turn("", "", CALL),
        turn("Ada plays chess. Ada owns fox. | Ben trusts Cy. Ben eats soup.", "Ada plays chess; Ben trusts Cy", CALL),
        # The first fact is lost, a wrong value is written, a true but useless note and a repeated one are there.
        turn("Cy eats rice. Cy owns cat.", "Ben trusts Cy; Cy owns cat; Cy eats soup; Ben trusts Cy", CALL),
        turn("", "Ben trusts Cy; Cy owns cat; Cy eats soup; Ben trusts Cy", Answer(("unknown", "soup"))),
    )
    assert episode_facts(played) == {
        "facts": 3,
        "facts_shown": 3,
        "facts_final": 1,
        "had": 0 + 0 + 2 + 1,
        "kept": 0 + 0 + 1 + 1,
        "new": 0 + 2 + 1 + 0,
        "noted": 0 + 2 + 0 + 0,
        "notes": 0 + 2 + 4 + 4,
        "notes_right": 0 + 2 + 2 + 2,
        "notes_invented": 0 + 0 + 1 + 0,
        "notes_repeated": 0 + 0 + 1 + 1,
        "memories": 4,
        "memories_same": 1,
        "memories_full": 0,
        "early": 0,
        "goals_unknown": 1,
        "wrong_number": 0,
    }


def test_a_memory_that_was_not_committed_counts_as_no_rewrite() -> None:
    error = FormatError(FormatErrorKind.NO_ACTION, "no action")
    played = episode(
        turn("Ada plays chess.", "", error, written=False),
        turn("Ada plays chess.", "Ada plays chess", Answer(("chess",))),
    )
    found = episode_facts(played)
    assert (found["memories"], found["new"], found["noted"]) == (1, 1, 1)
    assert (found["early"], found["wrong_number"]) == (1, 1)  # two facts were never shown; one answer for two goals


def test_columns_hold_one_entry_per_episode_and_none_for_a_fault() -> None:
    good = episode(turn("", "Ada plays chess", Answer(("chess", "rice")), quality=0.25))
    table = columns([good.replace(error="down"), good, good.replace(turns=(*good.turns[:0], turn("", "", CALL)))])
    assert table["error"] == [1, 0, 0]
    assert table["f1"] == [None, 50.0, 50.0]
    assert table["quality"] == [None, [0.25], []]
    assert table["quality_turn"] == [None, [0], []]
    assert {len(column) for column in table.values()} == {3}


def test_template_share() -> None:
    assert template_share(["a; b", "a; b", "c", "d"]) == 0.5
    assert template_share(["x", "y", "z"]) == pytest.approx(1 / 3)
