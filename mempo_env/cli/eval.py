"""``mempo eval RUN``: measures a trained run, or the scripted expert, at several numbers of goals.

Invariants:
    * a run is evaluated in the environment it was trained in; only goals, split, budget and data can be changed;
    * everything that can be wrong is checked before the model is loaded, and what fails later leaves no folder.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mempo_env.cli.flags import parse_flags
from mempo_env.cli.train import require_train_extra
from mempo_env.errors import UserError


@dataclass(frozen=True)
class EvalFlags:
    """Flags of ``mempo eval``.

    Attributes:
        run: Run folder, or ``expert`` for the scripted expert.
        goals: Numbers of goals to test.
        episodes: Episodes per number of goals; by default as the run was configured.
        split: Split of the tasks, never the training one.
        budget: Named budget; by default the run's.
        data: Data folders; by default the run's.
        preset: For ``expert``: whose environment it plays in; by default ``tiny``.
        sample: Sample at temperature 1 instead of greedy decoding.
        device: Where the model runs; by default as the run was configured.
        out: Folder to write rows and episodes into; by default nothing is written.
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    goals: tuple[int, ...] = (2, 4, 6, 8, 10)
    episodes: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    split: Literal["dev", "test"] = "dev"
    budget: Annotated[str | None, tyro.conf.arg(metavar="STR")] = None
    data: tuple[str, ...] = ()
    preset: Annotated[str | None, tyro.conf.arg(metavar="STR")] = None
    sample: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, tyro.conf.arg(metavar="{auto,cpu,cuda}")] = None
    out: str = ""


def run(argv: Sequence[str]) -> None:
    """Evaluates and prints a table.

    Args:
        argv: Flags.

    Raises:
        UserError: The run cannot be read, or ``--out`` exists or cannot be written.
    """
    flags = parse_flags(
        EvalFlags,
        argv,
        command="mempo eval",
        description="Measure a trained run, or the scripted expert, at several numbers of goals.",
    )
    if flags.episodes is not None and flags.episodes < 1:
        raise UserError(f"episodes={flags.episodes} must be at least 1")
    if flags.out and Path(flags.out).exists():
        raise UserError(f"{flags.out} exists; choose another --out")
    require_train_extra()
    from rich.console import Console

    (_evaluate_expert if flags.run == "expert" else _evaluate_run)(flags, Console())


def _changed(config: Any, flags: EvalFlags) -> Any:
    """The configuration with the flags' changes; without any only the sampling is what evaluation asks for."""
    episodes = config.eval.episodes if flags.episodes is None else flags.episodes
    if not episodes:
        raise UserError(f"{flags.run} was configured without an evaluation; give --episodes")
    evaluation = dataclasses.replace(
        config.eval, goals=flags.goals, episodes=episodes, split=flags.split, greedy=not flags.sample
    )
    return dataclasses.replace(
        config,
        eval=evaluation,
        budget=flags.budget or config.budget,
        data=flags.data or config.data,
        device=flags.device or config.device,
    )


def _evaluate_run(flags: EvalFlags, console: Any) -> None:
    from mempo_env.agents.evaluation import EvaluationReport
    from mempo_env.algos.config_io import read_config
    from mempo_env.algos.job import load_run_policy
    from mempo_env.algos.measure import evaluate_policy
    from mempo_env.algos.setup import check_environments, choose_device
    from mempo_env.algos.stored import load_evaluation

    folder = Path(flags.run)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give a run folder made by mempo train, or 'expert'")
    if flags.preset is not None:
        raise UserError("--preset goes with 'expert' only: a run is evaluated in the environment it was trained in")
    config = read_config(folder)[0]
    if flags.data and config.dataset == "closed-world":
        raise UserError("this run's dataset is closed-world, which is generated; drop --data")
    config = _changed(config, flags)
    choose_device(config.device)
    check_environments(config, training=False)
    policy = load_run_policy(folder, device=config.device)
    with _folder(flags.out) as out:
        evaluate_policy(config, policy, out, "evaluation", console)
        stored = load_evaluation(out / "evaluation.json")
    assert stored is not None  # there is at least one episode
    how = "sampled" if flags.sample else "greedy"
    console.print(EvaluationReport(stored.rows, 0).table(f"{folder} ({flags.split} tasks, {how})"))
    if math.isnan(stored.quality.mean):
        console.print("no memory was written")
    else:
        console.print(f"Q(m) {stored.quality.mean:.3f}, above 0.8: {stored.quality.above:.1%} of memories")
    _say_where(flags, console)


def _evaluate_expert(flags: EvalFlags, console: Any) -> None:
    from mempo_env.agents.episodes_io import save_episodes
    from mempo_env.agents.evaluation import evaluate
    from mempo_env.agents.rollout import EnvPool
    from mempo_env.agents.scripted_expert import make_expert
    from mempo_env.algos.presets import get_preset
    from mempo_env.algos.setup import check_environments, env_factory

    if flags.sample or flags.device:
        raise UserError("--sample and --device go with a run: the scripted expert has no model")
    config = get_preset(flags.preset or "tiny")
    if flags.data and config.dataset == "closed-world":
        raise UserError("this preset's dataset is closed-world, which is generated; drop --data, or choose --preset")
    config = _changed(config, flags)
    check_environments(config, training=False)
    with EnvPool(env_factory(config, config.eval.goals[0], config.eval.split)) as envs:
        expert = make_expert(envs.memory_env)
    with _folder(flags.out) as out:
        report = evaluate(
            expert,
            lambda goals: env_factory(config, goals, config.eval.split),
            config.eval.goals,
            config.eval.episodes,
            0,
            batch=config.eval.batch,
        )
        (out / "evaluation.json").write_text(report.to_json(), encoding="utf-8")
        save_episodes(out / "evaluation.episodes.jsonl.gz", report.episodes)
    console.print(report.table(f"scripted expert ({flags.split} tasks)"))
    _say_where(flags, console)


def _say_where(flags: EvalFlags, console: Any) -> None:
    if flags.out:
        console.print(f"rows      {Path(flags.out) / 'evaluation.json'}", soft_wrap=True)
        console.print(f"episodes  {Path(flags.out) / 'evaluation.episodes.jsonl.gz'}", soft_wrap=True)


@contextmanager
def _folder(out: str) -> Iterator[Path]:
    """The folder to write into: a new one, gone again if anything fails, or a temporary one."""
    if not out:
        with tempfile.TemporaryDirectory(prefix="mempo-eval-") as aside:
            yield Path(aside)
        return
    folder = Path(out)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; choose another --out") from error
    try:
        yield folder
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"{folder} cannot be written: {error.strerror or error}; choose another --out") from error
        raise
