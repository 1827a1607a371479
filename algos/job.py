"""The whole job: warm start, evaluation, reinforcement learning, evaluation, report; and its resume.

Run folder: ``config.json`` (everything the run is made of), ``base/`` (weights that were built in place or changed by
the warm start), ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``, ``eval/before.json`` and ``eval/after.json``,
``summary.json``, ``plot.png``, ``curves.png``, ``memory_quality.png``; with ``eval.ceilings`` also
``eval/imitation.json`` and ``eval/expert.json``; and, where an update met a number that is not finite, ``failures/``
with its row; with ``train.save_episodes`` ``training/``.

Invariants:
    * nothing is written before the input was checked, and a folder that exists is never written into unless it is
      resumed;
    * among several processes the first writes, shows and evaluates, and is the one that imitates; the others get its
      weights, so that reinforcement learning starts from those of a run of one process, to the bit.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from mempo_env.errors import UserError

from ..agents.codec import CodecTokenCounter
from ..agents.models import lora_targets
from ..agents.policy import LoraPolicy
from ..agents.rollout import EnvPool
from .base import Algorithm, get_algorithm
from .checkpoint import ADAPTERS, check_checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from .config import RunConfig
from .config_io import read_config, write_config
from .frozen_reference import FrozenReference
from .logs import NO_LOG, RunLog, plain_words, progress_bar, self_check, step_note
from .measure import evaluate_expert, evaluate_policy
from .memory_reward import AnswerScorer
from .noting_scorer import NotingScorer
from .optim import make_optimizer
from .processes import ALONE, Processes
from .report import write_report
from .run_folder import check_new_folder, guarded, new_folder
from .setup import build_policy, check_environments, choose_device, env_factory, env_threads
from .trainer import Trainer
from .training_episodes import EpisodeKeeper
from .update import Updater
from .warm_phase import warmed_policy


def start_run(config: RunConfig, algorithm_config: Any, console: Console, processes: Processes = ALONE) -> Path:
    """Runs a job from the start.

    Args:
        config: The run.
        algorithm_config: Settings of ``config.algo``.
        console: Where progress is shown.
        processes: Those that train together; each calls this.

    Returns:
        The run folder.

    Raises:
        UserError: Something in the input cannot be used; nothing was written.
    """
    algorithm = get_algorithm(config.algo)(algorithm_config)
    _check_fit(config, algorithm)
    choose_device(config.device)
    run = processes.first(lambda: check_new_folder(config))
    config = dataclasses.replace(config, out=str(run))
    check_environments(config)
    _set_threads(config)
    policy = build_policy(config, adapter=config.warm_start.target != "all")
    if config.warm_start.target == "all":
        lora_targets(policy.model, config.lora)  # the adapter comes later: too late to fail
    console.print(plain_words(config, processes.size))
    with ExitStack() as stack:
        log = NO_LOG
        with processes.together():
            if processes.is_first:
                stack.enter_context(new_folder(run, config, algorithm.config))
                log = stack.enter_context(RunLog(run))
        policy = warmed_policy(config, policy, run, log, console, processes)
        processes.first(lambda: _begin(config, policy, run, log, console))
        algorithm.setup(policy)
        trainer = make_trainer(config, policy, algorithm, run, processes)
        processes.first(lambda: _save(config, trainer, run))
        with log.timed("training"):
            _train(config, trainer, run, log, console)
        processes.first(lambda: _finish(config, policy, run, log, console))
    return run


def resume_run(
    run: Path,
    console: Console,
    *,
    steps: int | None = None,
    algo: str | None = None,
    processes: Processes = ALONE,
) -> Path:
    """Goes on with a run from its newest checkpoint.

    Args:
        run: The run folder.
        console: Where progress is shown.
        steps: New total number of steps; None: as configured.
        algo: If given, must be the run's algorithm.
        processes: Those that train together; each calls this. Another number than before goes on, but not bit for bit.

    Returns:
        The run folder.

    Raises:
        UserError: There is no checkpoint, it is of another algorithm, or it is beyond ``steps``.
    """
    config, algorithm_config = read_config(run)
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    path = latest_checkpoint(run)
    if path is None:
        raise UserError(f"{run} has no checkpoint: its warm start never ended; start again with another --out")
    algorithm = get_algorithm(algo or config.algo)
    done = check_checkpoint(path, algorithm.name)["step"]
    if config.steps < done:
        raise UserError(f"{run} is at step {done} already; give --steps {done} or more")
    choose_device(config.device)
    check_environments(config)
    _set_threads(config)
    policy = build_policy(config, run)
    if config.warm_start.target == "adapter":
        policy.add_frozen_copy()
    learner = algorithm(algorithm_config)
    learner.setup(policy)
    trainer = make_trainer(config, policy, learner, run, processes)
    state, warnings = load_checkpoint(path, policy, algorithm.name)
    trainer.load_state_dict(state)
    for warning in warnings:
        console.print(f"[yellow]{warning}")
    console.print(f"resumed {path} at step {trainer.steps_done}")
    with ExitStack() as stack:
        log = NO_LOG
        with processes.together():
            if processes.is_first:
                stack.enter_context(guarded(run))
                log = stack.enter_context(RunLog(run, resume_from=trainer.steps_done))
                write_config(run, config, algorithm_config)  # new steps, for whoever resumes next
        with log.timed("training"):
            _train(config, trainer, run, log, console)
        processes.first(lambda: _finish(config, policy, run, log, console))
    return run


def load_run_policy(run: Path, *, device: Literal["auto", "cpu", "cuda"] | None = None) -> LoraPolicy:
    """The trained policy of a run folder, from its newest checkpoint.

    Args:
        run: The run folder.
        device: Where to; None: as the run was configured.

    Raises:
        UserError: This is no run folder, it has no checkpoint, or one of its files is damaged.
    """
    config, algorithm_config = read_config(run)
    path = latest_checkpoint(run)
    if path is None:
        raise UserError(f"{run} has no checkpoint: its warm start has not ended yet; wait for it, or train again")
    policy = build_policy(dataclasses.replace(config, device=device or config.device), run)
    if config.warm_start.target == "adapter":
        policy.add_frozen_copy()
    get_algorithm(config.algo)(algorithm_config).setup(policy)  # a critic's adapter is in the checkpoint, too
    policy.load_adapters(path / ADAPTERS)
    return policy


def _check_fit(config: RunConfig, algorithm: Algorithm[Any]) -> None:
    """Refuses a run in which the algorithm has nothing to learn from."""
    if algorithm.rewards_memory and config.env_args.memory == "off":
        raise UserError(
            f"--algo {config.algo} rewards memories, and with --env-args.memory off none is stored; use --algo grpo, "
            "or let memories be optional"
        )
    if algorithm.compares_group and config.train.group_size < 2:
        raise UserError(
            f"--algo {config.algo} compares the episodes of a group, and with --train.group-size "
            f"{config.train.group_size} there is nothing to compare: every advantage is 0; give 2 or more, or "
            "--algo ppo, which needs no group"
        )


def _begin(config: RunConfig, policy: LoraPolicy, run: Path, log: RunLog, console: Console) -> None:
    with log.timed("evaluation"):
        evaluate_policy(config, policy, run / "eval", "before", console)
        if config.eval.ceilings:
            evaluate_expert(config, policy, run / "eval", "expert")


def _finish(config: RunConfig, policy: LoraPolicy, run: Path, log: RunLog, console: Console) -> None:
    with log.timed("evaluation"):
        evaluate_policy(config, policy, run / "eval", "after", console)
    write_report(config, run, console)


def make_trainer(
    config: RunConfig, policy: LoraPolicy, algorithm: Algorithm[Any], run: Path, processes: Processes = ALONE
) -> Trainer:
    """The trainer of a run, at step 0, with environments, scorer and optimizer of its own.

    Args:
        config: The run.
        policy: What is trained; ``algorithm.setup`` has seen it.
        algorithm: How it learns.
        run: Run folder.
        processes: Those that train together.

    Returns:
        The trainer; whoever uses it closes its ``envs``.
    """
    settings = config.train
    make = env_factory(config, config.goal_range, "train", CodecTokenCounter(policy.codec))
    envs = EnvPool(make, threads=env_threads(config))
    steps = config.steps * settings.epochs * settings.minibatches
    updater = Updater(
        policy,
        algorithm,
        make_optimizer(policy, algorithm, settings.optim, steps),
        epochs=settings.epochs,
        minibatches=settings.minibatches,
        micro_batch_tokens=settings.micro_batch_tokens,
        gradient_checkpointing=settings.gradient_checkpointing,
        processes=processes,
        watch_kl=settings.stop_kl > 0,
    )
    scorer = (NotingScorer if settings.save_episodes else AnswerScorer)(
        policy,
        envs.memory_env.instructions,
        scope=settings.score_scope,
        max_tokens=settings.micro_batch_tokens,
        reference=FrozenReference(policy, envs, config.seed, processes),
        processes=processes,
    )
    keeper = None
    if isinstance(scorer, NotingScorer):
        keeper = EpisodeKeeper(run / "training", settings.save_episodes, settings.save_every, config.steps, scorer)
    return Trainer(
        policy,
        algorithm,
        envs,
        scorer,
        updater,
        groups_per_step=settings.groups_per_step,
        group_size=settings.group_size,
        seed=config.seed,
        processes=processes,
        failures=run / "failures",
        stop_kl=settings.stop_kl,
        keeper=keeper,
    )


def _train(config: RunConfig, trainer: Trainer, run: Path, log: RunLog, console: Console) -> None:
    processes = trainer.processes
    processes.check_equal(trainer.policy.model)
    with progress_bar(console) as bar, trainer.envs:
        task = bar.add_task(config.algo, total=config.steps, completed=trainer.steps_done, note="")
        while trainer.steps_done < config.steps and not trainer.stopped:
            step = trainer.steps_done
            metrics = trainer.step().metrics
            if step == 0:
                console.print(self_check(metrics))
            last = trainer.steps_done == config.steps or bool(trainer.stopped)
            with processes.together():
                log.write("train", step, metrics)
                if processes.is_first and (last or trainer.steps_done % config.train.save_every == 0):
                    _save(config, trainer, run)
            bar.update(task, completed=step + 1, note=step_note(metrics))
    if trainer.stopped:
        console.print(f"stopped after step {trainer.steps_done} of {config.steps}: {trainer.stopped}")


def _save(config: RunConfig, trainer: Trainer, run: Path) -> None:
    save_checkpoint(
        run / "checkpoints",
        trainer.steps_done,
        trainer.policy,
        trainer.state_dict(),
        trainer.algorithm.name,
        keep=config.train.keep_checkpoints,
    )


def _set_threads(config: RunConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
