"""Checkpoints: everything a run needs to go on as if it had never stopped.

One folder ``checkpoints/step-000040`` holds the adapters, the optimizer, every random state, the task cursor, the
algorithm's state and facts of the machine. It is written aside and renamed, so that a half-written one is never read.

Invariant: training 2N steps equals training N, resuming, and training N, bit for bit on the same machine and thread
count.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import platform
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError

from mempo_env.errors import UserError

from ..agents.policy import LoraPolicy

ADAPTERS, STATE, META = "adapters", "state.pt", "meta.json"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def write_failure(error: BaseException) -> str | None:
    """Why the disk did not take what was written, or None if the error is of another kind.

    The writers of torch and safetensors are native code: they tell by their message, not by an ``OSError``.
    """
    if isinstance(error, OSError):
        return (error.strerror or str(error)) if error.errno in _DISK_ERRORS else None
    if isinstance(error, SafetensorError) and "I/O error: " in str(error):
        return str(error).partition("I/O error: ")[2]
    if isinstance(error, RuntimeError) and ("inline_container" in str(error) or "PytorchStreamWriter" in str(error)):
        return "the file could not be written whole"
    return None


def machine_facts(policy: LoraPolicy) -> dict[str, str]:
    """What bit-for-bit equality depends on."""
    return {
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "processes": str(dist.get_world_size() if dist.is_initialized() else 1),
        "device": str(policy.device),
        "dtype": str(next(policy.model.parameters()).dtype),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def random_states() -> dict[str, Any]:
    """The states of all global generators (ours are keyed by seed and step; libraries may use these)."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - saved for libraries, never drawn from
    return {
        "python": random.getstate(),
        "numpy": (str(name), np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Sets what ``random_states`` gave; CUDA's only on a machine with as many devices."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def save_checkpoint(
    folder: Path, step: int, policy: LoraPolicy, state: dict[str, Any], algorithm: str, *, keep: int
) -> Path:
    """Writes ``folder/step-<step>`` and removes all but the newest ``keep``.

    Args:
        folder: The run's ``checkpoints`` folder.
        step: Steps taken.
        policy: Whose adapters are saved.
        state: What the trainer needs: tensors, numbers, strings, and lists, tuples and dicts of them.
        algorithm: Name of the algorithm.
        keep: How many to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: The disk is full or not writable; older checkpoints are as they were.
    """
    target = folder / f"step-{step:06d}"
    aside, replaced = folder / f".{target.name}.partial", folder / f".{target.name}.replaced"
    try:
        for leftover in folder.glob(".step-*"):  # of a process that was killed while it wrote
            shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir(parents=True)
        policy.save_adapters(aside / ADAPTERS)
        torch.save({**state, "random": random_states()}, aside / STATE)
        meta = {"step": step, "algorithm": algorithm, "machine": machine_facts(policy)}
        (aside / META).write_text(json.dumps(meta, indent=2), encoding="utf-8")
        _to_disk(aside)
        if target.exists():
            os.replace(target, replaced)
        os.replace(aside, target)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        if replaced.exists() and not target.exists():
            os.replace(replaced, target)
        if (reason := write_failure(error)) is None:
            raise
        raise UserError(f"the checkpoint {target} cannot be written: {reason}; free some space") from error
    shutil.rmtree(replaced, ignore_errors=True)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = {
        int(path.name.removeprefix("step-")): path
        for path in folder.glob("step-*")
        if path.name.removeprefix("step-").isdigit() and (path / META).exists()
    }
    return [found[step] for step in sorted(found)]


def latest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run folder, or None."""
    found = list_checkpoints(run / "checkpoints")
    return found[-1] if found else None


def check_checkpoint(path: Path, algorithm: str) -> dict[str, Any]:
    """Reads what a checkpoint says of itself; cheap, so that it can be checked before a model is loaded.

    Args:
        path: A checkpoint's folder.
        algorithm: Name of the algorithm that will go on.

    Returns:
        ``step``, ``algorithm`` and ``machine``.

    Raises:
        UserError: The checkpoint is of another algorithm or cannot be read.
    """
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        step, owner, machine = int(meta["step"]), str(meta["algorithm"]), dict(meta["machine"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path / META} is damaged ({error!r}); remove {path} to go on from the checkpoint before it"
        ) from error
    if owner != algorithm:
        raise UserError(
            f"{path} is a checkpoint of '{owner}', not of '{algorithm}'; "
            f"resume without --algo, or start a new run with --algo {algorithm}"
        )
    return {"step": step, "algorithm": owner, "machine": machine}


def load_checkpoint(path: Path, policy: LoraPolicy, algorithm: str) -> tuple[dict[str, Any], list[str]]:
    """Loads adapters and random states, and returns the trainer's state.

    Args:
        path: A checkpoint's folder.
        policy: Gets the adapters.
        algorithm: Name of the algorithm that will go on.

    Returns:
        The trainer's state, and warnings about facts of the machine that differ.

    Raises:
        UserError: The checkpoint is of another algorithm or cannot be read.
    """
    meta = check_checkpoint(path, algorithm)
    try:
        policy.load_adapters(path / ADAPTERS)
        state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} is damaged ({reason}); remove it to go on from the checkpoint before it") from error
    restore_random_states(state.pop("random"))
    now = machine_facts(policy)
    warnings = [
        f"{name} was {was} and is {now.get(name)}: the run goes on, but not bit for bit"
        for name, was in meta["machine"].items()
        if now.get(name) != was
    ]
    return state, warnings


def _to_disk(folder: Path) -> None:
    """Has the system write everything out before the folder gets its name, so that a power cut cannot empty a file."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
