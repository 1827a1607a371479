"""The run folder's beginning and its early end: where it may be made, and what a run that stops leaves behind.

Invariants:
    * a folder that exists is never written into;
    * a run that fails before its first checkpoint leaves no folder; one that has a checkpoint keeps it, and the message
      says how to go on.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mempo_env.errors import UserError

from .checkpoint import latest_checkpoint, write_failure
from .config import RunConfig
from .config_io import write_config

MIN_FREE_BYTES = 200_000_000


def check_new_folder(config: RunConfig) -> Path:
    """Checks that a new run can be written where it is asked for; writes nothing.

    Args:
        config: The run.

    Returns:
        The folder to be made.

    Raises:
        UserError: It exists, or the place has no space or cannot be written to.
    """
    name = f"{config.preset}-{config.algo.replace(':', '.')}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = Path(config.out).expanduser() if config.out else Path("runs") / name
    try:
        if run.exists():
            has_checkpoint = latest_checkpoint(run) is not None
            go_on = f", or go on with it: mempo train --resume {run}" if has_checkpoint else ""
            raise UserError(f"{run} exists; choose another --out{go_on}")
        parent = next(path for path in run.absolute().parents if path.exists())
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise UserError(f"{run} cannot be made: {error.strerror or error}; choose another --out") from error
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = "cannot be written to" if parent.is_dir() else "is a file"
        raise UserError(f"{run} cannot be made: {parent} {why}; choose another --out")
    if free < MIN_FREE_BYTES:
        raise UserError(
            f"no space for the run: {parent} has {free / 1e6:.0f} MB free, {MIN_FREE_BYTES / 1e6:.0f} MB are needed; "
            "free some space or choose another --out"
        )
    return run


@contextmanager
def new_folder(run: Path, config: RunConfig, algorithm_config: Any) -> Iterator[None]:
    """Makes the run folder, writes ``config.json``, and guards what follows (see ``guarded``).

    Raises:
        UserError: The folder cannot be made or written.
    """
    try:
        run.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{run} cannot be made: {error.strerror or error}; choose another --out") from error
    with guarded(run):
        write_config(run, config, algorithm_config)
        yield


@contextmanager
def guarded(run: Path) -> Iterator[None]:
    """Ends a run that stops early in an orderly way.

    Args:
        run: Its folder.

    Raises:
        UserError: Something in the input showed only now, training diverged, or the disk is full. Without a checkpoint
            the folder is gone.
        KeyboardInterrupt: The user stopped the run; the message says how to go on. Nothing is removed.
    """
    try:
        yield
    except KeyboardInterrupt:
        if latest_checkpoint(run) is None:
            raise KeyboardInterrupt(f"stopped before the first checkpoint: {run} cannot be resumed") from None
        raise KeyboardInterrupt(f"stopped; go on from {_last(run)}: mempo train --resume {run}") from None
    except (UserError, FloatingPointError, OSError, RuntimeError, SafetensorError) as error:
        full = write_failure(error)
        if full is None and not isinstance(error, UserError | FloatingPointError):
            raise
        message = f"{run} cannot be written: {full}; free some space" if full else str(error)
        if latest_checkpoint(run) is None:
            shutil.rmtree(run, ignore_errors=True)
            raise UserError(message) from error
        raise UserError(f"{message} (go on from {_last(run)}: mempo train --resume {run})") from error


def _last(run: Path) -> str:
    checkpoint = latest_checkpoint(run)
    return checkpoint.name if checkpoint else "the start"
