"""The warm start: imitation of the scripted expert, then of one with a stated flaw.

With ``target="all"`` it trains every weight of the base, and a fresh adapter is added afterwards (its reference is the
base with the adapter off). With ``target="adapter"`` it trains the adapter that reinforcement learning goes on with,
and a frozen copy of that adapter becomes the reference.

Invariant: after the warm start KL(policy || reference) is 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from mempo_env.records import Episode

from ..agents.adapters import seeded
from ..agents.codec import CodecTokenCounter
from ..agents.policy import LoraPolicy
from ..agents.rollout import EnvPool, EpisodeSpec, rollout
from ..agents.row_batches import TokenRow
from ..agents.scripted_expert import Flaws, make_expert
from .config import RunConfig, WarmStartConfig
from .imitation import ImitationStep, demonstration_rows, imitate, imitation_batches
from .memory_reward import AnswerScorer
from .optim import Optimizer, trainable
from .setup import env_factory
from .trainer import task_seed

OnStep = Callable[[int, ImitationStep], None]

_IMITATION_STREAM = 1 << 20
"""Offset of the step number in ``task_seed``, so that demonstrated and trained tasks are drawn apart."""


def demonstrator(
    config: RunConfig, policy: LoraPolicy, envs: EnvPool, forget: float, first_chunk: int = 0
) -> Callable[[int], list[TokenRow]]:
    """A function that gives the demonstrated rows of a chunk.

    Args:
        config: The run.
        policy: Whose codec and context strategy the rows are made with.
        envs: Where the expert plays.
        forget: Rate at which it forgets a note per rewrite.
        first_chunk: Number of the first chunk; tasks are drawn by chunk.

    Returns:
        From the chunk's number to its rows.
    """
    settings: WarmStartConfig = config.warm_start
    expert = make_expert(
        envs.memory_env,
        flaws=Flaws(forget=forget),
        context=policy.context,
        memory_counter=CodecTokenCounter(policy.codec),
    )

    scorer = AnswerScorer(policy, envs.memory_env.instructions)

    def recall(episode: Episode, index: int) -> TokenRow:
        memory = episode.turns[index % len(episode.turns)].memory  # one turn of each episode, early and late ones alike
        return scorer.recall_row(episode.task, memory, expert.answers(episode.task, memory))

    def rows(chunk: int) -> list[TokenRow]:
        step = _IMITATION_STREAM + first_chunk + chunk
        specs = [
            EpisodeSpec(f"imitation/{forget}/{chunk}/{index}", 0, task_seed(config.seed, step, index))
            for index in range(settings.episodes_per_chunk)
        ]
        episodes = rollout(expert, envs, specs, seed=config.seed, step=step)
        played = [episode for episode in episodes if episode.error is None] if settings.recall_rows else []
        recalled = [recall(episode, index) for index, episode in enumerate(played)]
        return demonstration_rows(episodes, policy, envs.memory_env.instructions) + recalled

    return rows


def warm_start(
    config: RunConfig,
    policy: LoraPolicy,
    *,
    on_step: OnStep | None = None,
    on_ceiling: Callable[[], None] | None = None,
    on_ceiling_step: OnStep | None = None,
) -> None:
    """Trains a policy by imitation, in place, on whatever parameters of its model ask for a gradient.

    Args:
        config: The run; ``config.warm_start`` says how long, on how many goals, and how much is forgotten.
        policy: What learns.
        on_step: Called after each optimizer step.
        on_ceiling: If given, what imitation could reach with the same number of steps is shown first: the last part
            imitates the perfect expert, ``on_ceiling`` is called while the policy has the weights of that, and then
            weights and optimizer go back to where that part began. The result is the same to the bit either way.
        on_ceiling_step: Called after each optimizer step of that branch.
    """
    settings = config.warm_start
    optimizer = Optimizer(trainable(policy.model), settings.optim, settings.perfect_steps + settings.demonstrator_steps)
    perfect, last = _parts(settings)
    for part in perfect:
        _imitate_part(config, policy, optimizer, part, on_step)
    if on_ceiling is not None:
        weights = [parameter.detach().clone() for parameter in optimizer.parameters]
        state = copy.deepcopy(optimizer.state_dict())
        _imitate_part(config, policy, optimizer, replace(last, forget=0.0), on_ceiling_step)
        on_ceiling()
        with torch.no_grad():
            for parameter, before in zip(optimizer.parameters, weights, strict=True):
                parameter.copy_(before)
        optimizer.load_state_dict(state)
        policy.train_mode()
    _imitate_part(config, policy, optimizer, last, on_step)


@dataclass(frozen=True)
class _Part:
    """A stretch of the warm start: its steps, the goals of its tasks, and how much its demonstrator forgets."""

    start: int
    steps: int
    goals: tuple[int, int]
    forget: float


def _parts(settings: WarmStartConfig) -> tuple[list[_Part], _Part]:
    """The parts on the perfect expert, and the last one, on the demonstrator."""
    low, high = settings.goals
    perfect, done = [], 0
    for wanted, most in settings.curriculum:
        steps = min(wanted, settings.perfect_steps - done)
        perfect.append(_Part(done, steps, (low, most), 0.0))
        done += steps
    perfect.append(_Part(done, settings.perfect_steps - done, (low, high), 0.0))
    return perfect, _Part(settings.perfect_steps, settings.demonstrator_steps, (low, high), settings.forget)


def _imitate_part(
    config: RunConfig, policy: LoraPolicy, optimizer: Optimizer, part: _Part, on_step: OnStep | None
) -> None:
    if not part.steps:
        return
    settings = config.warm_start
    # Dropout draws from torch's global generator: keyed by the part, so that a ceiling before it changes nothing.
    noise = task_seed(config.seed, _IMITATION_STREAM + part.start, -1)
    make = env_factory(config, part.goals, "train", CodecTokenCounter(policy.codec))
    with EnvPool(make) as envs, seeded(noise, policy.device):
        # The part's first step also sets the parts' tasks apart.
        rows = demonstrator(config, policy, envs, part.forget, first_chunk=part.start)
        imitate(
            policy,
            optimizer,
            imitation_batches(rows, settings.tokens_per_step, config.seed + part.start),
            part.steps,
            # Several passes a step, each of similar lengths: little padding, at any mix of lengths.
            micro_batch_tokens=min(config.train.micro_batch_tokens, settings.tokens_per_step // 2),
            gradient_checkpointing=config.train.gradient_checkpointing,
            on_step=None if on_step is None else partial(_shifted, on_step, part.start),
        )


def _shifted(on_step: OnStep, offset: int, step: int, record: ImitationStep) -> None:
    on_step(offset + step, record)
