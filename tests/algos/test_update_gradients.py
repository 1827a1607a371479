"""The gradients of an update: those of plain PyTorch, however rows are split, and with a critic those of two models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.scoring import causal_lm
from mempo_env.algos.algorithm_config import GRPOConfig
from mempo_env.algos.base import Advantages, TokenBatch, TurnKey
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.mempo import MemPO
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.update import Updater

from .plain_update import (
    BIG,
    Everything,
    gradients,
    largest_difference,
    plain_gradients,
    plain_logprobs,
    plain_loss,
    randomise,
    run,
)

# Against plain PyTorch --------------------------------------------------------------------------------------------


def test_gradient_of_one_update(make_policy: Any, shared_groups: Any, fake_scorer: Any) -> None:
    """MemPO's advantages, a KL weight large enough to matter, an episode with a fault."""
    config = dataclasses.replace(MemPO().config, beta=0.3)
    algorithm = MemPO(config)
    groups = [(*shared_groups[0][:3], shared_groups[0][3].replace(error="down")), *shared_groups[1:]]
    policy = randomise(make_policy())
    advantages = algorithm.advantages(groups, fake_scorer())
    metrics = run(policy, algorithm, groups, advantages)
    ours = gradients(policy)
    theirs = plain_gradients(policy, plain_loss(policy, groups, advantages.tokens, config))
    assert largest_difference(theirs, ours) < 1e-5
    assert metrics["train/grad_norm"] == pytest.approx(
        sum(float((g**2).sum()) for g in theirs.values()) ** 0.5, rel=1e-5
    )
    assert metrics["train/kl"] > 1e-4
    policy_gradient = plain_gradients(
        policy, plain_loss(policy, groups, advantages.tokens, dataclasses.replace(config, beta=0.0))
    )
    assert largest_difference(theirs, policy_gradient) > 1e-2, "the KL term must be visible, or nothing was compared"


def test_parameters_after_several_epochs_and_minibatches(
    make_policy: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    """Large steps, so that ratios leave the clip range: old log-probs stay those from before the first step."""
    config = GRPOConfig(beta=0.05, clip_low=0.1, clip_high=0.15)
    optim = OptimConfig(lr=5e-3, max_grad_norm=1.0)
    groups = [group for group in shared_groups if len({episode.episode_return for episode in group}) > 1][:2]
    tokens = GRPO(config).advantages(groups, fake_scorer()).tokens

    policy = randomise(make_policy())
    metrics = run(policy, GRPO(config), groups, Advantages(tokens), optim=optim, epochs=2, minibatches=2)
    assert metrics["train/optimizer_steps"] == 4
    assert metrics["train/clip_share"] > 0.01

    other = randomise(make_policy())
    twin = torch.optim.AdamW(other.trainable_parameters(), lr=5e-3, weight_decay=0.0)
    with torch.no_grad():
        old = {
            (g, i, t): [x.item() for x in plain_logprobs(other, turn.prompt_ids, turn.output_ids)]
            for g, group in enumerate(groups)
            for i, episode in enumerate(group)
            for t, turn in enumerate(episode.turns)
        }
    for _ in range(2):
        for g, group in enumerate(groups):
            part = {(0, i, t): value for (gg, i, t), value in tokens.items() if gg == g}
            part_old = {(0, i, t): value for (gg, i, t), value in old.items() if gg == g}
            twin.zero_grad()
            plain_loss(other, [group], part, config, part_old).backward()
            nn.utils.clip_grad_norm_(other.trainable_parameters(), 1.0)
            twin.step()
    start = randomise(make_policy())
    for (name, ours), (_, theirs), (_, before) in zip(
        trainable(policy.model), trainable(other.model), trainable(start.model), strict=True
    ):
        # Adam divides by the root of a squared gradient: where that is near 0 it magnifies rounding.
        assert float((ours - theirs).detach().abs().max()) < 5e-4, name
        assert float((ours - theirs).detach().abs().mean()) < 1e-5, name
        assert float((ours - before).detach().abs().mean()) > 1e-3, name


@pytest.mark.parametrize(
    "settings",
    [
        {"micro_batch_tokens": 1},
        {"micro_batch_tokens": 300},
        {"chunk_tokens": None},
        {"chunk_tokens": 7},
        {"share_prefixes": False},
        {"share_prefixes": False, "micro_batch_tokens": 300},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "share_prefixes": False, "micro_batch_tokens": 300},
    ],
    ids=str,
)
def test_no_split_changes_the_gradient(
    settings: dict[str, Any], make_policy: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    algorithm = MemPO(dataclasses.replace(MemPO().config, beta=0.1))
    advantages = algorithm.advantages(shared_groups, fake_scorer())
    whole = randomise(make_policy())
    run(whole, algorithm, shared_groups, advantages, chunk_tokens=BIG)
    cut = randomise(make_policy())
    run(cut, algorithm, shared_groups, advantages, **settings)
    assert largest_difference(gradients(whole), gradients(cut)) < 1e-5


@pytest.mark.parametrize("share", [True, False])
def test_checkpointing_recomputes_in_the_backward_pass_alone(
    share: bool, make_policy: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    """Same gradients and metrics; each backward pass runs the layers again, the reference pass only once."""
    algorithm = MemPO(dataclasses.replace(MemPO().config, beta=0.1))
    advantages = algorithm.advantages(shared_groups, fake_scorer())
    found = []
    for checkpointing in (False, True):
        policy, modes = randomise(make_policy()), list[bool]()
        lm: Any = causal_lm(policy.model)
        layer = lm.get_decoder().layers[1]
        layer.mlp.register_forward_pre_hook(lambda module, _, modes=modes: modes.append(module.training))
        settings = {"gradient_checkpointing": checkpointing, "share_prefixes": share, "micro_batch_tokens": 700}
        metrics = run(policy, algorithm, shared_groups, advantages, **settings)
        found.append((gradients(policy), metrics, modes))
    (plain, plain_metrics, plain_modes), (again, metrics, modes) = found
    assert largest_difference(plain, again) < 1e-6
    assert metrics == pytest.approx(plain_metrics, rel=1e-5, abs=1e-9)
    assert plain_modes.count(True) > 1
    assert (modes.count(True), modes.count(False)) == (2 * plain_modes.count(True), plain_modes.count(False))


def test_rows_without_advantage_can_be_skipped(make_policy: Any, shared_groups: Any, fake_scorer: Any) -> None:
    flat = tuple(episode.replace(turns=_with_reward(episode.turns, 0.0)) for episode in shared_groups[1])
    groups = [shared_groups[0], flat, shared_groups[2]]
    results = {}
    for algorithm in (GRPO(GRPOConfig(beta=0.0)), Everything(GRPOConfig(beta=0.0))):
        policy = randomise(make_policy())
        metrics = run(policy, algorithm, groups, algorithm.advantages(groups, fake_scorer()), micro_batch_tokens=500)
        results[type(algorithm)] = gradients(policy), metrics
    assert largest_difference(results[GRPO][0], results[Everything][0]) < 1e-5
    rows = sum(len(episode.turns) for group in groups for episode in group)
    skipped = results[GRPO][1]["train/rows_without_gradient"]
    assert skipped >= sum(len(episode.turns) for episode in flat)
    assert results[GRPO][1]["train/rows"] + skipped == rows
    assert results[Everything][1]["train/rows"] == rows


def _with_reward(turns: Any, reward: float) -> Any:
    return tuple(dataclasses.replace(turn, reward=reward) for turn in turns)


def test_nothing_to_learn_takes_no_step_and_is_counted(make_policy: Any, shared_groups: Any, fake_scorer: Any) -> None:
    group = tuple(episode.replace(turns=_with_reward(episode.turns, 0.0)) for episode in shared_groups[0])
    algorithm = GRPO(GRPOConfig(beta=0.0))
    policy = make_policy()
    metrics = run(policy, algorithm, [group], algorithm.advantages([group], fake_scorer()))
    assert metrics["train/minibatches_without_gradient"] == 1
    assert metrics["train/optimizer_steps"] == 0
    assert policy.weights_version == 0
    assert "train/ratio" not in metrics


def test_an_error_is_as_if_it_had_not_been_played(make_policy: Any, shared_groups: Any, fake_scorer: Any) -> None:
    group = shared_groups[0]
    found = []
    for groups in ([(*group[:3], group[3].replace(error="down"))], [group[:3]]):
        policy, algorithm = randomise(make_policy()), GRPO()
        run(policy, algorithm, groups, algorithm.advantages(groups, fake_scorer()))
        found.append(gradients(policy))
    assert largest_difference(*found) < 1e-6


# A critic ---------------------------------------------------------------------------------------------------------


class WithCritic(GRPO):
    """GRPO with a dummy critic: an adapter of its own and a linear head that predicts a turn's number."""

    critic_adapter = "critic"

    def setup(self, policy: LoraPolicy) -> None:
        policy.add_frozen_copy("critic")
        for name, parameter in policy.model.named_parameters():
            if ".critic." in name:
                parameter.requires_grad_(True)
        self.head = value_head()

    def critic_loss(
        self, policy: LoraPolicy, batch: TokenBatch, keys: Sequence[TurnKey]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return turn_loss(policy, self.head, batch, keys), {}


def value_head() -> nn.Linear:
    head = nn.Linear(64, 1)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-0.5, 0.5, 64)[None, :])
        head.bias.fill_(0.1)
    return head


def turn_loss(policy: LoraPolicy, head: nn.Linear, batch: TokenBatch, keys: Sequence[TurnKey]) -> Tensor:
    lm: Any = causal_lm(policy.model)
    hidden = lm.get_decoder()(input_ids=batch.rows.input_ids).last_hidden_state  # (B, T, D)
    rows = torch.arange(len(keys))[:, None]  # (B, 1)
    values: Tensor = head(hidden[rows, batch.rows.positions]).squeeze(-1)  # (B, O)
    return (values - torch.tensor([float(t) for _, _, t in keys])[:, None]) ** 2


def test_policy_and_critic_on_one_base_have_the_gradients_of_separate_models(
    make_policy: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    """Trap: forward under one adapter, switch, forward, one backward for both leaves the first without a gradient."""
    joint = randomise(make_policy(), seed=2)
    algorithm = WithCritic()
    algorithm.setup(joint)
    randomise(joint, seed=3)  # now the two adapters differ
    advantages = algorithm.advantages(shared_groups, fake_scorer())
    metrics = run(joint, algorithm, shared_groups, advantages, micro_batch_tokens=700)
    found = gradients(joint)
    assert metrics["train/critic_loss"] > 0

    alone = randomise(randomise(make_policy(), seed=2), seed=3)
    run(alone, GRPO(), shared_groups, advantages, micro_batch_tokens=700)
    policy_part = {name: value for name, value in found.items() if ".policy." in name}
    assert largest_difference(gradients(alone), policy_part) < 1e-6

    critic = randomise(make_policy(), seed=2)

    class OnlyCritic(GRPO):
        def token_loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
            return batch.logprobs * 0.0, {}

        def critic_loss(
            self, policy: LoraPolicy, batch: TokenBatch, keys: Sequence[TurnKey]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            return turn_loss(policy, head, batch, keys), {}

    head = value_head()
    run(critic, OnlyCritic(), shared_groups, advantages, micro_batch_tokens=700)
    critic_part = {name.replace(".critic.", ".policy."): v for name, v in found.items() if ".critic." in name}
    assert largest_difference(gradients(critic), critic_part) < 1e-6
    assert algorithm.head.weight.grad is not None
    assert head.weight.grad is not None
    assert torch.allclose(algorithm.head.weight.grad, head.weight.grad, rtol=1e-5, atol=1e-8)
    assert joint.model.active_adapter == "policy"


def test_the_value_head_is_stepped_once(make_policy: Any, shared_groups: Any, fake_scorer: Any) -> None:
    policy, algorithm = make_policy(), WithCritic()
    algorithm.setup(policy)
    parameters = [*trainable(policy.model), *algorithm.head.named_parameters()]
    before = algorithm.head.weight.detach().clone()
    optimizer = Optimizer(parameters, OptimConfig(lr=1e-2), 1)
    groups = shared_groups
    Updater(policy, algorithm, optimizer).update(groups, algorithm.advantages(groups, fake_scorer()))
    assert not torch.equal(before, algorithm.head.weight)
    moved = {n.split(".")[-2] for n, p in trainable(policy.model) if "lora_B" in n and bool(p.any())}
    assert moved == {"policy", "critic"}
