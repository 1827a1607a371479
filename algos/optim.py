"""Optimizers and schedules, made from an ``OptimConfig``.

Invariant: the learning rate at a step is a function of the config, the step and the planned number of steps alone, so
that a resumed run continues on the same curve.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

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
    """

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig, total_steps: int
    ) -> None:
        named = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        if not named:
            raise ValueError("there is no trainable parameter; add an adapter or train all weights")
        self.config = config
        self.total_steps = total_steps
        self.step_count = 0
        self.parameters = [parameter for _, parameter in named]
        matrices = [
            p for n, p in named if config.name == "muon" and p.ndim == 2 and "embed" not in n and "lm_head" not in n
        ]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in self.parameters if id(parameter) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            self.optimizers.append(
                torch.optim.Muon(
                    matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
                )
            )
        if others:
            self.optimizers.append(
                torch.optim.AdamW(
                    others, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
                )
            )

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
            Gradient norm before clipping, and the learning rate used.

        Raises:
            FloatingPointError: The gradient is not finite; nothing was applied.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm).item()
        if norm != norm or norm == float("inf"):
            raise FloatingPointError(
                f"training diverged: the gradient norm is {norm} at optimizer step {self.step_count}; the weights were "
                "left as they were; lower the learning rate"
            )
        rate = self.config.lr * learning_rate_factor(self.config, self.step_count, self.total_steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.step_count += 1
        return norm, rate

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
