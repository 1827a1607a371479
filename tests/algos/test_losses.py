"""Losses against numbers worked out by hand."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mempo_env.algos.algorithm_config import Aggregation
from mempo_env.algos.losses import clipped_surrogate, cross_entropy, kl_k3, sequence_log_ratio, token_weights


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
def test_clipped_surrogate_by_hand(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    logprobs = torch.tensor([math.log(ratio) - 1.0], dtype=torch.float64, requires_grad=True)
    value, was_clipped = clipped_surrogate(
        logprobs, torch.tensor([-1.0], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    )
    assert value.item() == pytest.approx(loss, abs=1e-12)
    assert was_clipped.item() is clipped
    value.sum().backward()
    # d/dlogp of -rho A is -rho A; a clipped token has none
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(0.0 if clipped else -ratio * advantage, abs=1e-12)


def test_asymmetric_clip() -> None:
    logprobs = torch.tensor([math.log(1.25)], dtype=torch.float64)
    old = torch.zeros(1, dtype=torch.float64)
    assert clipped_surrogate(logprobs, old, torch.ones(1), clip_high=0.28)[0].item() == pytest.approx(-1.25)
    assert clipped_surrogate(logprobs, old, torch.ones(1), clip_high=0.2)[0].item() == pytest.approx(-1.2)


def test_ratio_one_has_the_policy_gradient() -> None:
    logprobs = torch.tensor([-0.3, -2.0], requires_grad=True)
    loss, clipped = clipped_surrogate(logprobs, logprobs.detach(), torch.tensor([0.7, -1.5]))
    loss.sum().backward()
    assert logprobs.grad is not None
    assert torch.allclose(logprobs.grad, torch.tensor([-0.7, 1.5]))
    assert not clipped.any()


def test_k3_by_hand() -> None:
    # d = log .5 - log .25 = log 2; k3 = 2 - log 2 - 1
    assert kl_k3(torch.tensor([0.25]).log(), torch.tensor([0.5]).log()).item() == pytest.approx(
        1 - math.log(2), abs=1e-6
    )


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative_and_zero_where_equal(a: float, b: float) -> None:
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    assert kl_k3(x, y).item() >= -1e-12
    assert kl_k3(x, x).item() == 0


def test_k3_is_unbiased_for_kl() -> None:
    """Averaged over pi it is KL(pi || pi_ref): summed exactly over a distribution of four outcomes."""
    pi = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    reference = torch.tensor([0.25, 0.25, 0.4, 0.1], dtype=torch.float64)
    estimate = (pi * kl_k3(pi.log(), reference.log())).sum()
    assert torch.isclose(estimate, (pi * (pi.log() - reference.log())).sum())


def test_cross_entropy() -> None:
    assert cross_entropy(torch.tensor([-1.5])).item() == 1.5


# The sequence-level ratio -----------------------------------------------------------------------------------------

MASK = torch.tensor([[True, True, True], [True, False, False]])


def rows(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_sequence_ratio_by_hand() -> None:
    """Ratios 2, 4 and 1 in one row: their geometric mean is 2. A row of one token keeps its own."""
    logprobs = rows([[math.log(2.0), math.log(4.0), 0.0], [math.log(3.0), 7.0, 7.0]]).requires_grad_()
    log_ratio = sequence_log_ratio(logprobs, MASK)
    assert torch.allclose(log_ratio.exp()[MASK], rows([2.0, 2.0, 2.0, 3.0]))
    loss, clipped = clipped_surrogate(logprobs, torch.zeros_like(logprobs), -torch.ones(2, 3), sequence_mask=MASK)
    assert torch.allclose(loss[MASK], rows([2.0, 2.0, 2.0, 3.0]))
    assert not clipped[MASK].any(), "too likely and bad: the gradient stays"
    loss, clipped = clipped_surrogate(logprobs, torch.zeros_like(logprobs), torch.ones(2, 3), sequence_mask=MASK)
    assert torch.allclose(loss[MASK], rows([-1.2] * 4))
    assert clipped[MASK].all()


def test_sequence_ratio_has_the_gradient_of_gspo() -> None:
    """With one advantage per sequence and the mean over its tokens: that of s A, s = exp(mean of log ratios)."""
    old, advantages = rows([[-1.0, -2.0, -0.5], [-0.3, 0.0, 0.0]]), rows([[1.5], [-0.7]])
    logprobs = rows([[-1.1, -1.9, -0.45], [-0.35, 0.0, 0.0]]).requires_grad_()
    loss, _ = clipped_surrogate(logprobs, old, advantages, sequence_mask=MASK)
    counts = MASK.sum(-1, keepdim=True)
    ((loss * MASK) / counts).sum().backward()
    plain = logprobs.detach().clone().requires_grad_()
    ratio = (((plain - old) * MASK).sum(-1) / counts[:, 0]).exp()
    (-ratio * advantages[:, 0]).sum().backward()
    assert logprobs.grad is not None
    assert plain.grad is not None
    assert torch.allclose(logprobs.grad, plain.grad, atol=1e-15)
    assert logprobs.grad[MASK].all()


def test_with_advantages_by_token_a_token_moves_itself_alone() -> None:
    """As MemPO needs it: credit on the first token only leaves the others without a gradient."""
    logprobs = rows([[-1.1, -1.9, -0.45]]).requires_grad_()
    loss, _ = clipped_surrogate(logprobs, rows([[-1.0, -2.0, -0.5]]), rows([[2.0, 0.0, 0.0]]), sequence_mask=MASK[:1])
    loss.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0, 1:].tolist() == [0.0, 0.0]
    assert logprobs.grad[0, 0] == pytest.approx(-2.0 * math.exp((-0.1 + 0.1 + 0.05) / 3))


# The mean over a minibatch ----------------------------------------------------------------------------------------

LENGTHS = ([2, 6], [4])
LOSSES = ([1.0] * 2 + [2.0] * 6, [5.0] * 4)
"""Two episodes: turns of two and six tokens with losses 1 and 2, one of four tokens with loss 5."""


@pytest.mark.parametrize(
    ("aggregation", "divisor", "expected"),
    [
        ("episode", 0, ((2 + 12) / 8 + 20 / 4) / 2),
        ("token", 0, (2 + 12 + 20) / 12),
        ("sequence", 0, (1 + 2 + 5) / 3),
        ("constant", 10, ((2 + 12) / 10 + 20 / 10) / 2),
    ],
)
def test_aggregation_by_hand(aggregation: Aggregation, divisor: int, expected: float) -> None:
    total, mass = 0.0, 0.0
    for lengths, losses in zip(LENGTHS, LOSSES, strict=True):
        weights, part = token_weights(lengths, aggregation, divisor)
        each = [weight for weight, length in zip(weights, lengths, strict=True) for _ in range(length)]
        total += sum(w * loss for w, loss in zip(each, losses, strict=True))
        mass += part
    assert total / mass == pytest.approx(expected)
