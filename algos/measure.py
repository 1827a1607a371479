"""Evaluations of a run: the policy, and beside it what could be reached; each written into a folder.

Invariant: whoever is evaluated plays the same tasks in environments of the run's own settings, and pays for tokens as
the policy's tokenizer and context strategy count them.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from mempo_env.records import Episode, Turn

from ..agents.codec import ChatCodec, CodecTokenCounter
from ..agents.evaluation import evaluate
from ..agents.history_cost import HistoryCost, history_cost
from ..agents.policy import LoraPolicy
from ..agents.rollout import EnvFactory, EnvPool, EpisodeSpec
from ..agents.scripted_expert import make_expert
from .config import RunConfig
from .logs import progress_bar
from .memory_reward import AnswerScorer
from .setup import env_factory
from .stored import Quality, memory_quality, store_evaluation

EVAL_SEED = 0
"""Evaluation tasks have their own seed, the same for every run, so that runs are compared on the same tasks."""


def evaluate_policy(
    config: RunConfig, policy: LoraPolicy, folder: Path, name: str, console: Console, *, bar: Progress | None = None
) -> None:
    """Plays the evaluation tasks and writes ``<name>.json`` and the episodes; with no episodes to play it does nothing.

    Args:
        config: The run.
        policy: Who plays, with whatever weights it has now.
        folder: Where to write.
        name: Of the files.
        console: Where progress is shown, unless there is a bar already.
        bar: A live bar to add to.
    """
    settings = config.eval
    if not settings.episodes:
        return
    sampling = policy.sampling
    policy.sampling = dataclasses.replace(sampling, greedy=settings.greedy, temperature=1.0)
    started: set[str] = set()
    try:
        with nullcontext(bar) if bar is not None else progress_bar(console) as shown:
            task = shown.add_task(f"eval {name}", total=settings.episodes * len(settings.goals), note="episodes")

            def on_turn(spec: EpisodeSpec, _: Turn) -> None:
                started.add(spec.group_id)
                shown.update(task, completed=len(started))

            report = evaluate(
                policy,
                lambda goals: _env_fn(config, policy, goals),
                settings.goals,
                settings.episodes,
                EVAL_SEED,
                batch=settings.batch,
                counter=CodecTokenCounter(policy.codec),
                on_turn=on_turn,
            )
    finally:
        policy.sampling = sampling
    with EnvPool(_env_fn(config, policy, settings.goals[0])) as envs:
        instructions = envs.memory_env.instructions
    scorer = AnswerScorer(
        policy, instructions, scope=config.train.score_scope, max_tokens=config.train.micro_batch_tokens
    )
    history = _history_costs(report.episodes, policy.codec, instructions) if config.context == "memory" else {}
    store_evaluation(report, memory_quality(report.episodes, scorer), folder, name, history)


def evaluate_expert(config: RunConfig, policy: LoraPolicy, folder: Path, name: str) -> None:
    """Has the scripted expert play the same tasks and writes ``<name>.json``; it has no Q(m)."""
    settings, counter = config.eval, CodecTokenCounter(policy.codec)
    if not settings.episodes:
        return
    with EnvPool(_env_fn(config, policy, settings.goals[0])) as envs:
        expert = make_expert(envs.memory_env, tokens=policy.codec, context=policy.context, memory_counter=counter)
    report = evaluate(
        expert,
        lambda goals: _env_fn(config, policy, goals),
        settings.goals,
        settings.episodes,
        EVAL_SEED,
        batch=settings.batch,
        counter=counter,
    )
    store_evaluation(report, Quality(float("nan"), float("nan"), {}), folder, name, {})


def _env_fn(config: RunConfig, policy: LoraPolicy, goals: int) -> EnvFactory:
    return env_factory(config, goals, config.eval.split, CodecTokenCounter(policy.codec))


def _history_costs(episodes: tuple[Episode, ...], codec: ChatCodec, instructions: str) -> dict[int, HistoryCost]:
    """For each number of goals, what full history would have cost for the episodes that were played."""
    played: dict[int, list[Episode]] = {}
    for episode in episodes:
        if episode.error is None and episode.turns:
            played.setdefault(len(episode.task.goals), []).append(episode)
    return {goals: history_cost(some, codec, instructions) for goals, some in played.items()}
