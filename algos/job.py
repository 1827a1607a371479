"""The whole job: warm start, evaluation, reinforcement learning, evaluation, report; and its resume.

Run folder: ``config.json`` (everything the run is made of), ``base/`` (weights that were built in place or changed by
the warm start), ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``, ``eval/before.json`` and ``eval/after.json``,
``episodes/``, ``summary.json``, ``plot.png``.

Invariant: nothing is written before the input was checked, and a folder that exists is never written into unless it is
resumed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mempo_env.errors import UserError
from mempo_env.records import Turn
from mempo_env.versions import versions

from ..agents.codec import CodecTokenCounter
from ..agents.evaluation import evaluate
from ..agents.models import add_lora
from ..agents.policy import LoraPolicy
from ..agents.rollout import EnvFactory, EnvPool, EpisodeSpec
from . import ALGORITHMS
from .base import Algorithm
from .checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from .config import RunConfig, config_from_dict, read_config
from .logs import RunLog, progress_bar
from .memory_reward import AnswerScorer
from .optim import Optimizer, trainable
from .report import memory_quality, store_evaluation, write_report
from .setup import build_policy, choose_device, env_factory, make_policy
from .trainer import Trainer
from .update import Updater
from .warm_start import warm_start

MIN_FREE_BYTES = 200_000_000
EVAL_SEED = 0
"""Evaluation tasks have their own seed, the same for every run, so that runs are compared on the same tasks."""


def start_run(config: RunConfig, algorithm_config: Any, console: Console) -> Path:
    """Runs a job from the start.

    Args:
        config: The run.
        algorithm_config: Settings of ``config.algo``.
        console: Where progress is shown.

    Returns:
        The run folder.

    Raises:
        UserError: Something in the input cannot be used; nothing was written.
    """
    algorithm = ALGORITHMS.get(config.algo)(algorithm_config)
    choose_device(config.device)
    _set_threads(config)
    with EnvPool(env_factory(config, config.goal_range, "train")) as probe:
        console.print(_plain_words(config, probe.memory_env.instructions))
    policy = build_policy(config, adapter=config.warm_start.target != "all")
    run = _new_folder(config)
    (run / "config.json").write_text(
        json.dumps(
            {
                "run": dataclasses.asdict(dataclasses.replace(config, out=str(run))),
                "algorithm": dataclasses.asdict(algorithm.config),
                "versions": versions(),
            },
            indent=2,
        ),
        encoding="utf-8",
    )
    with RunLog(run) as log:
        policy = _warm(config, policy, run, log, console)
        evaluate_policy(config, policy, run / "eval", "before", console)
        algorithm.setup(policy)
        trainer = _trainer(config, policy, algorithm)
        _save(config, trainer, run)
        _train(config, trainer, run, log, console)
        evaluate_policy(config, policy, run / "eval", "after", console)
    write_report(config, run, console)
    return run


def resume_run(run: Path, console: Console, *, steps: int | None = None, algo: str | None = None) -> Path:
    """Goes on with a run from its newest checkpoint.

    Args:
        run: The run folder.
        console: Where progress is shown.
        steps: New total number of steps; None: as configured.
        algo: If given, must be the run's algorithm.

    Returns:
        The run folder.

    Raises:
        UserError: There is no checkpoint, or it is of another algorithm.
    """
    config, algorithm_config = load_run_config(run)
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    path = latest_checkpoint(run)
    if path is None:
        raise UserError(f"{run} has no checkpoint yet; start the run again with another --out")
    algorithm = ALGORITHMS.get(algo or config.algo)
    _set_threads(config)
    policy = build_policy(config, run)
    if config.warm_start.target == "adapter":
        policy.add_frozen_copy()
    if algorithm.name != ALGORITHMS.get(config.algo).name:
        load_checkpoint(path, policy, algorithm.name)  # raises: it is of another algorithm
    learner = algorithm(algorithm_config)
    learner.setup(policy)
    trainer = _trainer(config, policy, learner)
    state, warnings = load_checkpoint(path, policy, algorithm.name)
    trainer.load_state_dict(state)
    for warning in warnings:
        console.print(f"[yellow]{warning}")
    console.print(f"resumed {path} at step {trainer.steps_done}")
    with RunLog(run, resume_from=trainer.steps_done) as log:
        _train(config, trainer, run, log, console)
        evaluate_policy(config, policy, run / "eval", "after", console)
    write_report(config, run, console)
    return run


def load_run_config(run: Path) -> tuple[RunConfig, Any]:
    """The configuration a run folder was made with, and its algorithm's."""
    data = read_config(run / "config.json")
    config: RunConfig = config_from_dict(RunConfig, data["run"], str(run / "config.json"))
    algorithm = ALGORITHMS.get(config.algo)
    return config, config_from_dict(algorithm.config_class, data["algorithm"], str(run / "config.json"))


def load_run_policy(run: Path) -> tuple[RunConfig, LoraPolicy]:
    """The trained policy of a run folder, from its newest checkpoint."""
    config, _ = load_run_config(run)
    path = latest_checkpoint(run)
    if path is None:
        raise UserError(f"{run} has no checkpoint yet: its warm start has not finished")
    policy = build_policy(config, run)
    if config.warm_start.target == "adapter":
        policy.add_frozen_copy()
    policy.load_adapters(path / "adapters")
    return config, policy


def evaluate_policy(config: RunConfig, policy: LoraPolicy, folder: Path, name: str, console: Console) -> None:
    """Plays the evaluation tasks and writes ``<name>.json`` into a folder; nothing where the config asks for no
    episodes."""
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
            task = bar.add_task(f"eval {name}", total=settings.episodes * len(settings.goals), note="episodes started")

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


def _warm(config: RunConfig, policy: LoraPolicy, run: Path, log: RunLog, console: Console) -> LoraPolicy:
    """Runs the warm start and returns the policy that reinforcement learning goes on with."""
    settings = config.warm_start
    total = settings.perfect_steps + settings.demonstrator_steps
    if settings.target != "none" and total:
        with progress_bar(console) as bar:
            task = bar.add_task("imitation", total=total, note="")
            started = time.perf_counter()

            def on_step(step: int, record: Any) -> None:
                log.write("imitation", step, dataclasses.asdict(record))
                rate = (step + 1) / (time.perf_counter() - started)
                bar.update(
                    task,
                    completed=step + 1,
                    note=f"loss {record.loss:.3f}  hits {record.accuracy:.3f}  {rate:.1f} steps/s",
                )

            policy.train_mode()
            warm_start(config, policy, on_step=on_step)
    if settings.target == "all" or config.model == "tiny":
        policy.save_base(run / "base")
    if settings.target == "all":
        policy = make_policy(config, add_lora(policy.model, config.lora, seed=config.seed), policy.codec)  # type: ignore[arg-type]
    elif settings.target == "adapter":
        policy.add_frozen_copy()
    policy.weights_version = 0
    return policy


def _trainer(config: RunConfig, policy: LoraPolicy, algorithm: Algorithm[Any]) -> Trainer:
    settings = config.train
    envs = EnvPool(env_factory(config, config.goal_range, "train", CodecTokenCounter(policy.codec)))
    parameters = [*trainable(policy.model)]
    parameters += [(f"algorithm.{i}", p) for i, p in enumerate(algorithm.extra_parameters())]
    steps = config.steps * settings.epochs * settings.minibatches
    updater = Updater(
        policy,
        algorithm,
        Optimizer(parameters, settings.optim, steps),
        epochs=settings.epochs,
        minibatches=settings.minibatches,
        micro_batch_tokens=settings.micro_batch_tokens,
    )
    scorer = AnswerScorer(
        policy, envs.memory_env.instructions, scope=settings.score_scope, max_tokens=settings.micro_batch_tokens
    )
    return Trainer(
        policy,
        algorithm,
        envs,
        scorer,
        updater,
        groups_per_step=settings.groups_per_step,
        group_size=settings.group_size,
        seed=config.seed,
    )


def _train(config: RunConfig, trainer: Trainer, run: Path, log: RunLog, console: Console) -> None:
    with progress_bar(console) as bar, trainer.envs:
        task = bar.add_task(config.algo, total=config.steps, completed=trainer.steps_done, note="")
        while trainer.steps_done < config.steps:
            step = trainer.steps_done
            metrics = trainer.step().metrics
            log.write("train", step, metrics)
            if step == 0:
                console.print(self_check(metrics))
            if trainer.steps_done % config.train.save_every == 0 or trainer.steps_done == config.steps:
                _save(config, trainer, run)
            bar.update(
                task,
                completed=step + 1,
                note=f"return {metrics.get('rollout/return', 0):.3f}  F1 {metrics.get('rollout/f1', 0):.3f}  "
                f"Q {metrics.get('memory/quality', float('nan')):.3f}  "
                f"s/step {metrics['time/sampling_s']:.1f} + {metrics['time/scoring_s']:.1f} "
                f"+ {metrics['time/update_s']:.1f}",
            )


def self_check(metrics: dict[str, float]) -> str:
    """The first log line of a run: what must hold at step 0, and what it was."""
    if "train/ratio" not in metrics:
        return "self-check: the first batch had no group with variance, so nothing was learned from it"
    parts = [
        f"ratio {metrics['train/ratio']:.6f} (1)",
        f"KL {metrics['train/kl']:.1e} (0)" if "train/kl" in metrics else "KL not computed (beta 0)",
        f"sampler/trainer gap mean {metrics['train/sampler_mismatch']:.1e} max {metrics['train/sampler_mismatch_max']:.1e}",
        f"sampler moved by {metrics.get('train/sampler_moved', float('nan')):.1e} after one update",
    ]
    return "self-check: " + ", ".join(parts)


def _save(config: RunConfig, trainer: Trainer, run: Path) -> None:
    save_checkpoint(
        run / "checkpoints",
        trainer.steps_done,
        trainer.policy,
        trainer.state_dict(),
        trainer.algorithm.name,
        keep=config.train.keep_checkpoints,
    )


def _new_folder(config: RunConfig) -> Path:
    run = Path(config.out or f"runs/{config.preset}-{config.algo}-{time.strftime('%Y%m%d-%H%M%S')}")
    if run.exists():
        raise UserError(f"{run} exists; choose another --out, or go on with it by --resume {run}")
    parent = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if free < MIN_FREE_BYTES:
        need = f"{MIN_FREE_BYTES / 1e6:.0f} MB"
        raise UserError(f"{parent} has {free / 1e6:.0f} MB free, a run needs {need}; free some space")
    try:
        (run / "eval").mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot create {run}: {error}; choose another --out") from error
    return run


def _set_threads(config: RunConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)


def _plain_words(config: RunConfig, instructions: str) -> str:
    """What a step is, in plain words."""
    train, warm = config.train, config.warm_start
    lines = [
        f"{config.algo} on {config.env} ({config.dataset}, budget {config.budget}, outcome {config.env_args.outcome}), "
        f"model {config.model}, seed {config.seed}",
        f"warm start: {warm.perfect_steps} steps on the expert, then {warm.demonstrator_steps} on one that forgets "
        f"{warm.forget:.0%} of its notes at every rewrite ({warm.target} weights)",
        f"then {config.steps} steps of {train.groups_per_step} tasks x {train.group_size} rollouts = "
        f"{train.groups_per_step * train.group_size} episodes of {'-'.join(map(str, config.goals))} goals each",
        f"instructions: {len(instructions)} characters",
    ]
    return "\n".join(lines)
