"""Runs one cell: warm start or reinforcement learning, evaluation, probe; and writes what it found as one JSON file.

Files of a cell in the study's folder: ``cells/NAME.json`` (all numbers), ``texts/NAME.json.gz`` (some episodes to
read), ``runs/NAME`` (the run folder, from whose checkpoint an interrupted cell goes on).

Invariants:
    * a cell's JSON appears whole or not at all, and last;
    * a cell is run by one process at a time, and a warm start that is missing is made by whoever needs it first;
    * training that diverged is a result: the cell says so and evaluates what the last checkpoint holds.
"""

from __future__ import annotations

import dataclasses
import fcntl
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mempo_env.agents.codec import CodecTokenCounter
from mempo_env.agents.episodes_io import load_episodes
from mempo_env.agents.policy import LoraPolicy
from mempo_env.algos.base import get_algorithm
from mempo_env.algos.checkpoint import latest_checkpoint
from mempo_env.algos.config import RunConfig
from mempo_env.algos.config_io import read_config
from mempo_env.algos.job import load_run_policy, resume_run, start_run
from mempo_env.algos.logs import RunLog, read_metrics
from mempo_env.algos.measure import evaluate_expert, evaluate_policy
from mempo_env.algos.processes import ALONE
from mempo_env.algos.run_folder import new_folder
from mempo_env.algos.setup import build_policy
from mempo_env.algos.stored import load_evaluation
from mempo_env.algos.warm_phase import warmed_policy
from mempo_env.errors import UserError
from mempo_env.records import Episode
from mempo_env.versions import versions

from .analysis import columns, episode_text, rounded, template_share
from .cells import (
    STUDY,
    Cell,
    Scale,
    algorithm_config,
    eval_config,
    fingerprint,
    run_config,
)
from .compare import unequal_parts
from .estimates import over_tasks
from .measures import paired
from .probe import probe
from .store import earlier_aside, found_weights, read_cell, remade_note, write_json

KEPT_METRICS = (
    *("rollout/return", "rollout/f1", "rollout/em", "rollout/success", "rollout/turns", "rollout/tool_calls"),
    *("rollout/episodes", "rollout/errors", "rollout/output_tokens", "rollout/prompt_tokens_per_turn"),
    *("rollout/format_errors", "rollout/cut_outputs", "rollout/truncated", "rollout/tokens/memory"),
    *("memory/quality", "memory/quality_above_0.8", "memory/advantage_abs", "memory/advantage_std", "memory/distinct"),
    *("memory/groups_guarded", "memory/credited", "memory/baseline", "memory/written", "memory/truncated"),
    *("train/entropy", "train/kl", "train/grad_norm", "train/groups_without_variance", "train/advantage_abs/memory"),
    *("train/advantage_abs/answer", "train/advantage_abs/tool_call", "train/sampler_mismatch", "train/rows"),
    *("time/step_s", "time/cpu_s", "time/sampling_s", "time/scoring_s", "time/update_s"),
)
"""What is stored of each update."""


def run_cell(
    cell: Cell,
    out: Path,
    console: Console,
    scale: Scale = STUDY,
    threads: int = 1,
    *,
    stored: Path | None = None,
    again: bool = False,
    anew: bool = False,
) -> dict[str, Any]:
    """Runs a cell, unless it is there, and before it the warm start that it needs.

    Args:
        cell: The cell; a ``tuned`` one with its choice.
        out: Folder of the study.
        console: Where progress is shown.
        scale: How much.
        threads: CPU threads.
        stored: Folder of kept results: a cell that is there counts as done.
        again: The cell itself is run even if it is kept; its warm start is not, beyond the weights.
        anew: The cell itself is run from its beginning even if it is in ``out``, too; nothing that is there is used,
            but it is back if the new run fails.

    Returns:
        What its JSON file holds.

    Raises:
        UserError: The arm's class or its settings cannot be used; nothing was run.
    """
    if cell.kind != "warm":
        get_algorithm(run_config(cell, out, scale, threads).algo)(algorithm_config(cell))  # not after the warm start
        run_cell(cell.warm, out, console, scale, threads, stored=stored)
    with _locked(out / "locks" / cell.name), earlier_aside(cell, out) if anew else nullcontext():
        if (found := read_cell(out, cell, scale, None if again else stored)) is not None:
            return found
        begun = {} if cell.kind == "warm" else {"warm_start": _weights(cell.warm, out, console, scale, threads, stored)}
        torch.set_num_threads(threads)
        started, cpu = time.perf_counter(), time.process_time()
        work = _warm if cell.kind == "warm" else _train
        result, episodes = work(cell, out, console, scale, threads)
        result = {
            "cell": dataclasses.asdict(cell) | {"name": cell.name},
            "fingerprint": fingerprint(cell, scale),
            **begun,
            **result,
            # Of this process: a cell that was interrupted shows the CPU seconds of its last part only.
            "seconds": {"wall": rounded(time.perf_counter() - started), "cpu": rounded(time.process_time() - cpu)},
            "versions": versions() | {"processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"},
        }
        write_json(out / "texts" / f"{cell.name}.json.gz", _texts(episodes, scale.texts))
        write_json(out / "cells" / f"{cell.name}.json", result)
        shutil.rmtree(out / "earlier" / cell.name, ignore_errors=True)
        return result


def _weights(
    warm: Cell, out: Path, console: Console, scale: Scale, threads: int, stored: Path | None
) -> dict[str, Any]:
    """Sees to it that a warm start's weights are there: where only its result is kept, they are made again.

    Returns:
        ``remade``: whether they were; then also ``equal``: whether their evaluation is the kept one to the last digit,
        and ``f1``: mean difference from it in points, and its interval over the same tasks.
    """
    with _locked(out / "locks" / warm.name):
        if (known := found_weights(out, warm, scale)) is not None:
            return known
        kept = read_cell(out, warm, scale, stored)
        assert kept is not None
        console.print(f"    {warm.name} is kept without weights: they are made again", markup=False)
        torch.set_num_threads(threads)
        run, policy, _ = _imitated(run_config(warm, out, scale, threads), warm, console, ceiling=False)
        new, old = _evaluation(run, "before", _episodes(run, "before"), policy), kept["evaluations"]["before"]
        moved = over_tasks([value for goals in new for value in paired(new, old, int(goals))])
        found = {
            "remade": True,
            "equal": not unequal_parts({"evaluations": {"before": old}}, {"evaluations": {"before": new}}),
            "f1": [rounded(value) for value in (moved.mean, moved.low, moved.high)],
        }
        if not found["equal"]:
            console.print(f"    it is not equal to the kept one: F1 {moved.text(2, sign=True)} points", markup=False)
        write_json(remade_note(out, warm), {"fingerprint": fingerprint(warm, scale), "warm_start": found})
        return found


_Found = tuple[dict[str, Any], dict[str, list[Episode]]]
"""What the JSON file holds, and the episodes of each evaluation."""


def _warm(cell: Cell, out: Path, console: Console, scale: Scale, threads: int) -> _Found:
    """Imitation, its ceiling, the evaluation of both and of the expert; a probe in each regime."""
    config = run_config(cell, out, scale, threads)
    run, policy, imitation = _imitated(config, cell, console, ceiling=True)
    evaluate_expert(config, policy, run / "eval", "expert")
    # Where nobody forgets, what was imitated is the ceiling of imitation itself.
    names = ("before", "imitation", "expert") if scale.demonstrator_steps else ("before", "expert")
    episodes = {name: _episodes(run, name) for name in names}
    regimes = [regime.name for regime in scale.regimes.values() if regime.default and scale.probes]
    probes = {name: probe(_probe_config(cell, name, out, scale, threads), policy, run) for name in regimes}
    found = {
        "evaluations": {name: _evaluation(run, name, some, policy) for name, some in episodes.items()},
        "probes": probes,
        "imitation": _by_name(read_metrics(run, "imitation"), ("loss", "accuracy"), every=25),
        "cpu_s": {"imitation_with_ceiling": rounded(imitation)},
    }
    return found, episodes


def _imitated(config: RunConfig, cell: Cell, console: Console, *, ceiling: bool) -> tuple[Path, LoraPolicy, float]:
    """The warm start from its beginning, evaluated: its run folder, the policy, CPU seconds of imitation."""
    run = Path(config.out)
    shutil.rmtree(run, ignore_errors=True)  # imitation has no checkpoint to go on from
    policy = build_policy(config, adapter=False)
    with new_folder(run, config, algorithm_config(cell)), RunLog(run) as log:
        cpu = time.process_time()
        shown = dataclasses.replace(config, eval=dataclasses.replace(config.eval, ceilings=ceiling))
        policy = warmed_policy(shown, policy, run, log, console, ALONE)
        imitation = time.process_time() - cpu
        evaluate_policy(config, policy, run / "eval", "before", console)
    return run, policy, imitation


def _probe_config(cell: Cell, regime: str, out: Path, scale: Scale, threads: int) -> RunConfig:
    return run_config(Cell("train", cell.seed, regime, "grpo"), out, scale, threads)


def _train(cell: Cell, out: Path, console: Console, scale: Scale, threads: int) -> _Found:
    """Reinforcement learning from the seed's warm start, then the evaluation and a probe of what came out."""
    config, settings = run_config(cell, out, scale, threads), algorithm_config(cell)
    run, diverged = Path(config.out), ""
    try:
        if latest_checkpoint(run) is not None and read_config(run) == (config, settings):
            resume_run(run, console)
        else:
            shutil.rmtree(run, ignore_errors=True)
            start_run(config, settings, console)
    except UserError as error:
        if not isinstance(error.__cause__, FloatingPointError):
            raise
        diverged = str(error)
    policy = load_run_policy(run)
    cpu = time.process_time()
    evaluated = dataclasses.replace(config, eval=eval_config(cell, scale))
    evaluate_policy(evaluated, policy, run / "eval", "after", console)
    evaluation = time.process_time() - cpu
    episodes = _episodes(run, "after")
    steps = read_metrics(run, "train")
    found = {
        "evaluations": {"after": _evaluation(run, "after", episodes, policy)},
        "training": _by_name(steps, KEPT_METRICS),
        "diverged": diverged,
        "cpu_s": {
            "training": rounded(sum(step["time/cpu_s"] for step in steps)),
            "evaluation": rounded(evaluation),
        },
    }
    if cell.kind != "tune" and scale.probes:
        found["probes"] = {cell.regime: probe(config, policy, run)}
    return found, {"after": episodes}


def _evaluation(run: Path, name: str, episodes: list[Episode], policy: LoraPolicy) -> dict[str, Any]:
    """An evaluation by number of goals: columns over its tasks, and what full history would have cost."""
    stored = load_evaluation(run / "eval" / f"{name}.json")
    assert stored is not None
    counter, found = CodecTokenCounter(policy.codec), {}
    for goals in sorted({len(episode.task.goals) for episode in episodes}):
        some = [episode for episode in episodes if len(episode.task.goals) == goals]
        finals = [episode.turns[-1].memory for episode in some if episode.error is None]
        found[str(goals)] = {
            "episodes": columns(some, counter),
            "template_share": rounded(template_share(finals)) if finals else None,
            "history": dataclasses.asdict(stored.history[goals]) if goals in stored.history else None,
        }
    return found


def _episodes(run: Path, name: str) -> list[Episode]:
    return load_episodes(run / "eval" / f"{name}.episodes.jsonl.gz")


def _by_name(lines: list[dict[str, Any]], names: tuple[str, ...], every: int = 1) -> dict[str, list[Any]]:
    """Chosen metrics of each step as columns; None where a step lacks one, and no column that no step has."""
    chosen = lines[::every]
    table = {name: [_short(line.get(name)) for line in chosen] for name in ("step", *names)}
    return {name: column for name, column in table.items() if any(value is not None for value in column)}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _texts(episodes: dict[str, list[Episode]], most: int) -> dict[str, list[dict[str, Any]]]:
    """The first episodes of each number of goals, per evaluation."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, some in episodes.items():
        seen: dict[int, int] = {}
        for episode in some:
            goals = len(episode.task.goals)
            seen[goals] = seen.get(goals, 0) + 1
            if seen[goals] <= most:
                found.setdefault(name, []).append(episode_text(episode))
    return found


def is_running(cell: Cell, out: Path) -> bool:
    """Whether another process is at this cell."""
    try:
        with _locked(out / "locks" / cell.name, fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True


@contextmanager
def _locked(path: Path, flags: int = 0) -> Iterator[None]:
    """Keeps other processes out; the system lets go when this one ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | flags)
        yield
