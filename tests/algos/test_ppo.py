"""PPO against plain PyTorch: the estimator token by token, both adapters against separate models, credit by turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.scoring import causal_lm
from mempo_env.algos.base import Advantages, TokenBatch, TurnKey
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.optim import Optimizer, make_optimizer, trainable
from mempo_env.algos.ppo import PPO
from mempo_env.algos.ppo_config import PPOConfig
from mempo_env.algos.update import Updater
from mempo_env.errors import UserError
from mempo_env.records import Group, Turn

FREE = OptimConfig(lr=1e-9, max_grad_norm=1e9)
"""Steps so small that they change no gradient, and no clipping: what is left in ``.grad`` is the gradient itself."""


def randomise(policy: LoraPolicy, adapter: str, seed: int, scale: float = 0.05) -> None:
    """Gives an adapter weights under which it does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.adapter_parameters(adapter):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def fill(head: nn.Linear) -> None:
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-0.05, 0.06, head.in_features)[None, :])
        head.bias.fill_(0.1)


@pytest.fixture
def make_ppo(make_policy: Any) -> Callable[..., tuple[LoraPolicy, PPO]]:
    """A policy and PPO on it; both adapters and the head do something, and the adapters differ."""

    def make(config: PPOConfig | None = None) -> tuple[LoraPolicy, PPO]:
        policy, algorithm = make_policy(), PPO(config)
        randomise(policy, "policy", seed=2)
        algorithm.setup(policy)
        randomise(policy, "policy", seed=3)
        randomise(policy, "critic", seed=4)
        fill(algorithm.critic.head)
        return policy, algorithm

    return make


def twin_of(policy: LoraPolicy, adapter: str, make_policy: Any) -> LoraPolicy:
    """A separate model with one adapter, ``policy``, that holds the weights of another's ``adapter``."""
    twin: LoraPolicy = make_policy()
    with torch.no_grad():
        for ours, theirs in zip(twin.adapter_parameters("policy"), policy.adapter_parameters(adapter), strict=True):
            ours.copy_(theirs)
    return twin


def turns_of(groups: Sequence[Group]) -> dict[TurnKey, Turn]:
    return {
        (g, i, t): turn
        for g, group in enumerate(groups)
        for i, episode in enumerate(group)
        if episode.error is None
        for t, turn in enumerate(episode.turns)
    }


def plain(policy: LoraPolicy, head: nn.Linear, turn: Turn) -> tuple[list[Tensor], list[Tensor]]:
    """log pi of each output token and V of the state before it, from one row, every logit, and no helper of ours."""
    ids = torch.tensor([[*turn.prompt_ids, *turn.output_ids]])
    out = policy.model(input_ids=ids, output_hidden_states=True)
    table, states = out.logits[0].float().log_softmax(-1), out.hidden_states[-1][0]  # (T, V), (T, D)
    at = range(len(turn.prompt_ids) - 1, len(turn.prompt_ids) - 1 + len(turn.output_ids))
    logprobs = [table[n, token] for n, token in zip(at, turn.output_ids, strict=True)]
    return logprobs, [states[n] @ head.weight[0] + head.bias[0] for n in at]


def broken_groups(shared_groups: Sequence[Group]) -> list[Group]:
    """The shared groups, with a fault in one and the turn limit hit in another, and rewards at every turn."""
    groups = [(*shared_groups[0][:3], shared_groups[0][3].replace(error="down")), *shared_groups[1:]]
    paid = [tuple(e.replace(turns=with_rewards(e.turns)) for e in group) for group in groups]
    return [(paid[0][0].replace(terminated=False, truncated=True), *paid[0][1:]), *paid[1:]]


def with_rewards(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    return tuple(dataclasses.replace(turn, reward=turn.reward + 0.1 * (t + 1)) for t, turn in enumerate(turns))


# The estimator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whiten", [False, True])
def test_advantages_and_returns_token_by_token(
    whiten: bool, make_ppo: Any, make_policy: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    """GAE as a double sum, with V and the KL penalty from separate models, one row at a time."""
    config = PPOConfig(gamma=0.98, lam=0.9, beta=0.3, whiten=whiten)
    policy, algorithm = make_ppo(config)
    groups = broken_groups(shared_groups)
    algorithm.micro_batch_tokens = 700
    found = algorithm.advantages(groups, fake_scorer())
    critic, actor = (twin_of(policy, name, make_policy) for name in ("critic", "policy"))
    expected: dict[TurnKey, Tensor] = {}
    returns: dict[TurnKey, Tensor] = {}
    kl = []
    for g, group in enumerate(groups):
        for i, episode in enumerate(group):
            if episode.error is not None:
                continue
            r, v = [], []
            for turn in episode.turns:
                with torch.no_grad():
                    values = plain(critic, algorithm.critic.head, turn)[1]
                    now, _ = plain(actor, algorithm.critic.head, turn)
                    with actor.use_adapter(None):
                        reference, _ = plain(actor, algorithm.critic.head, turn)
                penalty = [a.item() - b.item() for a, b in zip(now, reference, strict=True)]
                kl += penalty
                r += [-config.beta * p for p in penalty]
                r[-1] += turn.reward
                v += [value.item() for value in values]
            delta = [r[n] + config.gamma * (v[n + 1] if n + 1 < len(v) else 0.0) - v[n] for n in range(len(v))]
            decay = config.gamma * config.lam
            a = torch.tensor([sum(decay ** (m - n) * delta[m] for m in range(n, len(v))) for n in range(len(v))])
            sizes = [turn.n_output for turn in episode.turns]
            for t, (part, state) in enumerate(zip(a.split(sizes), torch.tensor(v).split(sizes), strict=True)):
                expected[g, i, t], returns[g, i, t] = part, part + state
    if whiten:
        every = torch.cat([*expected.values()]).double()
        mean, std = every.mean(), every.std()
        expected = {key: ((value - mean) / std).float() for key, value in expected.items()}
    for key, value in expected.items():
        assert torch.allclose(found.tokens[key], value, atol=2e-5), (found.tokens[key] - value).abs().max()
        assert torch.allclose(algorithm.returns[key], returns[key], atol=2e-5)
    assert found.tokens.keys() - expected.keys() == {(0, 3, t) for t in range(len(groups[0][3].turns))}
    assert not any(bool(found.tokens[key].any()) for key in found.tokens.keys() - expected.keys())
    assert max(map(abs, kl)) * config.beta > 0.05, "the penalty must be visible, or nothing was compared"
    tokens = torch.cat([*returns.values()])
    assert found.metrics["train/returns_mean"] == pytest.approx(tokens.mean().item(), abs=1e-5)
    error = torch.cat([returns[key] - algorithm.old_values[key] for key in returns])
    assert found.metrics["train/explained_variance"] == pytest.approx(1 - (error.var() / tokens.var()).item(), abs=1e-4)


def test_a_turns_reward_is_credited_to_that_turn_and_those_before(
    make_ppo: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    _, algorithm = make_ppo(PPOConfig(whiten=False, beta=0.0))
    episode = next(e for group in shared_groups for e in group if len(e.turns) > 2)
    middle = dataclasses.replace(episode.turns[1], reward=episode.turns[1].reward + 0.5)
    paid = episode.replace(turns=(episode.turns[0], middle, *episode.turns[2:]))
    plain, hooked = (algorithm.advantages([(e,)], fake_scorer()).tokens for e in (episode, paid))
    for (_, _, t), value in hooked.items():
        gain = value - plain[0, 0, t]
        assert torch.allclose(gain, torch.full_like(gain, 0.5 if t <= 1 else 0.0), atol=1e-6)


def test_the_turn_limit_ends_an_episode_like_an_answer(make_ppo: Any, shared_groups: Any, fake_scorer: Any) -> None:
    _, algorithm = make_ppo()
    cut = [tuple(e.replace(terminated=False, truncated=True) for e in group) for group in shared_groups]
    found = [algorithm.advantages(groups, fake_scorer()).tokens for groups in (shared_groups, cut)]
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_a_batch_of_nothing_but_faults_teaches_nothing(make_ppo: Any, shared_groups: Any, fake_scorer: Any) -> None:
    policy, algorithm = make_ppo()
    groups = [tuple(episode.replace(error="down") for episode in shared_groups[0])]
    advantages = algorithm.advantages(groups, fake_scorer())
    assert not any(bool(value.any()) for value in advantages.tokens.values())
    metrics = update(policy, algorithm, groups, advantages)
    assert metrics["train/minibatches_without_gradient"] == 1


# The update -------------------------------------------------------------------------------------------------------


def update(
    policy: LoraPolicy, algorithm: Any, groups: Any, advantages: Advantages, **settings: Any
) -> dict[str, float]:
    optimizer = make_optimizer(policy, algorithm, settings.pop("optim", FREE), 100)
    return Updater(policy, algorithm, optimizer, **({"micro_batch_tokens": 700} | settings)).update(groups, advantages)


def close(ours: Sequence[nn.Parameter], theirs: Sequence[nn.Parameter]) -> None:
    """Gradients are equal to 1e-5 of the largest entry."""
    pairs = [(p.grad, q.grad) for p, q in zip(ours, theirs, strict=True)]
    assert all(p is not None and q is not None for p, q in pairs)
    scale = max(float(q.abs().max()) for _, q in pairs)  # type: ignore[union-attr]
    assert scale > 0
    assert max(float((p - q).abs().max()) for p, q in pairs) < 1e-5 * scale  # type: ignore[operator]


@pytest.mark.parametrize("share", [True, False])
def test_checkpointing_changes_neither_adapters_gradient(
    share: bool, make_ppo: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    found = []
    for checkpointing in (False, True):
        policy, algorithm = make_ppo(PPOConfig(kl_in="loss", beta=0.2))
        advantages = algorithm.advantages(shared_groups, fake_scorer())
        calls: list[str] = []
        projection = causal_lm(policy.model).get_decoder().layers[1].mlp.gate_proj  # type: ignore[operator]
        projection.register_forward_pre_hook(lambda part, _, calls=calls: calls.append(part.active_adapter[0]))
        update(policy, algorithm, shared_groups, advantages, gradient_checkpointing=checkpointing, share_prefixes=share)
        parameters = [*policy.trainable_parameters(), *algorithm.critic.head.parameters()]
        found.append((torch.cat([p.grad.flatten() for p in parameters]), calls.count("critic")))  # (n,)
    (plain, once), (again, twice) = found
    assert float((plain - again).abs().max()) < 1e-6 * float(plain.abs().max())
    assert twice == 2 * once > 0


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_both_adapters_have_the_gradients_of_separate_models(
    kl_in: Any, make_ppo: Any, make_policy: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    """The objectives of the docstring, token by token. V has moved since the batch was collected, past the clip."""
    config = PPOConfig(kl_in=kl_in, beta=0.2, value_clip=0.02, value_coef=0.7)
    policy, algorithm = make_ppo(config)
    groups = broken_groups(shared_groups)
    advantages = algorithm.advantages(groups, fake_scorer())
    randomise(policy, "critic", seed=5, scale=0.02)
    metrics = update(policy, algorithm, groups, advantages)
    critic, actor = (twin_of(policy, name, make_policy) for name in ("critic", "policy"))
    head = nn.Linear(algorithm.critic.head.in_features, 1)
    head.load_state_dict(algorithm.critic.head.state_dict())
    valid = [episode for group in groups for episode in group if episode.error is None]
    actor_loss, critic_loss = torch.zeros(()), torch.zeros(())
    for (g, i, t), turn in turns_of(groups).items():
        weight = 1 / (groups[g][i].n_output * len(valid))
        with torch.no_grad(), actor.use_adapter(None):
            reference, _ = plain(actor, head, turn)
        now, _ = plain(actor, head, turn)
        for logprob, anchor, a in zip(now, reference, advantages.tokens[g, i, t], strict=True):
            actor_loss = actor_loss - weight * (logprob - logprob.detach()).exp() * a  # the ratio is 1
            if kl_in == "loss":
                actor_loss = actor_loss + weight * config.beta * ((anchor - logprob).exp() - (anchor - logprob) - 1)
        _, values = plain(critic, head, turn)
        for v, old, target in zip(values, algorithm.old_values[g, i, t], algorithm.returns[g, i, t], strict=True):
            bounded = old + (v - old).clamp(-config.value_clip, config.value_clip)
            critic_loss = critic_loss + weight * 0.7 / 2 * max((v - target) ** 2, (bounded - target) ** 2)
    actor_loss.backward()
    critic_loss.backward()
    close(policy.adapter_parameters("policy"), actor.adapter_parameters("policy"))
    close(policy.adapter_parameters("critic"), critic.adapter_parameters("policy"))
    close([*algorithm.critic.head.parameters()], [*head.parameters()])
    assert 0.02 < metrics["train/value_clip_share"] < 0.98, "both branches of the clip must be taken"
    assert policy.model.active_adapter == "policy"


def test_the_critic_learns_as_if_it_were_alone(
    make_ppo: Any, make_policy: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    """Two epochs of two minibatches: V_old and R stay those from before the first step, the clip of the policy's
    gradient does not touch the critic's, and its learning rate is its own.
    """
    config = PPOConfig(value_clip=0.05, critic_lr_factor=3.0)
    optim = OptimConfig(lr=2e-3, max_grad_norm=0.05)
    policy, algorithm = make_ppo(config)
    groups = list(shared_groups[:2])
    advantages = algorithm.advantages(groups, fake_scorer())
    critic = twin_of(policy, "critic", make_policy)
    head = nn.Linear(algorithm.critic.head.in_features, 1)
    head.load_state_dict(algorithm.critic.head.state_dict())
    start = [p.detach().clone() for p in critic.adapter_parameters("policy")]
    metrics = update(policy, algorithm, groups, advantages, optim=optim, epochs=2, minibatches=2)
    assert metrics["train/optimizer_steps"] == 4
    assert metrics["train/value_clip_share"] > 0
    assert metrics["train/grad_norm"] > 0.05, "the policy's gradient must have been clipped"

    parameters = [*critic.adapter_parameters("policy"), *head.parameters()]
    twin = torch.optim.AdamW(parameters, lr=6e-3, weight_decay=0.0)
    turns = turns_of(groups)
    with torch.no_grad():
        old = {key: [v.item() for v in plain(critic, head, turn)[1]] for key, turn in turns.items()}
    for step in range(4):
        loss = torch.zeros(())
        for (g, i, t), turn in turns.items():
            if g != step % 2:
                continue
            weight = 1 / (groups[g][i].n_output * len(groups[g]))
            targets = algorithm.returns[g, i, t]
            for v, before, target in zip(plain(critic, head, turn)[1], old[g, i, t], targets, strict=True):
                bounded = before + (v - before).clamp(-0.05, 0.05)
                loss = loss + weight / 2 * max((v - target) ** 2, (bounded - target) ** 2)
        twin.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.05)
        twin.step()
    pairs = [*zip(algorithm.critic.parameters(), parameters, strict=True)]
    # Adam divides by the root of a squared gradient: where that is near 0 it magnifies rounding.
    assert max(float((p - q).detach().abs().mean()) for p, q in pairs) < 1e-5
    moved = [
        float((p - q).detach().abs().mean()) for p, q in zip(policy.adapter_parameters("critic"), start, strict=True)
    ]
    assert min(moved) > 1e-3


class Spy(PPO):
    """Remembers the first batch of the loss."""

    def token_loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        self.first = getattr(self, "first", batch)
        return super().token_loss(batch)


@pytest.mark.parametrize("frozen_copy", [False, True], ids=["adapter off", "frozen copy"])
@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_at_step_0_the_ratio_is_one_kl_and_values_are_zero(
    frozen_copy: bool, epochs: int, kl_in: Any, make_policy: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    policy, algorithm = make_policy(), Spy(PPOConfig(kl_in=kl_in))
    if frozen_copy:
        randomise(policy, "policy", seed=1)
        policy.add_frozen_copy()
    algorithm.setup(policy)
    advantages = algorithm.advantages(shared_groups, fake_scorer())
    metrics = advantages.metrics | update(policy, algorithm, shared_groups, advantages, epochs=epochs)
    assert torch.equal(algorithm.first.logprobs, algorithm.first.old_logprobs)
    assert metrics["train/kl"] == 0.0
    assert metrics["train/value_mean"] == 0.0
    if epochs == 1:
        assert metrics["train/ratio"] == 1.0
        assert metrics["train/value_clip_share"] == metrics["train/clip_share"] == 0.0
    for (g, i, t), value in algorithm.returns.items():  # gamma and lambda 1: what is still to come
        rest = sum(turn.reward for turn in shared_groups[g][i].turns[t:])
        assert torch.allclose(value, torch.full_like(value, rest), atol=1e-6)


def test_the_critic_learns_from_turns_without_advantage(make_ppo: Any, shared_groups: Any, fake_scorer: Any) -> None:
    policy, algorithm = make_ppo(PPOConfig(beta=0.0))
    found = algorithm.advantages(shared_groups, fake_scorer()).tokens
    flat = Advantages({key: torch.zeros_like(value) for key, value in found.items()})
    metrics = update(policy, algorithm, shared_groups, flat)
    assert metrics["train/rows"] == len(found)
    assert metrics["train/grad_norm"] == 0
    assert all(bool(p.grad.any()) for p in algorithm.critic_parameters() if p.grad is not None)
    assert algorithm.critic.head.weight.grad is not None


def test_an_error_is_as_if_it_had_not_been_played(make_ppo: Any, shared_groups: Any, fake_scorer: Any) -> None:
    group, found = shared_groups[0], []
    for groups in ([(*group[:3], group[3].replace(error="down"))], [group[:3]]):
        policy, algorithm = make_ppo()
        update(policy, algorithm, groups, algorithm.advantages(groups, fake_scorer()))
        found.append([*policy.trainable_parameters(), *algorithm.critic.head.parameters()])
    close(*found)


def test_turns_without_ids_are_refused(make_ppo: Any, shared_groups: Any, fake_scorer: Any) -> None:
    silent = {"prompt_ids": (), "output_ids": (), "logprobs": (), "segments": ()}
    episode = shared_groups[0][0]
    turns = tuple(dataclasses.replace(turn, **silent) for turn in episode.turns)
    with pytest.raises(ValueError, match="output id"):
        make_ppo()[1].advantages([(episode.replace(turns=turns),)], fake_scorer())


def test_only_adapters_and_head_are_trained(make_ppo: Any) -> None:
    policy, algorithm = make_ppo()
    assert {name.split(".")[-2] for name, _ in trainable(policy.model)} == {"policy", "critic"}
    ours = {id(p) for p in algorithm.critic_parameters()}
    assert {name.split(".")[-2] for name, p in trainable(policy.model) if id(p) in ours} == {"critic"}
    assert all(id(p) in ours for p in algorithm.extra_parameters())
    with pytest.raises(ValueError, match="already"):
        algorithm.setup(policy)


# Settings and the optimizer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_low": 1.0}, "clip_low=1.0"),
        ({"clip_high": 0.0}, "clip_high=0.0"),
        ({"beta": -0.1}, "beta=-0.1"),
        ({"kl_in": "rewards"}, "did you mean 'reward'"),
        ({"gamma": 0.0}, "gamma=0.0"),
        ({"lam": 1.1}, "lam=1.1"),
        ({"value_clip": -1.0}, "value_clip=-1.0"),
        ({"value_coef": 0.0}, "value_coef=0.0.*--algo grpo"),
        ({"critic_lr_factor": float("nan")}, "critic_lr_factor=nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PPOConfig(**settings)


def test_a_critic_is_clipped_apart_and_has_its_own_rate() -> None:
    def parameters() -> list[nn.Parameter]:
        return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(1, 4))]

    policy, critic, head = parameters()
    config = OptimConfig(name="muon", lr=0.01, max_grad_norm=1.0, warmup_steps=1)
    named = [("policy", policy), ("critic", critic), ("algorithm.0", head)]
    optimizer = Optimizer(named, config, 10, critic=[critic, head], critic_lr_factor=5.0)
    policy.grad, critic.grad, head.grad = torch.full((3,), 0.1), torch.full((2, 2), 100.0), torch.full((1, 4), 100.0)
    norm, rate = optimizer.step()
    assert norm == pytest.approx(0.1 * 3**0.5)
    assert rate == pytest.approx(0.005)
    assert torch.allclose(policy.grad, torch.full((3,), 0.1)), "the critic's large gradient must not shrink this one"
    assert critic.grad.norm() ** 2 + head.grad.norm() ** 2 == pytest.approx(1.0, rel=1e-3)
    rates = {type(o).__name__: [group["lr"] for group in o.param_groups] for o in optimizer.optimizers}
    assert rates == {"Muon": [pytest.approx(0.025)], "AdamW": [pytest.approx(0.005), pytest.approx(0.025)]}
    assert torch.allclose(head, torch.full((1, 4), 1 - 0.025), atol=1e-5)  # a row is no matrix: AdamW takes it
    critic.grad = torch.full((2, 2), float("nan"))
    with pytest.raises(FloatingPointError, match=r"the critic's nan"):
        optimizer.step()
