"""The study's numbers, by hand: intervals, shares, differences, correlations, budgets."""

from __future__ import annotations

import math

import pytest
from memory_study import measures
from memory_study.estimates import Estimate, apart, over_seeds, t_interval

from .made_up_study import part, probe, training


def test_intervals_over_seeds_need_three() -> None:
    # mean 2, standard deviation 1, t(2) = 4.303: 2 -+ 4.303 / sqrt(3)
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))
    assert over_seeds([1.0, 3.0]).text() == "2.0"
    assert over_seeds([1.0, math.nan, 3.0]).n == 2
    assert over_seeds([]).text() == "-"
    assert over_seeds([1.0, 2.0, 3.0]).text(1, sign=True) == "+2.0 (-0.5 to +4.5)"


def test_intervals_are_apart_or_not() -> None:
    one, two, three = Estimate(1, 0.5, 1.5, 3), Estimate(3, 1.6, 4, 3), Estimate(2, 1.5, 3, 3)
    assert apart(one, two) is True
    assert apart(two, one) is True
    assert apart(one, three) is False
    assert apart(one, Estimate(1, math.nan, math.nan, 2)) is None
    assert (one.excludes_zero, Estimate(1, -1, 2, 3).excludes_zero) == (True, False)
    assert Estimate(1, math.nan, math.nan, 1).excludes_zero is None


def test_differences_pair_tasks_by_seed_and_leave_faults_out() -> None:
    ours = {"2": part([10.0, 20.0, None, 40.0], seed=[5, 6, 7, 8])}
    theirs = {"2": part([1.0, None, 3.0, 4.0], seed=[8, 6, 7, 5])}
    assert measures.paired(ours, theirs, 2) == [10.0 - 4.0, 40.0 - 1.0]


def test_shares_and_qualities() -> None:
    counts = {"kept": [1, None, 2], "had": [2, None, 2], "quality": [[0.9, 0.7], None, [0.85]]}
    found = {"2": part([1.0, None, 1.0], **counts), "4": part([1.0], kept=[1], had=[6], quality=[[0.2]])}
    assert measures.pooled_share(found, (2,), "kept", "had") == 0.75
    assert measures.pooled_share(found, (2, 4), "kept", "had") == 0.4
    assert math.isnan(measures.pooled_share({"2": part([1.0], had=[0])}, (2,), "kept", "had"))
    mean, above = measures.quality(found, (2, 4))
    assert mean == pytest.approx((0.9 + 0.7 + 0.85 + 0.2) / 4)
    assert above == 0.5
    assert math.isnan(measures.quality({"2": part([1.0], quality=[[]])}, (2,))[0])


def test_the_gap_is_closed_by_share_of_the_way() -> None:
    assert measures.gap_closed(20, 30, 60) == 0.25
    assert measures.gap_closed(20, 10, 60) == -0.25
    assert math.isnan(measures.gap_closed(60, 70, 60))


def test_f1_at_the_right_number_leaves_the_others_out() -> None:
    columns = {"f1": [50.0, 0.0, 100.0, None, 0.0], "wrong_number": [0, 1, 0, None, 0]}
    some = {"2": {"episodes": columns | {"truncated": [0.0, 0.0, 0.0, None, 100.0]}}}
    assert measures.at_right_number(some, 2) == 75
    none = {"2": {"episodes": {"f1": [0.0], "wrong_number": [1], "truncated": [0.0]}}}
    assert math.isnan(measures.at_right_number(none, 2))


def test_savings_are_means_over_episodes() -> None:
    found = {"2": part([1.0, 1.0])}
    found["2"]["history"] = {
        **{"episodes": 2, "calls": 3.0, "memory_total": 300, "history_total": 1200},
        **{"memory_peak": 100, "history_peak": 400, "bound": 0.5},
    }
    assert measures.saving(found, 2) == {
        **{"total": 150, "peak": 50, "history_total": 600, "history_peak": 200},
        **{"saved_total": 0.75, "saved_peak": 0.75, "bound": 0.5},
    }
    assert math.isnan(measures.saving({"2": part([1.0])}, 2)["bound"])
    assert measures.saving({"2": part([1.0])}, 2)["total"] == 1


def test_signs_of_collapse() -> None:
    counts = {"format_errors": [1, 2], "turns": [4, 2], "truncated": [100.0, 0.0], "memories": [4, 4]}
    found = {"2": part([1.0, 1.0], memories_same=[1, 3], **counts)}
    signs = measures.signs(found, (2,))
    assert (signs["format_errors"], signs["cut short"], signs["same memory"]) == (0.5, 0.5, 0.5)
    assert (signs["turns"], signs["template"], signs["memory tokens"]) == (3, 0.25, 15)


def test_correlations_are_within_groups() -> None:
    # Between groups the two rise together, within they run against each other.
    x, y = [1.0, 2.0, 11.0, 12.0], [2.0, 1.0, 12.0, 11.0]
    assert measures.correlation(x, y, [0, 0, 1, 1]) == pytest.approx(-1)
    assert measures.correlation(x, y, [0, 0, 0, 0]) > 0.9
    assert math.isnan(measures.correlation([1.0, 1.0], [1.0, 2.0], [0, 0]))
    assert math.isnan(measures.correlation([1.0, 5.0], [1.0, 2.0], [0, 1]))


def test_what_is_given_is_taken_out_of_both() -> None:
    third = [0.0, 1.0, 2.0, 3.0, 0.0, 1.0]
    one = [2 * t + e for t, e in zip(third, [0.1, -0.1, -0.1, 0.1, 0.0, 0.0], strict=True)]
    two = [-t + e for t, e in zip(third, [0.1, -0.1, -0.1, 0.1, 0.0, 0.0], strict=True)]
    groups = [0, 0, 0, 0, 1, 1]
    assert measures.correlation(one, two, groups) < -0.99
    assert measures.partial_correlation(one, two, [third], groups) > 0.99
    assert math.isnan(measures.partial_correlation(third, two, [third], groups))


def test_estimators_have_variance_and_correlations() -> None:
    found = measures.estimators(probe(), ("reference", "old_memory"))
    assert list(found) == ["reference"]
    assert found["reference"]["variance"] == pytest.approx(10 / 3)  # of -1, 1, -2, 2 about 0
    # Within groups: x = -.5, .5, -.5, .5 and y = -1, 1, -2, 2: 3 / sqrt(1 * 10)
    assert found["reference"]["calls"] == pytest.approx(3 / math.sqrt(10))
    assert math.isnan(found["reference"][measures.AT_EQUAL_TURN])  # each memory is alone at its turn
    memories = probe()["memories"] | {"turn": [0, 0, 1, 1], "group": [0] * 4, "facts_held": [1, 2, 5, 3]}
    memories |= {"rollout": [0, 1, 0, 1], "quality": [0.1, 0.3, 0.6, 0.9]}
    late = measures.estimators({"memories": memories}, ("reference", "same_turn"))
    # Less the other memory of the turn: -.2, .2, -.3, .3. Facts less the mean of their turn: -.5, .5, 1, -1.
    assert late["same_turn"]["variance"] == pytest.approx(0.26 / 3)
    assert late["same_turn"]["turn"] == pytest.approx(0)
    assert late["same_turn"][measures.AT_EQUAL_TURN] == pytest.approx(-0.4 / math.sqrt(0.26 * 2.5))
    # -1, 1, -2, 2 of reference, whose means at each turn are 0
    assert late["reference"][measures.AT_EQUAL_TURN] == pytest.approx(-3 / math.sqrt(10 * 2.5))


def test_costs_add_up_and_values_are_read_at_a_budget() -> None:
    spent = measures.costs(training([0.1, 0.2, 0.3], 10.0, 2.0))
    assert spent == {"steps": [1, 2, 3], "tokens": [600, 1240, 1880], "cpu": [2, 4, 6]}  # 60, 64, 64 episodes
    assert measures.at_budget([0.1, 0.2, 0.3], spent["tokens"], 1300, window=1) == 0.2
    assert measures.at_budget([0.1, None, 0.3], spent["cpu"], 6, window=2) == pytest.approx(0.2)
    assert math.isnan(measures.at_budget([0.1], [10], 9))
    assert measures.ends([1.0, None, 3.0, 5.0], 2) == (2.0, 4.0)
