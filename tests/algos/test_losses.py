"""Losses against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mempo_env.algos.losses import clipped_surrogate, cross_entropy, kl_k3


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.4, True),  # above the range, good: clipped to 1.2
        (1.5, -2.0, 3.0, False),  # above the range, bad: the minimum keeps the gradient
        (0.5, 2.0, -1.0, False),  # below the range, good: keeps the gradient
        (0.5, -2.0, 1.6, True),  # below the range, bad: clipped to 0.8
        (1.1, -1.0, 1.1, False),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, clipped):
    logprobs = torch.tensor([math.log(ratio) - 1.0], dtype=torch.float64, requires_grad=True)
    value, was_clipped = clipped_surrogate(
        logprobs, torch.tensor([-1.0], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    )
    assert value.item() == pytest.approx(loss, abs=1e-12)
    assert was_clipped.item() is clipped
    value.sum().backward()
    # d/dlogp of -rho A is -rho A; a clipped token has none
    assert logprobs.grad.item() == pytest.approx(0.0 if clipped else -ratio * advantage, abs=1e-12)


def test_asymmetric_clip():
    logprobs = torch.tensor([math.log(1.25)], dtype=torch.float64)
    old = torch.zeros(1, dtype=torch.float64)
    assert clipped_surrogate(logprobs, old, torch.ones(1), clip_high=0.28)[0].item() == pytest.approx(-1.25)
    assert clipped_surrogate(logprobs, old, torch.ones(1), clip_high=0.2)[0].item() == pytest.approx(-1.2)


def test_ratio_one_has_the_policy_gradient():
    logprobs = torch.tensor([-0.3, -2.0], requires_grad=True)
    loss, clipped = clipped_surrogate(logprobs, logprobs.detach(), torch.tensor([0.7, -1.5]))
    loss.sum().backward()
    assert torch.allclose(logprobs.grad, torch.tensor([-0.7, 1.5]))
    assert not clipped.any()


def test_k3_by_hand():
    # d = log .5 - log .25 = log 2; k3 = 2 - log 2 - 1
    assert kl_k3(torch.tensor([0.25]).log(), torch.tensor([0.5]).log()).item() == pytest.approx(
        1 - math.log(2), abs=1e-6
    )


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative_and_zero_where_equal(a, b):
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    assert kl_k3(x, y).item() >= -1e-12
    assert kl_k3(x, x).item() == 0


def test_k3_is_unbiased_for_kl():
    """Averaged over pi it is KL(pi || pi_ref): summed exactly over a distribution of four outcomes."""
    pi = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    reference = torch.tensor([0.25, 0.25, 0.4, 0.1], dtype=torch.float64)
    estimate = (pi * kl_k3(pi.log(), reference.log())).sum()
    assert torch.isclose(estimate, (pi * (pi.log() - reference.log())).sum())


def test_cross_entropy():
    assert cross_entropy(torch.tensor([-1.5])).item() == 1.5
