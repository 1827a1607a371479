"""Evaluation of a run's policy: tasks never trained on, played, scored and stored.

Invariant: the tasks are the same for every run, and the policy's way of sampling is afterwards what it was.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from mempo_env.records import Turn

from ..agents.codec import CodecTokenCounter
from ..agents.evaluation import evaluate
from ..agents.policy import LoraPolicy
from ..agents.rollout import EnvFactory, EnvPool, EpisodeSpec
from .config import RunConfig
from .logs import progress_bar
from .memory_reward import AnswerScorer
from .report import memory_quality, store_evaluation
from .setup import env_factory

EVAL_SEED = 0
"""Evaluation tasks have their own seed, the same for every run, so that runs are compared on the same tasks."""


def evaluate_policy(config: RunConfig, policy: LoraPolicy, folder: Path, name: str, console: Console) -> None:
    """Plays the evaluation tasks and writes ``<name>.json`` into a folder; with no episodes to play it does nothing."""
    settings = config.eval
    if not settings.episodes:
        return
    sampling = policy.sampling
    policy.sampling = dataclasses.replace(sampling, greedy=settings.greedy)
    counter = CodecTokenCounter(policy.codec)

    def make_env(goals: int) -> EnvFactory:
        return env_factory(config, goals, settings.split, counter)

    started: set[str] = set()
    try:
        with progress_bar(console) as bar:
            task = bar.add_task(f"eval {name}", total=settings.episodes * len(settings.goals), note="episodes")

            def on_turn(spec: EpisodeSpec, _: Turn) -> None:
                started.add(spec.group_id)
                bar.update(task, completed=len(started))

            report = evaluate(
                policy,
                make_env,
                settings.goals,
                settings.episodes,
                EVAL_SEED,
                batch=settings.batch,
                counter=counter,
                on_turn=on_turn,
            )
    finally:
        policy.sampling = sampling
    with EnvPool(make_env(settings.goals[0])) as envs:
        scorer = AnswerScorer(
            policy,
            envs.memory_env.instructions,
            scope=config.train.score_scope,
            max_tokens=config.train.micro_batch_tokens,
        )
    store_evaluation(report, memory_quality(report.episodes, scorer), folder, name)
