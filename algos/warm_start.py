"""The warm start: imitation of the scripted expert, then of one with a stated flaw.

With ``target="all"`` it trains every weight of the base, and a fresh adapter is added afterwards (its reference is the
base with the adapter off). With ``target="adapter"`` it trains the adapter that reinforcement learning goes on with,
and a frozen copy of that adapter becomes the reference.

Invariant: after the warm start KL(policy || reference) is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mempo_env.records import Episode

from ..agents.codec import CodecTokenCounter
from ..agents.expert import ExpertAgent, Flaws, answers_from_memory
from ..agents.policy import LoraPolicy
from ..agents.rollout import EnvPool, EpisodeSpec, rollout
from ..agents.scoring import TokenRow
from .config import RunConfig, WarmStartConfig
from .imitation import ImitationStep, demonstration_rows, imitate, imitation_batches
from .memory_reward import AnswerScorer
from .optim import Optimizer, trainable
from .setup import env_factory
from .trainer import task_seed

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
    expert = ExpertAgent(
        config.budget,
        flaws=Flaws(forget=forget),
        context=policy.context,
        memory_counter=CodecTokenCounter(policy.codec),
    )

    scorer = AnswerScorer(policy, envs.memory_env.instructions)

    def recall(episode: Episode, index: int) -> TokenRow:
        memory = episode.turns[index % len(episode.turns)].memory  # one turn of each episode, early and late ones alike
        return scorer.recall_row(episode.task, memory, answers_from_memory(episode.task, memory))

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
    forget_after: bool = True,
    on_step: Callable[[int, ImitationStep], None] | None = None,
) -> None:
    """Trains a policy by imitation, in place, on whatever parameters of its model ask for a gradient.

    Args:
        config: The run; ``config.warm_start`` says how long, on how many goals, and how much is forgotten.
        policy: What learns.
        forget_after: Whether the second part imitates the imperfect demonstrator (False: the perfect expert throughout,
            the ceiling that imitation can reach with the same number of steps).
        on_step: Called after each optimizer step.
    """
    settings = config.warm_start
    forget = settings.forget if forget_after else 0.0
    low, high = settings.goals
    short = min(settings.short_steps, settings.perfect_steps)
    parts = (  # steps, goals, rate of forgetting
        (short, (low, settings.short_goals), 0.0),
        (settings.perfect_steps - short, (low, high), 0.0),
        (settings.demonstrator_steps, (low, high), forget),
    )
    optimizer = Optimizer(trainable(policy.model), settings.optim, sum(steps for steps, _, _ in parts))
    done = 0
    for steps, goals, rate in parts:
        if not steps:
            continue
        offset = done  # also sets the parts' tasks apart
        with EnvPool(env_factory(config, goals, "train", CodecTokenCounter(policy.codec))) as envs:
            rows = demonstrator(config, policy, envs, rate, first_chunk=offset)
            imitate(
                policy,
                optimizer,
                imitation_batches(rows, settings.tokens_per_step, config.seed + offset),
                steps,
                # Several passes a step, each of similar lengths: little padding, at any mix of lengths.
                micro_batch_tokens=min(config.train.micro_batch_tokens, settings.tokens_per_step // 2),
                on_step=None if on_step is None else partial(_shifted, on_step, offset),
            )
        done += steps


def _shifted(on_step: Callable[[int, ImitationStep], None], offset: int, step: int, record: ImitationStep) -> None:
    on_step(offset + step, record)
