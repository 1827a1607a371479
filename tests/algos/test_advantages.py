"""Advantage estimators against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mempo_env.algos.advantages import (
    centred_memory_advantages,
    group_advantages,
    guard_failed_group,
    leave_one_out_advantages,
    leave_one_out_mean,
    standardised_memory_advantages,
)
from mempo_env.algos.algorithm_config import Normalisation


def d(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ALL = torch.tensor([True] * 4)


def test_group_advantages_by_hand() -> None:
    # mean 0.5, unbiased std sqrt((4 * 0.25) / 3) = 0.57735...
    result = group_advantages(d(1, 0, 1, 0), ALL, eps=1e-6)
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert torch.allclose(result, d(expected, -expected, expected, -expected), atol=1e-12)


def test_group_advantages_without_std() -> None:
    assert torch.equal(group_advantages(d(3, 0, 0, 1), ALL, normalise_std=False), d(2, -1, -1, 0))


def test_errors_are_left_out_of_mean_and_std() -> None:
    valid = torch.tensor([True, True, False, True])
    with_error = group_advantages(d(1, 0, 1000, 0), valid)
    without = group_advantages(d(1, 0, 0), torch.tensor([True] * 3))
    assert torch.equal(with_error[valid], without)
    assert with_error[2] == 0


@pytest.mark.parametrize(
    ("returns", "valid"),
    [
        (d(0.7), torch.tensor([True])),
        (d(0.7, 0.7, 0.7), torch.tensor([True] * 3)),
        (d(0.1 + 0.2, 0.1 + 0.2, 0.1 + 0.2), torch.tensor([True] * 3)),
        (d(1, 0, 3), torch.tensor([False] * 3)),
        (d(1, 0, 3), torch.tensor([False, True, False])),
    ],
)
@pytest.mark.parametrize("normalise", [True, False])
def test_nothing_to_compare_is_zero(returns: Tensor, valid: Tensor, normalise: bool) -> None:
    assert torch.equal(group_advantages(returns, valid, normalise_std=normalise), torch.zeros_like(returns))


@given(st.lists(st.floats(-10, 10, allow_nan=False), min_size=2, max_size=8), st.floats(-5, 5))
def test_group_advantages_ignore_a_shift(values: list[float], shift: float) -> None:
    member = torch.ones(len(values), dtype=torch.bool)
    plain = group_advantages(d(*values), member, normalise_std=False)
    assert torch.allclose(group_advantages(d(*values) + shift, member, normalise_std=False), plain, atol=1e-9)
    assert abs(plain.sum().item()) < 1e-9


def test_leave_one_out_advantages_by_hand() -> None:
    """1 - (0 + 0.5)/2, 0 - (1 + 0.5)/2, 0.5 - (1 + 0)/2; the third return belongs to an error."""
    valid = torch.tensor([True, True, False, True])
    result = leave_one_out_advantages(d(1, 0, 1000, 0.5), valid)
    assert torch.allclose(result, d(0.75, -0.75, 0, 0), atol=1e-15)
    centred = group_advantages(d(1, 0, 1000, 0.5), valid, normalise_std=False)
    assert torch.allclose(result, centred * 3 / 2)


@pytest.mark.parametrize("returns", [d(0.7), d(0.1, 0.1, 0.1)])
def test_leave_one_out_with_nothing_to_compare_is_zero(returns: Tensor) -> None:
    valid = torch.ones(len(returns), dtype=torch.bool)
    assert torch.equal(leave_one_out_advantages(returns, valid), torch.zeros_like(returns))
    assert torch.equal(leave_one_out_advantages(returns, ~valid), torch.zeros_like(returns))


def test_leave_one_out_mean_by_hand() -> None:
    # episode 0 wrote .2 and .4, episode 1 wrote .8, episode 2 wrote .1 and .3
    baseline, has = leave_one_out_mean(d(0.2, 0.4, 0.8, 0.1, 0.3), torch.tensor([0, 0, 1, 2, 2]))
    assert torch.allclose(baseline, d(0.4, 0.4, 0.25, 1.4 / 3, 1.4 / 3))
    assert has.all()


def test_leave_one_out_of_one_episode_has_no_baseline() -> None:
    baseline, has = leave_one_out_mean(d(0.2, 0.9), torch.tensor([3, 3]))
    assert not has.any()
    assert torch.equal(centred_memory_advantages(d(0.2, 0.9), baseline, has), d(0, 0))


def test_pooled_and_per_turn_by_hand() -> None:
    reward, turn = d(0.1, 0.3, 0.5, 0.9), torch.tensor([0, 0, 1, 1])
    pooled = standardised_memory_advantages(reward, turn, "pooled", eps=0.0)
    assert torch.allclose(pooled, (reward - 0.45) / reward.std())
    # two values a and b: unbiased std is |a - b| / sqrt(2), so that they come out as -+ 1 / sqrt(2)
    per_turn = standardised_memory_advantages(reward, turn, "per_turn", eps=0.0)
    half = 1 / math.sqrt(2)
    assert torch.allclose(per_turn, d(-half, half, -half, half))


def test_per_turn_set_of_one_is_zero() -> None:
    assert torch.equal(standardised_memory_advantages(d(0.4), torch.tensor([2]), "per_turn"), d(0))
    mixed = standardised_memory_advantages(d(0.4, 0.1, 0.2), torch.tensor([0, 1, 1]), "per_turn")
    assert mixed[0] == 0
    assert mixed[1] < 0 < mixed[2]


def test_guard_keeps_only_what_is_above_the_baseline() -> None:
    assert torch.equal(guard_failed_group(d(-0.3, 0.0, 0.2)), d(0, 0, 0.2))


def test_a_constant_baseline_cancels_when_the_mean_is_subtracted() -> None:
    """Why ``reference`` and ``empty_memory`` are refused under ``pooled`` and ``per_turn`` (method 4)."""
    quality, turn = d(0.11, 0.32, 0.53, 0.94), torch.tensor([0, 0, 1, 1])
    normalisations: tuple[Normalisation, ...] = ("pooled", "per_turn")
    for normalisation in normalisations:
        with_b = standardised_memory_advantages(quality - 0.37, turn, normalisation)
        without = standardised_memory_advantages(quality, turn, normalisation)
        assert torch.allclose(with_b, without, atol=1e-12)
    per_turn_b = quality - d(0.3, 0.1, 0.0, 0.2)
    assert not torch.allclose(
        standardised_memory_advantages(per_turn_b, turn, "pooled"),
        standardised_memory_advantages(quality, turn, "pooled"),
    )
