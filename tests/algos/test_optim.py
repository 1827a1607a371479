"""Schedules by hand, clipping, who is trained by which optimizer, and state that comes back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mempo_env.algos.config import OptimConfig
from mempo_env.algos.optim import Optimizer, learning_rate_factor, trainable


def factors(config: OptimConfig, total: int) -> list[float]:
    return [learning_rate_factor(config, step, total) for step in range(total)]


def test_schedules_by_hand() -> None:
    assert factors(OptimConfig(), 4) == [1, 1, 1, 1]
    assert factors(OptimConfig(warmup_steps=3), 5) == [0.25, 0.5, 0.75, 1, 1]
    assert factors(OptimConfig(schedule="linear", decay_from=0.5), 8) == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert factors(OptimConfig(schedule="linear", decay_from=0.0), 4) == [1, 0.75, 0.5, 0.25]
    assert factors(OptimConfig(schedule="linear", decay_from=0.0, warmup_steps=1), 4) == [0.5, 0.75, 0.5, 0.25]


def test_beyond_the_plan_the_rate_is_zero_never_negative() -> None:
    config = OptimConfig(schedule="linear")
    assert [learning_rate_factor(config, step, 4) for step in (4, 5, 400)] == [0, 0, 0]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(5, 4)
        self.matrix = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.lm_head = nn.Linear(4, 5, bias=False)

    def loss(self, scale: float = 1.0) -> torch.Tensor:
        hidden = self.frozen(self.matrix(self.embed_tokens(torch.arange(5))))
        logits: torch.Tensor = self.lm_head(hidden)
        return scale * logits.log_softmax(-1)[:, 0].mean()


def test_a_step_uses_the_rate_of_its_number_and_reports_the_norm() -> None:
    model = Small()
    optimizer = Optimizer(trainable(model), OptimConfig(lr=0.1, warmup_steps=1, max_grad_norm=0.5), 10)
    rates = []
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(100.0).backward()
        expected = math.sqrt(sum(float((p.grad**2).sum()) for _, p in trainable(model) if p.grad is not None))
        norm, rate = optimizer.step()
        assert norm == pytest.approx(expected, rel=1e-5)
        assert norm > 0.5
        clipped = math.sqrt(sum(float((p.grad**2).sum()) for _, p in trainable(model) if p.grad is not None))
        assert clipped == pytest.approx(0.5, rel=1e-3)
        rates.append(rate)
    assert rates == pytest.approx([0.05, 0.1, 0.1])


def test_adamw_is_torchs() -> None:
    ours, theirs = Small(), Small()
    optimizer = Optimizer(trainable(ours), OptimConfig(lr=0.01, weight_decay=0.1, betas=(0.8, 0.9)), 5)
    twin = torch.optim.AdamW(
        [p for _, p in trainable(theirs)], lr=0.01, weight_decay=0.1, betas=(0.8, 0.9), foreach=False
    )
    for _ in range(3):
        optimizer.zero_grad()
        twin.zero_grad()
        ours.loss().backward()
        theirs.loss().backward()
        optimizer.step()
        twin.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_muon_takes_hidden_matrices_only() -> None:
    model = Small()
    optimizer = Optimizer(trainable(model), OptimConfig(name="muon", lr=0.01), 5)
    names = {id(p): n for n, p in model.named_parameters()}
    trained = {
        type(part).__name__: {names[id(p)] for group in part.param_groups for p in group["params"]}
        for part in optimizer.optimizers
    }
    assert trained == {
        "Muon": {"matrix.weight"},
        "AdamW": {"embed_tokens.weight", "matrix.bias", "lm_head.weight"},
    }


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_not_applied(value: float) -> None:
    model = Small()
    before = [p.clone() for p in model.parameters()]
    optimizer = Optimizer(trainable(model), OptimConfig(lr=0.1), 5)
    model.loss(value).backward()
    with pytest.raises(FloatingPointError, match="diverged: the gradient norm is"):
        optimizer.step()
    assert optimizer.step_count == 0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_comes_back(name: str) -> None:
    def steps(model: Small, optimizer: Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model.loss().backward()
            optimizer.step()

    config = OptimConfig(name=name, lr=0.01, warmup_steps=2, schedule="linear")  # type: ignore[arg-type]
    whole, half, resumed = Small(), Small(), Small()
    steps(whole, Optimizer(trainable(whole), config, 6), 6)
    first = Optimizer(trainable(half), config, 6)
    steps(half, first, 3)
    resumed.load_state_dict(half.state_dict())
    second = Optimizer(trainable(resumed), config, 6)
    second.load_state_dict(first.state_dict())
    steps(resumed, second, 3)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        Optimizer(trainable(Small().requires_grad_(False)), OptimConfig(), 1)
