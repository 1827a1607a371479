"""``mempo eval RUN``: measures a trained run, or the scripted expert, at several numbers of goals.

Invariant: a run is evaluated in the environment it was trained in; only goals, split and budget can be changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from mempo_env.cli.train import require_train_extra
from mempo_env.errors import UserError


@dataclass(frozen=True)
class EvalFlags:
    """Flags of ``mempo eval``.

    Attributes:
        run: Run folder, or ``expert`` for the scripted expert (in the environment of --preset).
        goals: Numbers of goals to test.
        episodes: Episodes per number of goals; None: as the run's configuration says.
        split: Split of the tasks.
        budget: Named budget; None: the run's.
        sample: Sample at temperature 1 instead of greedy decoding.
        preset: Environment for ``expert``.
        data: Data folders; empty: the run's.
        out: Folder for rows and episodes; empty: nothing is written.
    """

    run: str
    goals: tuple[int, ...] = (2, 4, 6, 8, 10)
    episodes: int | None = None
    split: Literal["dev", "test"] = "dev"
    budget: str | None = None
    sample: bool = False
    preset: str = "tiny"
    data: tuple[str, ...] = ()
    out: str = ""


def run(argv: Sequence[str]) -> None:
    """Evaluates and prints a table.

    Args:
        argv: Flags.

    Raises:
        UserError: The run cannot be read, or ``--out`` exists.
    """
    require_train_extra()
    import tyro
    from rich.console import Console

    flags = tyro.cli(
        Annotated[EvalFlags, tyro.conf.arg(name="")],
        args=_positional_run(argv),
        prog="mempo eval",
        description="Measure a trained run, or the scripted expert, at several numbers of goals.",
    )
    console = Console()
    if flags.out and Path(flags.out).exists():
        raise UserError(f"{flags.out} exists; choose another --out")
    if flags.run == "expert":
        _evaluate_expert(flags, console)
    else:
        _evaluate_run(flags, console)


def _positional_run(argv: Sequence[str]) -> list[str]:
    """``mempo eval RUN ...`` is ``mempo eval --run RUN ...``."""
    arguments = list(argv)
    return ["--run", *arguments] if arguments and not arguments[0].startswith("-") else arguments


def _changed(config: Any, flags: EvalFlags) -> Any:
    evaluation = dataclasses.replace(
        config.eval,
        goals=flags.goals,
        episodes=flags.episodes or config.eval.episodes,
        split=flags.split,
        greedy=not flags.sample,
    )
    return dataclasses.replace(
        config, eval=evaluation, budget=flags.budget or config.budget, data=flags.data or config.data
    )


def _evaluate_run(flags: EvalFlags, console: Any) -> None:
    import tempfile

    from mempo_env.agents.evaluation import EvaluationReport
    from mempo_env.algos.job import evaluate_policy, load_run_policy
    from mempo_env.algos.report import load_evaluation

    run = Path(flags.run)
    if not run.is_dir():
        raise UserError(f"{run} is no folder; give a run folder made by mempo train, or 'expert'")
    config, policy = load_run_policy(run)
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(flags.out or aside)
        evaluate_policy(_changed(config, flags), policy, folder, "evaluation", console)
        stored = load_evaluation(folder / "evaluation.json")
    if stored is None:
        raise UserError("--episodes 0 leaves nothing to evaluate")
    console.print(EvaluationReport(stored.rows, 0).table(f"{run} ({flags.split})"))
    console.print(f"Q(m) {stored.quality.mean:.3f}, above 0.8: {stored.quality.above:.1%} of memories")
    if flags.out:
        console.print(f"rows and episodes: {flags.out}")


def _evaluate_expert(flags: EvalFlags, console: Any) -> None:
    from mempo_env.agents.episodes_io import save_episodes
    from mempo_env.agents.evaluation import evaluate
    from mempo_env.agents.expert import ExpertAgent
    from mempo_env.algos.presets import get_preset
    from mempo_env.algos.setup import env_factory

    config = _changed(get_preset(flags.preset), flags)
    report = evaluate(
        ExpertAgent(config.budget),
        lambda goals: env_factory(config, goals, config.eval.split),
        config.eval.goals,
        config.eval.episodes,
        0,
        batch=config.eval.batch,
    )
    console.print(report.table(f"scripted expert ({flags.split})"))
    if flags.out:
        Path(flags.out).mkdir(parents=True)
        (Path(flags.out) / "evaluation.json").write_text(report.to_json(), encoding="utf-8")
        save_episodes(Path(flags.out) / "evaluation.episodes.jsonl.gz", report.episodes)
        console.print(f"rows and episodes: {flags.out}")
