"""``mempo train``: a job from a preset, changed by flags, with the flags of the chosen algorithm appended.

Invariant: the parser is built from the config dataclasses, so that help and configuration cannot differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from mempo_env.cli.flags import peek
from mempo_env.errors import UserError


def run(argv: Sequence[str]) -> None:
    """Runs or resumes a job.

    Args:
        argv: Flags.

    Raises:
        UserError: A flag or what it names cannot be used.
    """
    require_train_extra()
    from rich.console import Console

    if (resume := peek(argv, "--resume")) is not None:
        _resume(argv, resume, Console())
        return
    config, algorithm_config = parse(argv)
    from mempo_env.algos.job import start_run

    start_run(config, algorithm_config, Console())


def parse(argv: Sequence[str]) -> tuple[Any, Any]:
    """Parses the flags of a new run.

    Args:
        argv: Flags.

    Returns:
        ``RunConfig`` and the algorithm's config.

    Raises:
        UserError: Preset or algorithm are unknown.
        SystemExit: Help was asked for, or a flag is wrong (code 2).
    """
    import tyro

    from mempo_env.algos import ALGORITHMS
    from mempo_env.algos.config import RunConfig
    from mempo_env.algos.presets import get_preset

    preset = get_preset(peek(argv, "--preset") or "tiny")
    preset = dataclasses.replace(preset, algo=peek(argv, "--algo") or preset.algo)
    algorithm = ALGORITHMS.get(preset.algo)
    group = algorithm.name
    shape = dataclasses.make_dataclass(
        "TrainFlags",
        [
            ("run", Annotated[RunConfig, tyro.conf.arg(name="")]),
            ("algorithm", Annotated[algorithm.config_class, tyro.conf.arg(name=group)]),  # type: ignore[name-defined]
        ],
    )
    flags = tyro.cli(
        shape,
        args=list(argv),
        default=shape(run=preset, algorithm=algorithm.config_class()),
        prog="mempo train",
        description=f"Train a policy. Defaults are those of --preset {preset.preset}; the flags --{group}.* belong to "
        f"--algo {preset.algo}. To go on with a run: mempo train --resume RUN [--steps N].",
    )
    return flags.run, flags.algorithm


def require_train_extra() -> None:
    """Checks that torch, transformers and peft are installed.

    Raises:
        UserError: One is missing.
    """
    import importlib.util

    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'mempo-env[train]'")


def _resume(argv: Sequence[str], run: str, console: Any) -> None:
    known = {"--resume", "--steps", "--algo"}
    given = {argument.partition("=")[0] for argument in argv if argument.startswith("--")}
    if given - known:
        raise UserError(
            f"--resume goes on with the run's own configuration; only --steps and --algo go with it, not "
            f"{', '.join(sorted(given - known))}"
        )
    steps = peek(argv, "--steps")
    if steps is not None and not steps.isdigit():
        raise UserError(f"--steps {steps}: give a whole number")
    from mempo_env.algos.job import resume_run

    resume_run(Path(run), console, steps=None if steps is None else int(steps), algo=peek(argv, "--algo"))
