"""Checkpoints: everything a run needs to go on as if it had never stopped.

One folder ``checkpoints/step-000040`` holds the adapters, the optimizer, every random state, the task cursor, the
algorithm's state and facts of the machine. It is written aside and renamed, so that a half-written one is never read.

Invariant: training 2N steps equals training N, resuming, and training N, bit for bit on the same machine and thread
count.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mempo_env.errors import UserError

from ..agents.policy import LoraPolicy

STATE, META = "state.pt", "meta.json"


def machine_facts(policy: LoraPolicy) -> dict[str, str]:
    """What bit-for-bit equality depends on."""
    return {
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "device": str(policy.device),
        "dtype": str(next(policy.model.parameters()).dtype),
        "processor": platform.machine(),
    }


def random_states() -> dict[str, Any]:
    """The states of all global generators (ours are keyed by seed and step; libraries may use these)."""
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002 - saved for libraries, never drawn from
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Sets what ``random_states`` gave."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def save_checkpoint(
    folder: Path, step: int, policy: LoraPolicy, state: dict[str, Any], algorithm: str, *, keep: int
) -> Path:
    """Writes ``folder/step-<step>`` and removes all but the newest ``keep``.

    Args:
        folder: The run's ``checkpoints`` folder.
        step: Steps taken.
        policy: Whose adapters are saved.
        state: What the trainer needs (tensors and plain values).
        algorithm: Name of the algorithm.
        keep: How many to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: The disk is full or not writable; older checkpoints are as they were.
    """
    target = folder / f"step-{step:06d}"
    aside = folder / f".step-{step:06d}.partial"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        policy.save_adapters(aside / "adapters")
        torch.save({**state, "random": random_states()}, aside / STATE)
        meta = {"step": step, "algorithm": algorithm, "machine": machine_facts(policy)}
        (aside / META).write_text(json.dumps(meta, indent=2), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f"cannot write checkpoint {target}: {error}; free space or choose another --out") from error
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / META).exists()) if folder.exists() else []


def latest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run folder, or None."""
    found = list_checkpoints(run / "checkpoints")
    return found[-1] if found else None


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
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no readable checkpoint: {error}") from error
    if meta["algorithm"] != algorithm:
        raise UserError(
            f"{path} is a checkpoint of '{meta['algorithm']}', not of '{algorithm}'; "
            f"resume with --algo {meta['algorithm']} or start a new run"
        )
    policy.load_adapters(path / "adapters")
    state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=False)
    restore_random_states(state.pop("random"))
    now = machine_facts(policy)
    warnings = [
        f"{name} was {was} and is {now.get(name)}: the run goes on, but not bit for bit"
        for name, was in meta["machine"].items()
        if now.get(name) != was
    ]
    return state, warnings
