"""``mempo train``: a job from a preset, changed by flags, with the flags of the chosen algorithm appended.

Invariants:
    * the parser is built from the config dataclasses, so that help and configuration cannot differ;
    * help, and what is wrong with a flag, come without importing torch.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mempo_env.cli.flags import parse_flags, peek
from mempo_env.errors import UserError


@dataclass(frozen=True)
class ResumeFlags:
    """Flags of ``mempo train --resume RUN``; all else is the run's own.

    Attributes:
        resume: Run folder.
        steps: Steps in all, those that are done included; by default as the run was configured.
        algo: The run's algorithm, to be sure; another one is refused.
    """

    resume: str
    steps: int | None = None
    algo: str | None = None


def run(argv: Sequence[str]) -> None:
    """Runs or resumes a job.

    Args:
        argv: Flags.

    Raises:
        UserError: A flag, or what it names, cannot be used.
    """
    wants_help = "-h" in argv or "--help" in argv
    if peek(argv, "--resume") is not None and not wants_help:
        flags = _parse_resume(argv)
        require_train_extra()
        from mempo_env.algos.job import resume_run
        from mempo_env.algos.processes import connect

        with connect() as processes:
            console = _console(processes.is_first)
            resume_run(Path(flags.resume), console, steps=flags.steps, algo=flags.algo, processes=processes)
        return
    config, algorithm_config = parse(argv)
    require_train_extra()
    from mempo_env.algos.job import start_run
    from mempo_env.algos.processes import connect

    with connect() as processes:
        start_run(config, algorithm_config, _console(processes.is_first), processes)


def _console(shows: bool) -> Any:
    from rich.console import Console

    return Console(quiet=not shows)


def parse(argv: Sequence[str]) -> tuple[Any, Any]:
    """Parses the flags of a new run.

    Args:
        argv: Flags.

    Returns:
        ``RunConfig`` and the algorithm's config.

    Raises:
        UserError: Preset or algorithm are unknown, or a flag is wrong.
        SystemExit: Help was asked for (code 0).
    """
    import tyro

    from mempo_env.algos import algorithm_settings
    from mempo_env.algos.config import RunConfig
    from mempo_env.algos.presets import get_preset

    preset = get_preset(peek(argv, "--preset") or "tiny")
    preset = dataclasses.replace(preset, algo=peek(argv, "--algo") or preset.algo)
    group, settings = algorithm_settings(preset.algo)
    shape = dataclasses.make_dataclass(
        "TrainFlags",
        [
            ("run", Annotated[RunConfig, tyro.conf.arg(name="")]),
            ("algorithm", Annotated[settings, tyro.conf.arg(name=group)]),
        ],
    )
    flags: Any = parse_flags(
        shape,
        argv,
        command="mempo train"
        + "".join(f" {flag} {name}" for flag in ("--preset", "--algo") if (name := peek(argv, flag))),
        description=f"Train a policy. The defaults are those of --preset {preset.preset}.\n\n"
        f"The flags --{group}.* belong to --algo {preset.algo}; another algorithm brings its own.\n\n"
        "To go on with a run: mempo train --resume RUN [--steps N]",
        default=shape(run=preset, algorithm=settings()),
    )
    if flags.run.dataset == "closed-world" and any(flag.partition("=")[0] == "--data" for flag in argv):
        raise UserError("the closed-world dataset is generated and takes no --data; drop it, or give --dataset qa")
    _check_warm_start(flags.run, preset, argv)
    return flags.run, flags.algorithm


def _check_warm_start(run: Any, preset: Any, argv: Sequence[str]) -> None:
    """Refuses to imitate with all weights of a model of the user's as hard as the model that is built in place needs.

    Here, not in ``RunConfig``: the flags say whether the learning rate was chosen, and code that trains a saved tiny
    model may well imitate as the preset does.

    Args:
        run: What the flags made of the preset.
        preset: The preset.
        argv: The flags.

    Raises:
        UserError: The learning rate of the warm start is still that of a preset for the model built in place.
    """
    warm = run.warm_start
    steps = warm.perfect_steps + warm.demonstrator_steps
    chosen = any(flag.partition("=")[0].replace("_", "-") == "--warm-start.optim.lr" for flag in argv)
    if preset.model != "tiny" or run.model == "tiny" or warm.target != "all" or not steps or chosen:
        return
    raise UserError(
        f"--preset {preset.preset} would imitate with all weights of {run.model} for {steps} steps at a learning rate "
        f"of {warm.optim.lr:g}, which is set for the model that it builds, not for a trained one; choose --preset "
        "smollm2 or --preset qwen2.5-7b, skip the warm start with --warm-start.target none, or give it settings: "
        "--warm-start.optim.lr, and for how long --warm-start.perfect-steps and --warm-start.demonstrator-steps"
    )


def require_train_extra() -> None:
    """Checks that torch, transformers and peft are installed, and silences what their users cannot mend.

    Raises:
        UserError: One is missing.
    """
    import warnings

    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'mempo-env[train]'")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # peft asks for it


def _parse_resume(argv: Sequence[str]) -> ResumeFlags:
    given = {argument.partition("=")[0] for argument in argv if argument.startswith("--")}
    if other := sorted(given - {"--resume", "--steps", "--algo"}):
        raise UserError(
            f"--resume goes on with the run's own configuration; only --steps and --algo go with it, not "
            f"{', '.join(other)}"
        )
    flags = parse_flags(
        ResumeFlags, argv, command="mempo train", description="Go on with a run from its newest checkpoint."
    )
    if flags.steps is not None and flags.steps < 0:
        raise UserError(f"steps={flags.steps} must be at least 0")
    return flags
