"""Builds the parts of a run from its configuration: environments, model, policy, optimizer.

Invariant: evaluation plays the same environment class with the same settings as training; only goals and split differ.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mempo_env.errors import UserError
from mempo_env.records import Observation
from mempo_env.tokens import TokenCounter

from ..agents.codec import ChatCodec
from ..agents.contexts import get_context, memory_mode
from ..agents.models import add_lora, load_model, make_codec
from ..agents.policy import LoraPolicy
from ..agents.rollout import EnvFactory, EnvPool
from ..agents.tiny import build_tiny
from ..envs.making import make_env
from .config import RunConfig


def env_factory(
    config: RunConfig, goals: int | tuple[int, int], split: str, counter: TokenCounter | str = "regex"
) -> EnvFactory:
    """A function that makes environments of a run.

    Args:
        config: The run.
        goals: Goals per task, or least and most.
        split: ``train``, ``dev`` or ``test``.
        counter: Counts memory tokens; a run passes its policy's tokenizer.

    Returns:
        The factory; it raises ``UserError`` where the environment cannot be made (see ``make_env``).
    """
    settings = dataclasses.asdict(config.env_args)
    world = {name: settings.pop(name) for name in ("two_hop_share", "comparison_share", "distractors", "score_step")}
    kwargs: dict[str, Any] = {
        "goals": goals,
        "split": split,
        "dataset": config.dataset,
        "budget": config.budget,
        "token_counter": counter,
        **settings,
    }
    if config.dataset == "closed-world":
        kwargs["world"] = world
    else:
        kwargs["data"] = list(config.data)
    kwargs["memory"] = memory_mode(config.context, kwargs["memory"])

    def make() -> gym.Env[Observation, str]:
        return make_env(config.env, **kwargs)

    return make


def check_environments(config: RunConfig, *, training: bool = True) -> None:
    """Makes every environment that a run will play in, and draws its longest task, so that nothing fails later.

    Args:
        config: The run.
        training: Whether it will train, too, or only be evaluated.

    Raises:
        UserError: An environment cannot be made, or has too few questions for its longest task.
    """
    get_context(config.context)
    warm = config.warm_start
    longest = {}
    if training:
        longest["train"] = max(config.goals[-1], warm.goals[1] if warm.target != "none" else 0)
    if config.eval.episodes or not training:
        longest[config.eval.split] = max(config.eval.goals)
    for split, goals in longest.items():
        with EnvPool(env_factory(config, goals, split)) as pool:
            pool.memory_env.reset(seed=0)


def choose_device(name: str) -> str:
    """Resolves ``auto``.

    Raises:
        UserError: CUDA was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: this torch sees no CUDA device; use --device cpu or install a CUDA build of torch"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def load_base(config: RunConfig, run: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model and its tokenizer.

    Args:
        config: The run.
        run: A run folder whose ``base`` holds weights that a warm start changed or that were built in place.

    Returns:
        Model and tokenizer.
    """
    device = choose_device(config.device)
    if run is not None and (run / "base").exists():
        return load_model(str(run / "base"), dtype=config.dtype, device=device)
    if config.model == "tiny":
        from ..envs.closed_world import closed_world_vocabulary

        model, tokenizer = build_tiny(config.seed, closed_world_vocabulary(), config.tiny)
        return model.to(device), tokenizer
    return load_model(config.model, dtype=config.dtype, device=device)


def build_policy(config: RunConfig, run: Path | None = None, *, adapter: bool = True) -> LoraPolicy:
    """The policy of a run.

    Args:
        config: The run.
        run: See ``load_base``.
        adapter: Whether to add a fresh LoRA adapter.

    Returns:
        The policy.
    """
    model, tokenizer = load_base(config, run)
    codec = make_codec(model, tokenizer)
    return make_policy(config, add_lora(model, config.lora, seed=config.seed) if adapter else model, codec)


def make_policy(config: RunConfig, model: nn.Module, codec: ChatCodec) -> LoraPolicy:
    """A policy with the run's context strategy, sampling and limits; an over-long tool result is cut, and counted."""
    return LoraPolicy(
        model,
        codec,
        get_context(config.context),
        config.sampling,
        max_prompt_tokens=config.max_prompt_tokens or None,
        truncate_tool_result=True,
    )
