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

import mempo_env  # noqa: F401 - registers the environments
from mempo_env.errors import UserError, unknown_name
from mempo_env.records import Observation
from mempo_env.tokens import TokenCounter

from ..agents.codec import ChatCodec
from ..agents.contexts import get_context
from ..agents.models import add_lora, load_model, make_codec
from ..agents.policy import LoraPolicy
from ..agents.rollout import EnvFactory
from ..agents.tiny import build_tiny
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
        The factory.

    Raises:
        UserError: The environment id is unknown.
    """
    known = [name for name in gym.registry if name.startswith("MemPO")]
    if ":" not in config.env and config.env not in gym.registry:
        raise unknown_name("environment", config.env, known, "Or give package.module:EnvId-v0.")
    settings = dataclasses.asdict(config.env_args)
    world = {name: settings.pop(name) for name in ("two_hop_share", "comparison_share", "distractors")}
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
    if config.context != "memory" and kwargs["memory"] == "required":
        kwargs["memory"] = "optional"

    def make() -> gym.Env[Observation, str]:
        return gym.make(config.env, disable_env_checker=True, **kwargs)

    return make


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
        return model.to(device), tokenizer  # type: ignore[arg-type]
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
