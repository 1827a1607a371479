"""The warm start as a phase of a run: its progress, its ceiling, its files, and the policy it leaves.

Invariant: among several processes the first imitates and writes; all go on with its weights.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from ..agents.models import add_lora
from ..agents.policy import LoraPolicy
from .config import RunConfig
from .imitation import ImitationStep
from .logs import RunLog, progress_bar
from .measure import evaluate_policy
from .processes import Processes
from .setup import make_policy, writes_base
from .warm_start import warm_start


def warmed_policy(
    config: RunConfig, policy: LoraPolicy, run: Path, log: RunLog, console: Console, processes: Processes
) -> LoraPolicy:
    """Runs the warm start and returns the policy that reinforcement learning goes on with.

    Args:
        config: The run.
        policy: What imitates: the plain model where all weights are the target, else with an adapter.
        run: The run folder; ``base/`` and the ceiling's evaluation are written there.
        log: Where steps are logged.
        console: Where progress is shown.
        processes: Those that train together; each calls this.

    Returns:
        A policy with an adapter. Its KL to the reference is 0.
    """
    processes.first(lambda: _imitate(config, policy, run, log, console))
    target = config.warm_start.target
    if target != "none":
        processes.send(policy.trainable_parameters())
    if target == "all":
        policy = make_policy(config, add_lora(policy.model, config.lora, seed=config.seed), policy.codec)
    elif target == "adapter":
        policy.add_frozen_copy()
    policy.weights_version = 0
    return policy


def _imitate(config: RunConfig, policy: LoraPolicy, run: Path, log: RunLog, console: Console) -> None:
    settings = config.warm_start
    total = settings.perfect_steps + settings.demonstrator_steps
    if settings.target != "none" and total:
        # What imitation could reach is another policy only where the demonstrator is not the perfect expert.
        ceiling = config.eval.ceilings and config.eval.episodes and settings.demonstrator_steps and settings.forget > 0
        policy.train_mode()
        with progress_bar(console) as bar, log.timed("imitation"):
            warm_start(
                config,
                policy,
                on_step=_progress(bar, log, "imitation", total),
                on_ceiling=partial(evaluate_policy, config, policy, run / "eval", "imitation", console, bar=bar)
                if ceiling
                else None,
                on_ceiling_step=_progress(bar, log, "ceiling", total),
            )
    if writes_base(config):
        policy.save_base(run / "base")


def _progress(bar: Progress, log: RunLog, phase: str, total: int) -> Callable[[int, ImitationStep], None]:
    """Logs the steps of a phase of imitation, and shows them from the first one on."""
    task = bar.add_task(phase, total=total, note="", visible=False)
    first = [0, 0.0]  # step and time

    def on_step(step: int, record: ImitationStep) -> None:
        log.write(phase, step, dataclasses.asdict(record))
        now = time.perf_counter()
        if not first[1]:
            first[:] = [step, now]
        rate = (step - first[0]) / max(now - first[1], 1e-9)
        note = f"loss {record.loss:.3f}  hits {record.accuracy:.3f}  {rate:.1f}/s"
        bar.update(task, completed=step + 1, note=note, visible=True)

    return on_step
