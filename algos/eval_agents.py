"""Agents to be measured, from what a user names: a run folder, weights, a server, the scripted expert.

Invariants:
    * all agents of one evaluation play in one environment: that of the first run, or of a preset; a run that was
      trained in another one is refused;
    * a model is loaded when its first row is played, so that an evaluation that is done already loads none;
    * an agent's settings say what it is by its contents, not by where it lies: the weights of a run by their checksum.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mempo_env.env import MemoryEnv
from mempo_env.errors import UserError
from mempo_env.prompt_styles import OWN
from mempo_env.tokens import RegexTokenCounter

from ..agents.agent_spec import AgentSpec
from ..agents.base import Agent
from ..agents.codec import ChatCodec, CodecTokenCounter
from ..agents.contexts import get_context
from ..agents.make_agent import make_agent
from ..agents.policy import LoraPolicy
from ..agents.rollout import EnvPool
from .checkpoint import ADAPTERS, latest_checkpoint
from .config import RunConfig
from .config_io import read_config
from .eval_sweep import Contestant, Player
from .setup import env_factory


def environment_settings(config: RunConfig, seed: int) -> dict[str, Any]:
    """What decides which tasks are played and how the environment answers, as JSON values."""
    return {
        "env": config.env,
        "dataset": config.dataset,
        "data": list(config.data) if config.dataset != "closed-world" else [],
        "split": config.eval.split,
        "seed": seed,
        **dataclasses.asdict(config.env_args),
        "env_options": list(config.env_options),
    }


def run_environment(runs: Sequence[Path]) -> RunConfig:
    """The configuration of the first run, once the others are found to have its environment.

    Raises:
        UserError: A folder is no run, or was trained in another environment.
    """
    first = read_config(runs[0])[0]
    ours = environment_settings(first, 0)
    for run in runs[1:]:
        theirs = environment_settings(read_config(run)[0], 0)
        if other := [name for name in ours if ours[name] != theirs[name]]:
            raise UserError(
                f"{run} was trained in another environment than {runs[0]} ({other[0]} {theirs[other[0]]!r}, not "
                f"{ours[other[0]]!r}); measure them in two calls and set them side by side with mempo compare"
            )
    return first


def run_contestant(run: Path, name: str, config: RunConfig, policy: Callable[[], LoraPolicy]) -> Contestant:
    """The trained policy of a run.

    Args:
        run: The run folder.
        name: How tables call it.
        config: Whose environment it plays in, and whether it plays greedily.
        policy: Loads it; called when its first row is played.

    Raises:
        UserError: The folder is no run, or has no checkpoint.
    """
    own = read_config(run)[0]
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run} has no checkpoint: its warm start has not ended yet; wait for it, or train again")
    greedy = config.eval.greedy

    def load() -> Player:
        loaded = policy()

        def make(context: str, _: MemoryEnv) -> Agent:
            loaded.context = get_context(context)
            loaded.sampling = dataclasses.replace(loaded.sampling, greedy=greedy, temperature=1.0)
            return loaded

        return Player(make, CodecTokenCounter(loaded.codec))

    settings = {
        "kind": "run",
        "model": own.model,
        "checkpoint": checkpoint.name,
        "weights": _checksum(checkpoint / ADAPTERS),
        "decoding": "greedy" if greedy else "sampled",
        "max_new_tokens": own.sampling.max_new_tokens,
        "max_prompt_tokens": own.max_prompt_tokens,
        "counter": f"the tokenizer of {own.model}",
    }
    return Contestant(name, settings, dataclasses.replace(config, train=own.train), load)


def spec_contestant(
    spec: AgentSpec, name: str, config: RunConfig, priced_by: tuple[str, Callable[[], ChatCodec]] | None = None
) -> Contestant:
    """An agent that needs no run: the expert, weights, a server.

    Args:
        spec: Which one; its context is set row by row.
        name: How tables call it.
        config: Whose environment it plays in.
        priced_by: Whose tokenizer counts the tokens of an agent without a model, and what gives it; None: the regex
            counter does.
    """
    own_tokens = spec.kind == "model"

    def load() -> Player:
        codec = priced_by[1]() if priced_by is not None and not own_tokens else None
        made: list[tuple[AgentSpec, str, Agent]] = []  # the last one

        def make(context: str, env: MemoryEnv) -> Agent:
            asked = dataclasses.replace(spec, context=context)
            if made:
                last, budget, agent = made.pop()
                own = last.style == asked.style == OWN.name  # its instructions are the environment's
                if isinstance(agent, LoraPolicy) and own:
                    agent.context = get_context(context)  # the weights are loaded once
                elif (last, budget) != (asked, env.budget.name):
                    del agent  # before the next one is loaded: two large models would not fit
                    agent = make_agent(asked, env, tokens=codec)
            else:
                agent = make_agent(asked, env, tokens=codec)
            made.append((asked, env.budget.name, agent))
            return agent

        if not own_tokens:
            return Player(make, CodecTokenCounter(codec) if codec is not None else RegexTokenCounter())
        # The environment counts with the model's tokenizer, and the model is made for an environment: make one first.
        with EnvPool(env_factory(config, config.eval.goals[0], config.eval.split)) as envs:
            policy = make(spec.context, envs.memory_env)
        assert isinstance(policy, LoraPolicy)
        return Player(make, CodecTokenCounter(policy.codec))

    plays = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    for machine in ("context", "name", "device", "batch_size", "concurrency", "timeout", "retries", "api_key_env"):
        del plays[machine]  # what changes no episode may change from call to call
    if spec.kind in ("model", "chat"):
        plays["decoding"] = "greedy" if spec.greedy else f"sampled at temperature {spec.temperature:g}"
    other = priced_by[0] if priced_by is not None else "the regex counter"
    counters = {"model": f"the tokenizer of {spec.model}", "chat": f"the server, or {other} where it reports none"}
    plays["counter"] = counters.get(spec.kind, other)
    return Contestant(name, plays, config, load)


def _checksum(folder: Path) -> str:
    """Of all weights in a folder, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
