"""EM and F1 against the published scripts: cases worked by hand, and their algorithm written again in another way.

The scripts are SQuAD's ``evaluate-v1.1.py`` and HotpotQA's ``hotpot_evaluate_v1.py``, which 2WikiMultihopQA's
``2wikimultihop_evaluate_v1.1.py`` repeats. They normalise alike and differ in one thing: HotpotQA's gives no partial
F1 where either side is ``yes``, ``no`` or ``noanswer``. Ours is HotpotQA's.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mempo_env.metrics import exact_match, f1_score, normalise_answer, score_answers
from mempo_env.records import Goal

# (answer, gold, EM, F1); F1 = 2PR / (P + R) worked out by hand where it is neither 0 nor 1
BY_HAND = [
    ("Denver Broncos", "Denver Broncos", 1, 1),
    ("the Denver Broncos.", "Denver Broncos", 1, 1),
    ("DENVER BRONCOS", "Denver Broncos", 1, 1),
    ("Broncos", "Denver Broncos", 0, 2 / 3),  # P 1, R 1/2
    ("Denver Broncos football team", "Denver Broncos", 0, 2 / 3),  # P 2/4, R 1
    ("New York City, New York", "New York", 0, 4 / 7),  # P 2/5, R 1
    ("York York", "York", 0, 2 / 3),  # a token counts as often as it is in both: P 1/2, R 1
    ("York", "York York", 0, 2 / 3),
    ("red blue green", "green red", 0, 4 / 5),  # P 2/3, R 1
    ("green red", "red green", 0, 1),  # the order does not count
    ("7 July 1990", "July 7, 1990", 0, 1),
    ("well-known", "well known", 0, 0),  # a hyphen goes without leaving a space
    ("well-known", "wellknown", 1, 1),
    ("a-ha", "Aha", 1, 1),
    ("1,000,000", "1000000", 1, 1),
    ("3.14", "314", 1, 1),
    ("$5", "5", 1, 1),
    ("30% to 65%", "30 to 65", 1, 1),
    ("snake_case", "snakecase", 1, 1),  # the underscore is punctuation
    ("1990–1995", "1990-1995", 0, 0),  # a dash outside ASCII is none
    ("don’t", "don't", 0, 0),
    ("café", "CAFÉ", 1, 1),
    ("cafe\u0301", "caf\u00e9", 0, 0),  # no Unicode normalisation
    ("ΣΊΣΥΦΟΣ", "σίσυφος", 1, 1),
    ("Straße", "STRASSE", 0, 0),  # lower case, not case folding
    ("٣", "3", 0, 0),
    ("北京", "北京市", 0, 0),  # tokens are cut at white space only
    ("New\u00a0York", "New York", 1, 1),
    (" New\t\nYork ", "New York", 1, 1),
    ("theatre", "atre", 0, 0),  # an article is a whole word
    ("an apple a day", "apple day", 1, 1),
    ("A. A. Milne", "Milne", 1, 1),
    ("the—end", "—end", 1, 1),  # a dash outside ASCII bounds a word
    ("the—end", "end", 0, 0),
    ("", "x", 0, 0),
    ("the", "x", 0, 0),
    ("Yes!", "yes", 1, 1),
    ("No.", "no", 1, 1),
    ("noanswer", "No answer", 0, 0),
]
# (answer, gold, F1 by HotpotQA's script, F1 by SQuAD's)
WHOLE_ONLY = [
    ("yes, it was", "yes", 0, 1 / 2),  # P 1/3, R 1
    ("yes no", "yes", 0, 2 / 3),
    ("no", "No Doubt", 0, 2 / 3),
    ("No Doubt", "no", 0, 2 / 3),
    ("yes", "yes yes", 0, 2 / 3),
    ("noanswer at all", "noanswer", 0, 1 / 2),
    ("yes sir", "no sir", 1 / 2, 1 / 2),  # neither side is the bare word
]
# (answer, gold, EM here, F1 here, EM published, F1 published): nothing is left of the gold answer
NOTHING_LEFT = [
    ("", "A", 0, 0, 1, 0),
    ("the", "A", 0, 0, 1, 0),
    ("!", "*", 0, 0, 1, 0),
    ("a", "A", 1, 1, 1, 0),
    ("*", "*", 1, 1, 1, 0),
    ("B", "A", 0, 0, 0, 0),
]


def published_tokens(text: str) -> list[str]:
    """What the scripts make of a text, without regular expressions: punctuation goes, then articles become a space."""
    ascii_punctuation = {chr(code) for code in range(33, 127) if not chr(code).isalnum()}
    made, run = "", ""
    for character in [*(c for c in text.lower() if c not in ascii_punctuation), " "]:
        if character.isalnum():
            run += character
            continue
        made += (" " if run in ("a", "an", "the") else run) + character
        run = ""
    return made.split()


def published_scores(answer: str, gold: str, *, hotpot: bool = True) -> tuple[float, float]:
    """EM and F1 of the scripts, matching tokens one by one."""
    ours, theirs = published_tokens(answer), published_tokens(gold)
    same = " ".join(ours) == " ".join(theirs)
    if hotpot and not same:
        for side in (ours, theirs):
            if side in (["yes"], ["no"], ["noanswer"]):
                return 0.0, 0.0
    left, hits = list(theirs), 0
    for token in ours:
        if token in left:
            left.remove(token)
            hits += 1
    if hits == 0:
        return float(same), 0.0
    precision, recall = hits / len(ours), hits / len(theirs)
    return float(same), 2 * precision * recall / (precision + recall)


def test_the_table_is_long_enough() -> None:
    assert len(BY_HAND) + len(WHOLE_ONLY) + len(NOTHING_LEFT) >= 50


@pytest.mark.parametrize(("answer", "gold", "em", "f1"), BY_HAND)
def test_by_hand(answer: str, gold: str, em: float, f1: float) -> None:
    assert exact_match(answer, gold) == em
    assert f1_score(answer, gold) == pytest.approx(f1, abs=1e-12)
    for hotpot in (True, False):
        assert published_scores(answer, gold, hotpot=hotpot) == pytest.approx((em, f1), abs=1e-12)


@pytest.mark.parametrize(("answer", "gold", "f1", "squad_f1"), WHOLE_ONLY)
def test_yes_no_and_noanswer_count_as_a_whole(answer: str, gold: str, f1: float, squad_f1: float) -> None:
    assert exact_match(answer, gold) == 0
    assert f1_score(answer, gold) == pytest.approx(f1, abs=1e-12)
    assert published_scores(answer, gold) == pytest.approx((0, f1), abs=1e-12)
    assert published_scores(answer, gold, hotpot=False) == pytest.approx((0, squad_f1), abs=1e-12)


@pytest.mark.parametrize(("answer", "gold", "em", "f1", "published_em", "published_f1"), NOTHING_LEFT)
def test_where_nothing_is_left_of_the_gold_answer_ours_differs(
    answer: str, gold: str, em: float, f1: float, published_em: float, published_f1: float
) -> None:
    assert normalise_answer(gold) == ""
    assert (exact_match(answer, gold), f1_score(answer, gold)) == (em, f1)
    assert published_scores(answer, gold) == (published_em, published_f1)


WORDS = st.sampled_from(
    ["the", "The", "a", "an", "AN", "yes", "no", "noanswer", "Yes.", "red", "Red", "fox", "fox-red", "1,000", "1000",
     "it's", "its", "é", "e\u0301", "ß", "–", "a–b", "the–", "_a_", "a_b", "İ", "ǅ", "²", "\u00a0", "\n", "", "*", ";"]
)  # fmt: skip
ANSWERS = st.one_of(st.lists(WORDS, max_size=7).map(" ".join), st.lists(WORDS, max_size=4).map("".join), st.text())


@given(ANSWERS, ANSWERS)
@example("–the–a–", "––")
@example("a a", "–a")
def test_equal_to_the_published_algorithm(answer: str, gold: str) -> None:
    assert normalise_answer(gold).split() == published_tokens(gold)
    if not published_tokens(gold):
        return  # the deliberate difference, see above
    em, f1 = published_scores(answer, gold)
    assert exact_match(answer, gold) == em
    assert f1_score(answer, gold) == pytest.approx(f1, abs=1e-12)


@given(ANSWERS, ANSWERS)
def test_scores_are_bounded_symmetric_and_whole_where_equal(answer: str, gold: str) -> None:
    em, f1 = exact_match(answer, gold), f1_score(answer, gold)
    assert 0 <= em <= f1 <= 1
    if normalise_answer(answer) and normalise_answer(gold):
        assert f1_score(gold, answer) == pytest.approx(f1, abs=1e-12)
        assert exact_match(gold, gold) == f1_score(gold, gold) == 1
    assert not normalise_answer(gold) or exact_match("", gold) == f1_score("", gold) == 0


@given(ANSWERS, st.lists(ANSWERS.filter(lambda text: ";" not in text), min_size=1, max_size=4))
def test_the_best_alias_counts_for_each_score(answer: str, golds: list[str]) -> None:
    scores = score_answers([answer], [Goal("q", tuple(golds))])
    assert scores.em == max(exact_match(answer, gold) for gold in golds)
    assert scores.f1 == max(f1_score(answer, gold) for gold in golds)
    kept = [gold for gold in golds if published_tokens(gold)]
    if len(kept) == len(golds):
        assert scores.em == max(published_scores(answer, gold)[0] for gold in golds)
        assert scores.f1 == pytest.approx(max(published_scores(answer, gold)[1] for gold in golds), abs=1e-12)
