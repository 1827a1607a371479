"""What must not matter does not: classes of equivalent settings, compared by their parameters after 20 updates.

Within a class all runs start from the same weights and take 20 updates on the same recorded episodes. How rows are
padded, split into micro-batches, ordered or given to the head in chunks may change nothing but rounding. Every class
has a setting outside of it, which shows what the comparison can see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mempo_env.agents.policy import LoraPolicy
from mempo_env.algos.algorithm_config import GRPOConfig, MemPOConfig
from mempo_env.algos.base import Advantages, Algorithm
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.mempo import MemPO
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.update import Updater
from mempo_env.records import Group

UPDATES, EPOCHS = 20, 2
BIG = 1_000_000
OPTIM = OptimConfig(lr=1e-3, max_grad_norm=1.0)

WHOLE = {"micro_batch_tokens": BIG, "chunk_tokens": BIG}
"""All rows in one padded rectangle, the head in one chunk."""
EQUIVALENT: dict[str, dict[str, Any]] = {
    "no padding, gradients accumulated row by row": {"micro_batch_tokens": 1},
    "gradients accumulated over micro-batches of 300 padded tokens": {"micro_batch_tokens": 300},
    "full head": {"chunk_tokens": None},
    "head in chunks of 7": {"chunk_tokens": 7},
    "micro-batches and head cut": {"micro_batch_tokens": 700, "chunk_tokens": 13},
}
ALGORITHMS: dict[str, Callable[[], Algorithm[Any]]] = {
    "mempo": lambda: MemPO(MemPOConfig(beta=0.05, credit="all")),
    "token mean": lambda: GRPO(GRPOConfig(beta=0.05, aggregation="token")),
    "sequence ratio": lambda: GRPO(GRPOConfig(ratio="sequence", aggregation="sequence", clip_low=0.01, clip_high=0.01)),
    "constant": lambda: GRPO(GRPOConfig(beta=0.0, aggregation="constant", divisor=300, normalise_std=False)),
}


def learn(
    policy: LoraPolicy, algorithm: Algorithm[Any], groups: Sequence[Group], advantages: Advantages, **settings: Any
) -> dict[str, Tensor]:
    """The adapter after 20 updates, two by two on the same old log-probs, so that ratios are not 1."""
    optimizer = Optimizer(trainable(policy.model), OPTIM, UPDATES)
    updater = Updater(policy, algorithm, optimizer, **({"epochs": EPOCHS} | WHOLE | settings))
    while optimizer.step_count < UPDATES:
        updater.update(groups, advantages)
    return {name: parameter.detach().clone() for name, parameter in trainable(policy.model)}


def difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> tuple[float, float]:
    """Largest and mean difference of two sets of parameters."""
    assert one.keys() == two.keys()
    flat = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])  # (P,)
    return float(flat.max()), float(flat.mean())


Learnt = tuple[Advantages, dict[str, Tensor]]


@pytest.fixture(scope="module")
def whole(shared_groups: Any, make_policy: Any, fake_scorer: Any) -> Callable[[str], Learnt]:
    """Advantages, and parameters of the run that everything of a class is compared with; each is run once."""
    known: dict[str, Learnt] = {}

    def run(name: str) -> Learnt:
        if name not in known:
            algorithm = ALGORITHMS[name]()
            advantages = algorithm.advantages(shared_groups, fake_scorer())
            known[name] = advantages, learn(make_policy(), algorithm, shared_groups, advantages)
        return known[name]

    return run


CASES = [("mempo", cut) for cut in EQUIVALENT] + [
    (name, "micro-batches and head cut") for name in ALGORITHMS if name != "mempo"
]


@pytest.mark.parametrize(("name", "cut"), CASES)
def test_equivalent_settings(
    name: str, cut: str, whole: Callable[[str], Learnt], shared_groups: Any, make_policy: Any, record_property: Any
) -> None:
    advantages, expected = whole(name)
    found = learn(make_policy(), ALGORITHMS[name](), shared_groups, advantages, **EQUIVALENT[cut])
    largest, mean = difference(expected, found)
    record_property("largest_difference", largest)
    record_property("mean_difference", mean)
    # Adam divides by the root of a squared gradient, and where that is near 0 it magnifies rounding.
    assert largest < 1e-4
    assert mean < 1e-6


def test_the_order_of_the_groups(
    whole: Callable[[str], Learnt], shared_groups: Any, make_policy: Any, record_property: Any
) -> None:
    advantages, expected = whole("mempo")
    turned = Advantages({(len(shared_groups) - 1 - g, i, t): value for (g, i, t), value in advantages.tokens.items()})
    found = learn(make_policy(), ALGORITHMS["mempo"](), shared_groups[::-1], turned)
    largest, mean = difference(expected, found)
    record_property("largest_difference", largest)
    assert largest < 1e-4
    assert mean < 1e-6


def test_what_the_comparison_can_see(
    whole: Callable[[str], Learnt], shared_groups: Any, make_policy: Any, record_property: Any
) -> None:
    """The updates move every parameter by much more; another minibatch or another average is another result."""
    advantages, expected = whole("mempo")
    start = {name: parameter.detach() for name, parameter in trainable(make_policy().model)}
    assert difference(start, expected)[1] > 1e-2
    three_minibatches = learn(make_policy(), ALGORITHMS["mempo"](), shared_groups, advantages, epochs=1, minibatches=3)
    other_average = MemPO(MemPOConfig(beta=0.05, credit="all", aggregation="token"))
    per_token = learn(make_policy(), other_average, shared_groups, advantages)
    for other in (three_minibatches, per_token):
        record_property("mean_difference", difference(expected, other)[1])
        assert difference(expected, other)[1] > 1e-3


@pytest.mark.parametrize("baseline", ["reference", "history"])
def test_mempo_without_weight_is_grpo_to_the_bit(
    baseline: Any, shared_groups: Any, make_policy: Any, fake_scorer: Any
) -> None:
    """Advantages, and every parameter after six steps with clipping and a KL term."""
    found = []
    for algorithm in (GRPO(GRPOConfig(beta=0.05)), MemPO(MemPOConfig(beta=0.05, weight=0.0, baseline=baseline))):
        policy = make_policy()
        advantages = algorithm.advantages(shared_groups, fake_scorer())
        updater = Updater(policy, algorithm, Optimizer(trainable(policy.model), OptimConfig(lr=5e-3), 6), epochs=2)
        metrics = [updater.update(shared_groups, advantages) for _ in range(3)]
        assert metrics[-1]["train/clip_share"] > 0
        found.append((advantages.tokens, metrics, [p.detach() for _, p in trainable(policy.model)]))
    (tokens, metrics, parameters), (other_tokens, other_metrics, other_parameters) = found
    assert all(torch.equal(value, other_tokens[key]) for key, value in tokens.items())
    assert metrics == other_metrics
    assert all(torch.equal(p, q) for p, q in zip(parameters, other_parameters, strict=True))
