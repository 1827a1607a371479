"""Where metrics go: JSON lines, TensorBoard and the terminal.

Invariant: ``metrics.jsonl`` has one line per step, in order, also after a resume: lines at or beyond the step that is
resumed from are dropped first, and so is a last line that was torn.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mempo_env.errors import UserError

from ..envs.making import env_arguments
from .config import RunConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TRAIN, TIME = "train", "time"
"""Phases of ``metrics.jsonl``: steps of reinforcement learning, and seconds that whole phases took."""


class RunLog:
    """Writes metrics of a phase (``imitation``, ``train``) step by step.

    Args:
        folder: The run folder.
        resume_from: Steps of ``train`` already done; later lines are dropped.
    """

    def __init__(self, folder: Path, resume_from: int = 0) -> None:
        self.folder = folder
        self.resume_from = resume_from
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            kept = [line for line in _lines(self.path) if line["phase"] != TRAIN or line["step"] < resume_from]
            aside = self.path.with_suffix(".partial")
            aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(aside, self.path)
        self._file = self.path.open("a", encoding="utf-8")
        self._boards: dict[str, SummaryWriter] = {}

    def write(self, phase: str, step: int, metrics: dict[str, float]) -> None:
        """Writes one step; a number that is not finite becomes null."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"phase": phase, "step": step, **finite}, allow_nan=False) + "\n")
        self._file.flush()
        board = self._board(phase)
        for name, value in metrics.items():
            board.add_scalar(name, value, step)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Writes how many seconds what happens inside took, as ``<phase>_s``."""
        started = time.perf_counter()
        yield
        self.write(TIME, self.resume_from, {f"{phase}_s": time.perf_counter() - started})

    def _board(self, phase: str) -> SummaryWriter:
        """A folder per phase: what is purged on a resume is purged for all curves of a folder."""
        from torch.utils.tensorboard import SummaryWriter

        if phase not in self._boards:
            folder = self.folder / "tensorboard" / phase
            again = phase == TRAIN and folder.exists()
            self._boards[phase] = SummaryWriter(str(folder), purge_step=self.resume_from if again else None)
        return self._boards[phase]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        for board in self._boards.values():
            board.close()


class _NoLog(RunLog):
    """The log of a process that is not the first: it writes nothing."""

    def __init__(self) -> None:
        self.resume_from = 0

    def write(self, phase: str, step: int, metrics: dict[str, float]) -> None:
        """Writes nothing."""


NO_LOG: RunLog = _NoLog()


def read_metrics(folder: Path, phase: str) -> list[dict[str, Any]]:
    """The lines of one phase of a run folder, in order.

    Raises:
        UserError: A line is broken; names file and line.
    """
    path = folder / "metrics.jsonl"
    return [line for line in _lines(path) if line["phase"] == phase] if path.exists() else []


def progress_bar(console: Console) -> Progress:
    """A live bar with a line of metrics."""
    return Progress(
        TextColumn("[bold]{task.description:10}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def step_note(metrics: dict[str, float]) -> str:
    """What the bar says of a step; a quantity that the step did not have, such as Q(m) under GRPO, is left out.

    >>> step_note({"rollout/return": 0.5, "rollout/f1": 0.25})
    'return 0.500  F1 0.250'
    """
    shown = {"return": "rollout/return", "F1": "rollout/f1", "Q": "memory/quality"}
    return "  ".join(f"{word} {metrics[name]:.3f}" for word, name in shown.items() if name in metrics)


def plain_words(config: RunConfig, processes: int = 1) -> str:
    """What a run will do, in plain words."""
    train, warm = config.train, config.warm_start
    known = env_arguments(config.env)
    asked = config.dataset if known is None or "dataset" in known else " ".join(config.env_options) or "as it comes"
    taught = (
        f"warm start: {warm.perfect_steps} steps on the expert, then {warm.demonstrator_steps} on one that forgets "
        f"{warm.forget:.0%} of its notes at every rewrite ({warm.target} weights)"
    )
    lines = [
        f"{config.algo} on {config.env} ({asked}, budget {config.budget}, outcome {config.env_args.outcome}), "
        f"model {config.model}, seed {config.seed}; run folder {config.out}",
        "no warm start" if warm.target == "none" else taught,
        f"then {config.steps} steps of {train.groups_per_step} tasks x {train.group_size} rollouts = "
        f"{train.groups_per_step * train.group_size} episodes of {'-'.join(map(str, config.goals))} goals each"
        + (f", shared by {processes} processes" if processes > 1 else ""),
    ]
    return "\n".join(lines)


def self_check(metrics: dict[str, float]) -> str:
    """The first log line of a run: what must hold at step 0, and what it was."""
    if "train/ratio" not in metrics:
        return "self-check: the first batch had no group with variance, so nothing was learned from it"
    gap = ("train/sampler_mismatch", "train/sampler_mismatch_max")
    # Later optimizer steps of a batch see a policy that has moved on from pi_old.
    ratio, kl = ("1", "0") if metrics.get("train/optimizer_steps", 1) <= 1 else ("near 1", "near 0")
    parts = [
        f"ratio {metrics['train/ratio']:.6f} ({ratio})",
        f"KL {metrics['train/kl']:.1e} ({kl})" if "train/kl" in metrics else "KL not computed (beta 0)",
        "sampler/trainer gap "
        + ("unknown" if gap[1] not in metrics else f"mean {metrics[gap[0]]:.1e} max {metrics[gap[1]]:.1e}"),
        f"sampler moved by {metrics.get('train/sampler_moved', float('nan')):.1e} after one update",
    ]
    if metrics.get("train/grad_norm") == 0:  # a group of one, or all of a group alike
        parts.append("the gradient was 0: nothing was learned from the first batch")
    return "self-check: " + ", ".join(parts)


def _lines(path: Path) -> list[dict[str, Any]]:
    """All lines; the last one may be torn, by a process that was killed, and is left out then."""
    texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            lines.append({"phase": line["phase"], "step": line["step"], **line})
        except (ValueError, KeyError, TypeError) as error:
            if number == len(texts) and not text.endswith("\n"):
                break
            raise UserError(f"{path}:{number}: no line of metrics ({type(error).__name__}: {error})") from error
    return lines
