"""GAE, whitening and the critic's loss against numbers worked out by hand and against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mempo_env.algos.gae import clipped_value_loss, explained_variance, gae, turn_rewards, whiten


def d(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand() -> None:
    """Two turns of two tokens, rewards 0.5 and 1 at their ends, gamma 0.9, lambda 0.8; so gamma lambda is 0.72.

    deltas: 0 + .9 * .3 - .2 = .07;  .5 + .9 * .4 - .3 = .56;  0 + .9 * .1 - .4 = -.31;  1 - .1 = .9
    """
    rewards, values = turn_rewards([0.5, 1.0], [2, 2]), d(0.2, 0.3, 0.4, 0.1)
    assert torch.equal(rewards, d(0, 0.5, 0, 1))
    advantages, returns = gae(rewards, values, gamma=0.9, lam=0.8)
    last = 0.9
    third = -0.31 + 0.72 * last  # 0.338
    second = 0.56 + 0.72 * third  # 0.80336
    first = 0.07 + 0.72 * second  # 0.6484192
    assert advantages.tolist() == pytest.approx([0.6484192, 0.80336, 0.338, 0.9], abs=1e-12)
    assert advantages.tolist() == pytest.approx([first, second, third, last], abs=1e-12)
    assert returns.tolist() == pytest.approx([0.8484192, 1.10336, 0.738, 1.0], abs=1e-12)


EPISODES = st.lists(
    st.tuples(st.floats(-2, 2), st.integers(1, 5), st.lists(st.floats(-2, 2), min_size=5, max_size=5)),
    min_size=1,
    max_size=5,
)


@given(EPISODES, st.floats(0.1, 1), st.floats(0, 1))
def test_against_the_closed_form(episode: list[tuple[float, int, list[float]]], gamma: float, lam: float) -> None:
    """A_n = sum over k of (gamma lambda)^k (r + gamma V(s') - V(s)), each term from the turns, not from a flat list."""
    flat = [
        (reward if o == size - 1 else 0.0, values[o], t, o)
        for t, (reward, size, values) in enumerate(episode)
        for o in range(size)
    ]

    def value_after(t: int, o: int) -> float:
        if o + 1 < episode[t][1]:
            return episode[t][2][o + 1]
        return episode[t + 1][2][0] if t + 1 < len(episode) else 0.0

    deltas = [r + gamma * value_after(t, o) - v for r, v, t, o in flat]
    expected = [math.fsum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[n:])) for n in range(len(deltas))]
    rewards = turn_rewards([reward for reward, _, _ in episode], [size for _, size, _ in episode])
    values = d(*(v for _, v, _, _ in flat))
    advantages, returns = gae(rewards, values, gamma=gamma, lam=lam)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(returns, advantages + values)


@given(EPISODES, st.floats(0.1, 1))
def test_both_ends_of_lambda(episode: list[tuple[float, int, list[float]]], gamma: float) -> None:
    rewards = turn_rewards([reward for reward, _, _ in episode], [size for _, size, _ in episode])
    values = d(*(v for _, size, vs in episode for v in vs[:size]))
    n = len(values)
    monte_carlo = d(*(sum(gamma**k * rewards[m + k].item() for k in range(n - m)) for m in range(n)))
    advantages, returns = gae(rewards, values, gamma=gamma, lam=1.0)
    assert torch.allclose(advantages, monte_carlo - values, atol=1e-12)
    assert torch.allclose(returns, monte_carlo, atol=1e-12)
    one_step, targets = gae(rewards, values, gamma=gamma, lam=0.0)
    after = torch.cat([values[1:], d(0)])
    assert torch.allclose(one_step, rewards + gamma * after - values, atol=1e-12)
    assert torch.allclose(targets, rewards + gamma * after, atol=1e-12)


def test_a_reward_moves_nothing_after_its_turn() -> None:
    """Credit goes back to what led to a reward, and stops there."""
    values = torch.zeros(6, dtype=torch.float64)
    plain, _ = gae(turn_rewards([0, 0, 1], [2, 2, 2]), values, gamma=1.0, lam=1.0)
    paid, _ = gae(turn_rewards([0, 0.5, 1], [2, 2, 2]), values, gamma=1.0, lam=1.0)
    assert torch.equal(paid - plain, d(0.5, 0.5, 0.5, 0.5, 0, 0))


def test_whitening_by_hand() -> None:
    # mean 2, unbiased variance ((-1)^2 + 0 + 1^2) / 2 = 1
    assert torch.allclose(whiten(d(1, 2, 3), eps=0.0), d(-1, 0, 1))
    assert torch.allclose(whiten(d(1, 2, 3), eps=3.0), d(-0.5, 0, 0.5))
    assert torch.equal(whiten(d(0.1 + 0.2, 0.1 + 0.2, 0.1 + 0.2)), d(0, 0, 0))
    assert torch.equal(whiten(d(0.7)), d(0))


@pytest.mark.parametrize(
    ("value", "loss", "clipped"),
    [  # V_old = 1, R = 2, clip = 0.5
        (1.0, 0.5, False),
        (1.4, 0.18, False),  # within the range
        (1.8, 0.125, True),  # beyond it towards R: the loss of 1.5, without gradient
        (0.2, 1.62, False),  # away from R: the plain loss is the larger one and keeps its gradient
    ],
)
def test_value_clip_by_hand(value: float, loss: float, clipped: bool) -> None:
    v = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    found, was_clipped = clipped_value_loss(v, d(1)[None], d(2)[None], 0.5)
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert was_clipped.item() is clipped
    found.sum().backward()
    assert v.grad is not None
    assert v.grad.item() == pytest.approx(0.0 if clipped else value - 2, abs=1e-12)


def test_without_value_clip() -> None:
    found, clipped = clipped_value_loss(d(9)[None], d(1)[None], d(2)[None], 0.0)
    assert found.item() == 24.5
    assert not clipped.any()


def test_explained_variance_by_hand() -> None:
    returns = d(0, 1, 2, 3)
    assert explained_variance(returns, returns) == 1
    assert explained_variance(returns + 5, returns) == pytest.approx(1)  # a constant error has no variance
    assert explained_variance(torch.zeros(4), returns) == 0
    assert explained_variance(-returns, returns) == pytest.approx(-3)
    assert explained_variance(returns, d(1, 1, 1, 1)) is None
    assert explained_variance(d(1), d(1)) is None
