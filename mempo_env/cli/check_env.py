"""``mempo check-env``: the conformance kit on an environment, and what of it was checked.

Invariants:
    * needs no torch;
    * a broken promise is one line and exit code 2, as every other error in the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from mempo_env.cli.flags import parse_flags
from mempo_env.errors import UserError


@dataclass(frozen=True)
class CheckEnvFlags:
    """Flags of ``mempo check-env``.

    Attributes:
        env: Environment id; one of your own is named ``package.module:Id-v0``.
        env_options: Arguments of the environment, as ``name=value``; the value is JSON or text.
        seed: Seed of the episodes played.
        episodes: Tasks that the expert plays.
        success: Whether the expert must solve every task.
    """

    env: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]
    env_options: tuple[str, ...] = ()
    seed: int = 0
    episodes: int = 8
    success: bool = True

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("episodes", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")


def run(argv: Sequence[str]) -> None:
    """Checks and prints a line per promise.

    Args:
        argv: Flags.

    Raises:
        UserError: The environment cannot be made, or breaks a promise.
    """
    flags = parse_flags(
        CheckEnvFlags,
        argv,
        command="mempo check-env",
        description="Check an environment, yours or ours, and its scripted expert; the first broken promise ends it.",
    )
    from rich.console import Console

    check(flags, Console())


def check(flags: CheckEnvFlags, console: Any) -> None:
    """Checks an environment.

    Args:
        flags: Which.
        console: A rich console.

    Raises:
        UserError: See ``run``.
    """
    from mempo_env.agents.testing import check_expert
    from mempo_env.env import MemoryEnv
    from mempo_env.envs.making import make_env, parse_options
    from mempo_env.testing import check_memory_env

    env: Any = make_env(flags.env, **parse_options(flags.env_options)).unwrapped
    if not isinstance(env, MemoryEnv):
        raise UserError(f"{flags.env} is no mempo_env.MemoryEnv, but {type(env).__name__}; subclass MemoryEnv")

    def say(mark: str, text: str) -> None:
        console.print(f"{mark:8} {text}", markup=False, highlight=False)

    try:
        for done in check_memory_env(env, flags.seed):
            say("skipped" if done.skipped else "ok", done.promise + (f": {done.skipped}" if done.skipped else ""))
        if env.expert:
            for promise in check_expert(env, flags.seed, flags.episodes, success=flags.success):
                say("ok", promise)
        else:
            say("skipped", "expert: the environment names none, and so there is no warm start")
    except AssertionError as problem:
        raise UserError(f"{flags.env} breaks a promise: {problem}") from problem
