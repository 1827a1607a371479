"""Token counter, text space, budgets, tag escaping: the small parts that touch text and limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempo_env.actions import TAGS, scan
from mempo_env.budgets import BRIEF, PAPER, Budget, get_budget
from mempo_env.errors import UserError
from mempo_env.spaces import Unicode
from mempo_env.tokens import RegexTokenCounter, TokenCounter
from mempo_env.tools import escape_tags

COUNTER = RegexTokenCounter()


@given(st.text(), st.integers(0, 12))
def test_truncation_keeps_a_prefix_within_the_limit(text: str, n: int) -> None:
    cut = COUNTER.truncate(text, n)
    assert text.startswith(cut)
    assert COUNTER.count(cut) <= n
    if COUNTER.count(text) <= n:
        assert cut == text
    else:
        assert COUNTER.count(cut) == n


SPACED = st.lists(
    st.one_of(
        st.sampled_from([" ", "  ", " " * 15, " " * 16, " " * 17, " " * 18, "\n", "a", "b" * 13, "1234", "_", "é文½²"]),
        st.text(max_size=3),
    )
).map("".join)


@given(SPACED, st.integers(0, 12))
def test_truncation_ends_after_the_nth_token_of_the_count(text: str, n: int) -> None:
    """Against a plain walk over the tokens that are counted."""
    ends = [match.end() for match in COUNTER._TOKEN.finditer(text)]
    assert COUNTER.count(text) == len(ends)
    assert COUNTER.truncate(text, n) == (text if len(ends) <= n else text[: ends[n - 1] if n else 0])


def test_counts_by_hand() -> None:
    assert isinstance(COUNTER, TokenCounter)
    assert COUNTER.count("Mira plays chess.") == 4
    assert COUNTER.count("12345") == 2
    assert COUNTER.count("a\nb_c") == 5
    assert COUNTER.count("") == 0


@given(
    st.lists(st.one_of(st.text(max_size=5), st.sampled_from([f"<{s}{t}>" for t in TAGS.values() for s in ("", "/")])))
)
def test_escaped_text_has_no_blocks_and_encodes(parts: list[str]) -> None:
    escaped = escape_tags("".join(parts))
    assert scan(escaped.encode()) == []
    assert escape_tags(escaped) == escaped


def test_escaping_leaves_other_text_alone() -> None:
    assert escape_tags("a < b, <b>bold</b> <|im_end|> 文") == "a < b, <b>bold</b> <|im_end|> 文"
    assert escape_tags("\ud800x") == "?x"


def test_unicode_space() -> None:
    space = Unicode(max_length=3, samples=("", "é 文"), seed=0)
    assert "é 文" in space
    assert "four" not in space
    assert 3 not in space
    assert {space.sample() for _ in range(50)} == {"", "é 文"}
    one, two = (Unicode(max_length=3, samples=("", "é 文"), seed=7) for _ in range(2))
    assert [one.sample() for _ in range(20)] == [two.sample() for _ in range(20)]
    assert space == one
    assert space != Unicode(max_length=4, samples=("",))
    assert space.from_jsonable(space.to_jsonable(["a", "b"])) == ["a", "b"]
    with pytest.raises(ValueError, match="samples"):
        Unicode(max_length=1, samples=("too long",))
    with pytest.raises(ValueError, match="mask"):
        space.sample(mask=np.ones(2))


def test_named_budgets_are_the_sources() -> None:
    assert get_budget("brief") is BRIEF
    assert (BRIEF.max_tool_calls, BRIEF.memory_tokens) == (5, 256)
    assert get_budget("paper") is PAPER
    assert (PAPER.max_turns, PAPER.queries_per_call) == (16, 1)
    own = Budget("mine", max_tool_calls=1)
    assert get_budget(own) is own


def test_changed_budgets_say_so() -> None:
    assert get_budget("brief", max_turns=12) == Budget("brief*", max_turns=12)
    assert get_budget({"name": "paper", "memory_tokens": 64}).memory_tokens == 64
    assert get_budget({"max_turns": 9}).name == "brief*"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("breif", "did you mean 'brief'"),
        ({"name": "papper"}, "did you mean 'paper'"),
        ({"max_turn": 3}, "did you mean 'max_turns'"),
        ({"max_turns": 1}, "at least 2"),
        ({"max_tool_calls": 0}, "at least 1"),
        ({"max_turns": "9"}, "whole number"),
        ({"max_turns": True}, "whole number"),
    ],
)
def test_bad_budgets_are_the_users_to_mend(budget: str | dict[str, int | str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_budget(budget)
