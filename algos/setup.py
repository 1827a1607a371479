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

from mempo_env.errors import UserError, unknown_name
from mempo_env.records import Observation
from mempo_env.tokens import TokenCounter

from ..agents.codec import ChatCodec
from ..agents.contexts import get_context, memory_mode
from ..agents.models import add_lora, load_model, make_codec
from ..agents.policy import LoraPolicy
from ..agents.rollout import EnvFactory, EnvPool
from ..agents.tiny import build_tiny
from ..envs.making import HAND_ON, env_arguments, make_env, parse_options
from ..envs.multi_goal import MultiGoalEnv
from ..envs.retrieval_choice import check_retrieval
from .config import RunConfig
from .presets import get_preset

SEARCH_THREADS = 32
"""Environments that wait for a search server side by side; fewer than a client has connections."""


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

    Raises:
        UserError: A setting is not one of this environment's.
    """
    kwargs = env_settings(config) | {"goals": goals, "split": split, "token_counter": counter}

    def make() -> gym.Env[Observation, str]:
        return make_env(config.env, **kwargs)

    return make


def env_settings(config: RunConfig) -> dict[str, Any]:
    """The arguments of a run's environment that do not change within the run.

    An environment gets of the search settings (data set, passages, world) those that it takes, and nothing is dropped
    that was changed from the preset.

    Args:
        config: The run.

    Returns:
        Arguments by name.

    Raises:
        UserError: The environment does not take a setting that was changed, or an option is unknown or has a flag.
    """
    known = env_arguments(config.env)
    settings = _common_settings(config)
    if known is not None and (missing := sorted({"goals", "split", "token_counter", *settings} - known)):
        raise UserError(f"environment '{config.env}' takes no {missing[0]}; {HAND_ON}")
    preset = _search_settings(get_preset(config.preset))
    for name, value in _search_settings(config).items():
        if known is None or name in known:
            settings[name] = value
        elif value != preset.get(name):
            raise UserError(f"{config.env} takes no {name}; drop that setting")
    options = parse_options(config.env_options)
    for name in options:
        if name in settings or name in ("goals", "split", "token_counter"):
            raise UserError(f"--env-options {name}=..: {name} has a flag of its own, which --help lists")
        if known is not None and name not in known:
            free = sorted(known - set(settings) - _SET_ELSEWHERE)
            raise unknown_name(f"option of {config.env}", name, free)
    return settings | options


_SET_ELSEWHERE = {"goals", "split", "token_counter", "render_mode", "reward_hook"}
_WORLD = ("two_hop_share", "comparison_share", "distractors", "score_step")
_SEARCH = ("topk", "max_passage_tokens", "composition", "hops", "kinds", "retrieval")


def _common_settings(config: RunConfig) -> dict[str, Any]:
    """Arguments of every ``MemoryEnv``."""
    settings = dataclasses.asdict(config.env_args)
    kwargs = {name: value for name, value in settings.items() if name not in (*_WORLD, *_SEARCH)}
    kwargs["memory"] = memory_mode(config.context, kwargs["memory"])
    return kwargs | {"budget": config.budget}


def _search_settings(config: RunConfig) -> dict[str, Any]:
    """Arguments of ``MultiGoalEnv`` alone."""
    settings = dataclasses.asdict(config.env_args)
    kwargs: dict[str, Any] = {"dataset": config.dataset, **{name: settings[name] for name in _SEARCH}}
    if config.dataset == "closed-world":
        kwargs["world"] = {name: settings[name] for name in _WORLD}
    else:
        kwargs["data"] = list(config.data)
    return kwargs


def check_environments(config: RunConfig, *, training: bool = True) -> None:
    """Makes every environment that a run will play in, and draws its longest task, so that nothing fails later.

    Args:
        config: The run.
        training: Whether it will train, too, or only be evaluated.

    Raises:
        UserError: An environment cannot be made, has too few questions for its longest task, or asks a search server
            that does not answer.
    """
    get_context(config.context)
    env_settings(config)  # first: who cannot search at all is not told to start a server
    check_retrieval(config.env_args.retrieval)
    warm = config.warm_start
    longest = {}
    if training:
        longest["train"] = max(config.goals[-1], warm.goals[1] if warm.target != "none" else 0)
    if config.eval.episodes or not training:
        longest[config.eval.split] = max(config.eval.goals)
    for split, goals in longest.items():
        with EnvPool(env_factory(config, goals, split)) as pool:
            env = pool.memory_env
            env.reset(seed=0)
        imitated = split == "train" and warm.target != "none" and isinstance(env, MultiGoalEnv)
        if imitated and not any(goal.evidence for goal in env.task.goals):
            raise UserError(
                "the warm start imitates the scripted expert, which needs gold passages, and these questions have "
                "none in the corpus; use --warm-start.target none, or data with gold passages (docs/data.md)"
            )


def env_threads(config: RunConfig) -> int:
    """Threads that step environments side by side: some where they wait for a search server, none otherwise."""
    return SEARCH_THREADS if config.env_args.retrieval.startswith(("http://", "https://")) else 0


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


def writes_base(config: RunConfig) -> bool:
    """Whether a run keeps base weights of its own: all of them warm-started, or built in place.

    Another run has none, and needs none: its model has a name, and what it learned is in the adapters.
    """
    return config.warm_start.target == "all" or config.model == "tiny"


def load_base(config: RunConfig, run: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model and its tokenizer.

    Args:
        config: The run.
        run: The folder of a run whose warm start has ended; None: the run begins.

    Returns:
        Model and tokenizer.

    Raises:
        UserError: The run wrote a ``base``, and it is gone: its adapters mean nothing on any other weights.
    """
    device = choose_device(config.device)
    if run is not None and (run / "base").exists():
        return load_model(str(run / "base"), dtype=config.dtype, device=device)
    if run is not None and writes_base(config):
        raise UserError(
            f"{run / 'base'} is missing: it holds the weights that the run's adapters belong to; copy it, too, from "
            "where the run was made, or train again"
        )
    if config.model == "tiny":
        with EnvPool(env_factory(config, config.goal_range, "train")) as pool:
            env = pool.memory_env
        model, tokenizer = build_tiny(config.seed, env.vocabulary, config.tiny, phrases=env.phrases)
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
