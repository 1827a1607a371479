"""One update on a small policy, and the plain PyTorch it is compared with: full logits, loops over tokens, one sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mempo_env.agents.policy import LoraPolicy
from mempo_env.algos.algorithm_config import GRPOConfig
from mempo_env.algos.base import Advantages, TurnKey
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.update import Updater
from mempo_env.records import Group

Gradients = dict[str, Tensor]
BIG = 1_000_000
FREE = OptimConfig(lr=1e-9, max_grad_norm=1e9)
"""Steps so small that they change no gradient, and no clipping: what is left in ``.grad`` is the gradient itself."""


def randomise(policy: LoraPolicy, seed: int = 1, scale: float = 0.05, adapter: str = "policy") -> LoraPolicy:
    """Gives an adapter weights under which it does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for name, p in policy.model.named_parameters() if f".{adapter}." in name):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return policy


def run(policy: LoraPolicy, algorithm: Any, groups: Sequence[Group], advantages: Advantages, **settings: Any) -> Any:
    """One update; returns its metrics."""
    optimizer = Optimizer(trainable(policy.model), settings.pop("optim", FREE), 100)
    return Updater(policy, algorithm, optimizer, **({"micro_batch_tokens": BIG} | settings)).update(groups, advantages)


def gradients(policy: LoraPolicy) -> Gradients:
    found = {name: p.grad.clone() for name, p in trainable(policy.model) if p.grad is not None}
    assert found
    return found


def largest_difference(one: Gradients, two: Gradients) -> float:
    """Relative to the largest entry."""
    assert one.keys() == two.keys()
    scale = max(float(value.abs().max()) for value in one.values())
    assert scale > 0
    return max(float((one[name] - two[name]).abs().max()) for name in one) / scale


def plain_logprobs(policy: LoraPolicy, prompt: Sequence[int], output: Sequence[int]) -> list[Tensor]:
    """log pi of each output token, from the logits of the whole sequence."""
    logits = policy.model(input_ids=torch.tensor([[*prompt, *output]])).logits[0]  # (T, V)
    table = (logits.float() / policy.temperature).log_softmax(-1)
    return [table[len(prompt) - 1 + n, token] for n, token in enumerate(output)]


def plain_loss(
    policy: LoraPolicy,
    groups: Sequence[Group],
    tokens: dict[TurnKey, Tensor],
    config: GRPOConfig,
    old: dict[TurnKey, list[float]] | None = None,
    reference: str | None = None,
) -> Tensor:
    """The objective of method.md 5, negated, as it is written there: episode by episode, token by token."""
    episodes = []
    for g, group in enumerate(groups):
        for i, episode in enumerate(group):
            if episode.error is not None:
                continue
            terms, size = [], 0
            for t, turn in enumerate(episode.turns):
                size += len(turn.output_ids)
                with torch.no_grad(), policy.use_adapter(reference):
                    anchor = [x.item() for x in plain_logprobs(policy, turn.prompt_ids, turn.output_ids)]
                now = plain_logprobs(policy, turn.prompt_ids, turn.output_ids)
                for n, logprob in enumerate(now):
                    before = logprob.item() if old is None else old[g, i, t][n]
                    ratio = (logprob - before).exp()
                    advantage = tokens[g, i, t][n]
                    kl = (anchor[n] - logprob).exp() - (anchor[n] - logprob) - 1
                    bounded = min(max(ratio.item(), 1 - config.clip_low), 1 + config.clip_high)
                    surrogate = torch.minimum(
                        ratio * advantage, ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * advantage
                    )
                    assert surrogate.item() == pytest.approx(
                        min(ratio.item() * advantage.item(), bounded * advantage.item()), abs=1e-5
                    )
                    terms.append(surrogate - config.beta * kl)
            episodes.append(torch.stack(terms).sum() / size)
    return -torch.stack(episodes).mean()


def plain_gradients(policy: LoraPolicy, loss: Tensor) -> Gradients:
    policy.model.zero_grad()
    loss.backward()
    return gradients(policy)


class Everything(GRPO):
    """GRPO that trains on every turn, whether or not it has an advantage."""

    needs_all_turns = True
