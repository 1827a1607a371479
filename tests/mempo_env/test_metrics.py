from __future__ import annotations

import math

import pytest

from mempo_env.metrics import bootstrap_interval, exact_match, f1_score, normalise_answer, score_answers, token_costs
from mempo_env.records import Episode, Goal, Task, Turn

# answer, gold, EM, F1: by hand after SQuAD's and HotpotQA's evaluation scripts
TABLE = [
    ("chess", "chess", 1.0, 1.0),
    ("The Chess!", "chess", 1.0, 1.0),
    ("a red fox", "the fox", 0.0, 2 / 3),  # {red, fox} and {fox}: precision 1/2, recall 1
    ("red red fox", "red fox fox", 0.0, 2 / 3),  # common: one red, one fox; 2/3 of each side
    ("fox", "dog", 0.0, 0.0),
    ("", "dog", 0.0, 0.0),
    ("the", "dog", 0.0, 0.0),
    ("yes", "yes", 1.0, 1.0),
    ("yes it is", "yes", 0.0, 0.0),
    ("no", "no way", 0.0, 0.0),
    ("1,000", "1000", 1.0, 1.0),
    ("U.S.", "us", 1.0, 1.0),
    ("été", "ete", 0.0, 0.0),
    ("A", "A", 1.0, 1.0),  # nothing is left of the gold answer: as written
    ("a", "A", 1.0, 1.0),
    ("", "A", 0.0, 0.0),
    ("the", "A", 0.0, 0.0),
    ("*", "*", 1.0, 1.0),
]


@pytest.mark.parametrize(("answer", "gold", "em", "f1"), TABLE)
def test_scores_by_hand(answer: str, gold: str, em: float, f1: float) -> None:
    assert exact_match(answer, gold) == em
    assert f1_score(answer, gold) == pytest.approx(f1, abs=1e-12)


def test_normal_form() -> None:
    assert normalise_answer("  An  apple-pie, the best ") == "applepie best"


def test_the_best_alias_counts_per_goal() -> None:
    goals = [Goal("q1", ("New York City", "NYC")), Goal("q2", ("blue",))]
    scores = score_answers(["nyc", "dark blue"], goals)
    assert scores.em_per_goal == (1.0, 0.0)
    assert scores.f1_per_goal == pytest.approx((1.0, 2 / 3))
    assert scores.em == 0.5
    assert scores.f1 == pytest.approx(5 / 6)
    assert not scores.success


@pytest.mark.parametrize("answers", [["blue"], ["blue", "x", "y"], []])
def test_a_wrong_number_of_answers_scores_nothing(answers: list[str]) -> None:
    goals = [Goal("q1", ("blue",)), Goal("q2", ("x",))]
    assert score_answers(answers, goals).f1 == score_answers(answers, goals).em == 0.0


def test_success_needs_every_goal() -> None:
    assert score_answers(["a1", "b1"], [Goal("q", ("a1",)), Goal("r", ("b1",))]).success


def turn(prompt: tuple[int, ...], output: tuple[int, ...]) -> Turn:
    return Turn(
        observation={},
        text="",
        action=None,  # type: ignore[arg-type]
        reward=0.0,
        reward_components={},
        memory="",
        memory_written=False,
        n_prompt=len(prompt),
        n_output=len(output),
        prompt_ids=prompt,
        output_ids=output,
        segments=(0,) * len(output),
    )


def test_token_costs_by_hand() -> None:
    turns = (turn((1, 2, 3), (4, 5)), turn((1, 2, 3, 4, 5, 6), (7,)), turn((1, 9), (8,)))
    episode = Episode(turns, Task((Goal("q", ("a",)),)), "g", 0, 0, 0.0, True, False)
    costs = token_costs(episode)
    assert costs.total == 5 + 7 + 3
    assert costs.total_unique == 5 + 2 + 2  # five were seen before the second call, one before the third
    assert costs.peak == 7


def test_bootstrap_interval() -> None:
    low, high = bootstrap_interval([0.0, 1.0] * 50)
    assert 0.38 < low < 0.45 < 0.55 < high < 0.62
    assert bootstrap_interval([0.3] * 4) == pytest.approx((0.3, 0.3))
    assert all(math.isnan(bound) for bound in bootstrap_interval([]))
