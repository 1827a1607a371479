"""The steps and rows of an update: minibatches, old and reference log-probs, weights of turns, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.rollout import as_groups, group_specs, rollout
from mempo_env.algos.algorithm_config import GRPOConfig
from mempo_env.algos.base import Advantages, TokenBatch, TurnKey
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.training_rows import training_rows
from mempo_env.algos.update import Updater

from .plain_update import BIG, FREE, Everything, randomise, run


class Spy(GRPO):
    """Records the keys, old log-probs and advantages of every micro-batch, and the gradient of each log-prob."""

    def __init__(self, config: GRPOConfig | None = None) -> None:
        super().__init__(config)
        self.keys: list[list[TurnKey]] = []
        self.batches: list[TokenBatch] = []
        self.logprob_gradients: list[Tensor] = []

    def token_loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        self.batches.append(batch)
        batch.logprobs.register_hook(self.logprob_gradients.append)
        return super().token_loss(batch)

    def critic_loss(self, policy: LoraPolicy, batch: TokenBatch, keys: Sequence[TurnKey]) -> None:
        assert not batch.logprobs.requires_grad
        self.keys.append(list(keys))


def test_minibatches_are_cut_by_groups(make_policy: Any, shared_groups: Any, fake_scorer: Any) -> None:
    steps = {}
    for copies in (1, 2):
        groups = [tuple(episode.replace(turns=episode.turns * copies) for episode in group) for group in shared_groups]
        spy = Spy()
        policy = make_policy()
        metrics = run(policy, spy, groups, spy.advantages(groups, fake_scorer()), epochs=2, minibatches=3)
        steps[copies] = metrics["train/optimizer_steps"]
        assert [{key[0] for key in keys} for keys in spy.keys] == [{0}, {1}, {2}] * 2
        assert policy.weights_version == 6
    assert steps == {1: 6, 2: 6}


def test_more_minibatches_than_one_cover_every_group_once(
    make_policy: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    spy = Spy()
    run(make_policy(), spy, shared_groups, spy.advantages(shared_groups, fake_scorer()), minibatches=2)
    seen = sorted(key for keys in spy.keys for key in keys)
    assert seen == sorted(spy.advantages(shared_groups, fake_scorer()).tokens)


@pytest.mark.parametrize("frozen_copy", [False, True], ids=["adapter off", "frozen copy"])
@pytest.mark.parametrize("several", [False, True], ids=["one step", "two epochs"])
def test_ratio_is_one_and_kl_zero_at_step_0(
    frozen_copy: bool, several: bool, make_policy: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    policy = make_policy()
    if frozen_copy:
        randomise(policy).add_frozen_copy()
    spy = Spy()
    run(
        policy,
        spy,
        shared_groups,
        spy.advantages(shared_groups, fake_scorer()),
        micro_batch_tokens=BIG if several else 800,
        epochs=1 + several,
    )
    first = spy.batches if not several else spy.batches[:1]
    assert len(first) > 1 or several
    for batch in first:
        assert batch.reference_logprobs is not None
        assert torch.equal(batch.logprobs, batch.old_logprobs)
        assert torch.equal(batch.logprobs.detach(), batch.reference_logprobs)
        assert bool((batch.logprobs[batch.rows.mask] < 0).all())


def test_self_check_numbers_are_exact(make_policy: Any, shared_groups: Any, fake_scorer: Any) -> None:
    algorithm = GRPO()
    metrics = run(make_policy(), algorithm, shared_groups, algorithm.advantages(shared_groups, fake_scorer()))
    assert metrics["train/ratio"] == 1.0
    assert metrics["train/kl"] == 0.0
    assert metrics["train/clip_share"] == 0.0


def test_old_logprobs_are_computed_once(make_policy: Any, shared_groups: Any, fake_scorer: Any) -> None:
    spy = Spy()
    policy = make_policy()
    run(policy, spy, shared_groups, spy.advantages(shared_groups, fake_scorer()), epochs=3, optim=OptimConfig(lr=1e-2))
    first, second, third = spy.batches
    assert torch.equal(first.old_logprobs, second.old_logprobs)
    assert torch.equal(first.old_logprobs, third.old_logprobs)
    assert not torch.allclose(second.logprobs, second.old_logprobs, atol=1e-4)
    # The gap to the sampler is that of the weights that sampled, not of those that have moved on.
    metrics = run(
        make_policy(), spy, shared_groups, spy.advantages(shared_groups, fake_scorer()), epochs=3,
        optim=OptimConfig(lr=1e-2),
    )  # fmt: skip
    assert metrics["train/sampler_mismatch_max"] < 1e-4


def test_every_turn_of_an_episode_with_advantage_has_a_gradient(
    make_policy: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    spy = Spy(GRPOConfig(beta=0.0))
    advantages = spy.advantages(shared_groups, fake_scorer())
    run(make_policy(), spy, shared_groups, advantages, micro_batch_tokens=600)
    reached = {
        key: gradient[row, : len(advantages.tokens[key])]
        for keys, gradient in zip(spy.keys, spy.logprob_gradients, strict=True)
        for row, key in enumerate(keys)
    }
    expected = [key for key, value in advantages.tokens.items() if value.any()]
    assert len({key[2] for key in expected}) > 1, "there must be later turns"
    valid = sum(map(len, shared_groups))
    for key in expected:
        g, i, _ = key
        weight = 1 / (shared_groups[g][i].n_output * valid)
        assert torch.allclose(reached[key], -advantages.tokens[key] * weight, rtol=1e-5)
    assert reached.keys() == set(expected)


def test_sampler_and_trainer_agree(make_policy: Any, env_factory: Any, fake_scorer: Any) -> None:
    """Rows of different prompts sampled side by side, on a padded cache, against one pass without a cache."""
    policy = randomise(make_policy(max_new_tokens=24), scale=0.2)
    groups = as_groups(rollout(policy, env_factory(policy), group_specs(range(3), 3), seed=0, step=0))
    algorithm = Everything()
    metrics = run(policy, algorithm, groups, algorithm.advantages(groups, fake_scorer()))
    assert 0 < metrics["train/sampler_mismatch"] <= metrics["train/sampler_mismatch_max"] < 1e-4


def test_a_sampler_that_records_no_logprobs_leaves_the_gap_out(
    make_policy: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    silent = [
        tuple(
            episode.replace(turns=tuple(dataclasses.replace(turn, logprobs=()) for turn in episode.turns))
            for episode in group
        )
        for group in shared_groups
    ]
    algorithm = GRPO()
    metrics = run(make_policy(), algorithm, silent, algorithm.advantages(silent, fake_scorer()))
    assert metrics["train/ratio"] == 1.0
    assert "train/sampler_mismatch" not in metrics
    assert "train/sampler_mismatch_max" not in metrics


def test_turns_without_ids_are_refused(shared_groups: Any, fake_scorer: Any) -> None:
    group = tuple(
        episode.replace(
            turns=tuple(
                dataclasses.replace(turn, prompt_ids=(), output_ids=(), logprobs=(), segments=())
                for turn in episode.turns
            )
        )
        for episode in shared_groups[0]
    )
    with pytest.raises(ValueError, match="text-only agents"):
        training_rows([group], GRPO().advantages([group], fake_scorer()))


def test_weights_of_the_objective(shared_groups: Any, fake_scorer: Any) -> None:
    """Each valid episode weighs the same, however long: its tokens' weights sum to 1 over the number of episodes."""
    groups = [(shared_groups[0][0].replace(error="down"), *shared_groups[0][1:]), shared_groups[1]]
    tokens = GRPO().advantages(groups, fake_scorer()).tokens
    rows = training_rows(groups, Advantages({(g + 5, i, t): value for (g, i, t), value in tokens.items()}), offset=5)
    sums: dict[tuple[int, int], float] = {}
    for row in rows:
        sums[row.key[:2]] = sums.get(row.key[:2], 0.0) + row.weight * len(row.row.output_ids)
    assert sums.keys() == {(5, 1), (5, 2), (5, 3), (6, 0), (6, 1), (6, 2), (6, 3)}
    assert all(value == pytest.approx(1 / 7) for value in sums.values())


def test_a_policy_without_adapters_is_no_reference(make_policy: Any) -> None:
    policy = make_policy(adapter=False)
    optimizer = Optimizer(trainable(policy.model), FREE, 1)
    with pytest.raises(ValueError, match="needs a reference policy"):
        Updater(policy, GRPO(), optimizer)
    Updater(policy, GRPO(GRPOConfig(beta=0.0)), optimizer)


class Broken(GRPO):
    def token_loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logged = super().token_loss(batch)
        return loss * float("nan"), logged


def test_a_loss_that_is_not_finite_changes_no_weight(make_policy: Any, shared_groups: Any, fake_scorer: Any) -> None:
    policy, algorithm = make_policy(), Broken()
    before = [parameter.clone() for parameter in policy.trainable_parameters()]
    with pytest.raises(FloatingPointError, match="diverged"):
        run(policy, algorithm, shared_groups, algorithm.advantages(shared_groups, fake_scorer()))
    assert all(torch.equal(p, q) for p, q in zip(policy.trainable_parameters(), before, strict=True))
