"""Optimizers and schedules, made from an ``OptimConfig``.

Invariants:
    * the learning rate at a step is a function of the config, the step and the planned number of steps alone, so that
      a resumed run continues on the same curve;
    * the gradients of a critic take no part in the clipping of the policy's, nor these in the critic's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..agents.policy import LoraPolicy
from .base import Algorithm
from .config import OptimConfig


def learning_rate_factor(config: OptimConfig, step: int, total: int) -> float:
    """Factor on the peak learning rate at a step.

    Args:
        config: Warm-up and schedule.
        step: Steps already taken.
        total: Planned steps.

    Returns:
        A number in (0, 1] before ``total``.

    >>> [round(learning_rate_factor(OptimConfig(warmup_steps=2, schedule="linear"), s, 8), 2) for s in (0, 1, 2, 4, 7)]
    [0.33, 0.67, 1.0, 1.0, 0.25]
    """
    factor = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "linear":
        start = config.decay_from * total
        if step > start:
            factor *= max(0.0, (total - step) / max(total - start, 1e-9))
    return factor


class Optimizer:
    """One or two torch optimizers behind one learning-rate curve and one gradient clip.

    Args:
        named_parameters: What is trained, with names (embeddings and norms are told apart by shape and name).
        config: Optimizer and schedule.
        total_steps: Planned steps.
        critic: Which of the parameters are a critic's; they are clipped apart.
        critic_lr_factor: Their learning rate as a multiple of the config's.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig,
        total_steps: int,
        *,
        critic: Iterable[nn.Parameter] = (),
        critic_lr_factor: float = 1.0,
    ) -> None:
        named = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        if not named:
            raise ValueError("there is no trainable parameter; add an adapter or train all weights")
        self.config = config
        self.total_steps = total_steps
        self.step_count = 0
        of_critic = {id(parameter) for parameter in critic}
        self.parameters = [parameter for _, parameter in named if id(parameter) not in of_critic]
        self.critic_parameters = [parameter for _, parameter in named if id(parameter) in of_critic]
        hidden = {  # a single row, such as a value head's, is a vector
            id(p)
            for n, p in named
            if config.name == "muon" and p.ndim == 2 and p.shape[0] > 1 and "embed" not in n and "lm_head" not in n
        }
        self.optimizers: list[torch.optim.Optimizer] = []
        self.lr_factors: list[list[float]] = []  # of each optimizer's groups
        for by_muon in (True, False):
            parts = [
                ([p for p in parameters if (id(p) in hidden) is by_muon], factor)
                for parameters, factor in ((self.parameters, 1.0), (self.critic_parameters, critic_lr_factor))
            ]
            groups: list[dict[str, Any]] = [{"params": parameters} for parameters, _ in parts if parameters]
            if groups:
                self.optimizers.append(_muon(groups, config) if by_muon else _adamw(groups, config))
                self.lr_factors.append([factor for parameters, factor in parts if parameters])

    @property
    def all_parameters(self) -> list[nn.Parameter]:
        """Everything that is stepped."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return [parameter for group in groups for parameter in group["params"]]

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> tuple[float, float]:
        """Clips and applies the gradients.

        Returns:
            Norm of the policy's gradient before clipping, and the policy's learning rate.

        Raises:
            FloatingPointError: The gradient is not finite; nothing was applied.
        """
        norms = [
            torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm).item()
            for parameters in (self.parameters, self.critic_parameters)
        ]
        if not all(map(math.isfinite, norms)):
            raise FloatingPointError(
                f"training diverged: the gradient norm is {norms[0]}"
                + (f" (the critic's {norms[1]})" if self.critic_parameters else "")
                + f" at optimizer step {self.step_count}; the weights were left as they were; lower the learning rate"
            )
        rate = self.config.lr * learning_rate_factor(self.config, self.step_count, self.total_steps)
        for optimizer, factors in zip(self.optimizers, self.lr_factors, strict=True):
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
        self.step_count += 1
        return norms[0], rate

    def state_dict(self) -> dict[str, Any]:
        """Moments and step count."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers], "step_count": self.step_count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict``."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step_count = int(state["step_count"])


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters that ask for a gradient."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def make_optimizer(policy: LoraPolicy, algorithm: Algorithm[Any], config: OptimConfig, total_steps: int) -> Optimizer:
    """The optimizer of everything that an algorithm trains: the policy's adapter and what ``setup`` added.

    Args:
        policy: After the algorithm's ``setup``.
        algorithm: What learns.
        config: Optimizer and schedule.
        total_steps: Planned steps.

    Returns:
        The optimizer.
    """
    parameters = [*trainable(policy.model)]
    known = {id(parameter) for _, parameter in parameters}
    extra = [parameter for parameter in algorithm.extra_parameters() if id(parameter) not in known]
    parameters += [(f"algorithm.{index}", parameter) for index, parameter in enumerate(extra)]
    return Optimizer(
        parameters,
        config,
        total_steps,
        critic=algorithm.critic_parameters(),
        critic_lr_factor=algorithm.critic_lr_factor,
    )


def _muon(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.Muon(groups, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
