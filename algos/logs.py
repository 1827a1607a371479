"""Where metrics go: JSON lines, TensorBoard and the terminal.

Invariant: ``metrics.jsonl`` has one line per step, in order, also after a resume: lines at or beyond the step that is resumed
from are dropped first.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RunLog:
    """Writes metrics of a phase (``imitation``, ``train``) step by step.

    Args:
        folder: The run folder.
        resume_from: Steps of ``train`` already done; later lines are dropped.
    """

    def __init__(self, folder: Path, resume_from: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _keep(json.loads(line), resume_from)]
            self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_from or None)  # type: ignore[no-untyped-call]

    def write(self, phase: str, step: int, metrics: dict[str, float]) -> None:
        """Writes one step."""
        self._file.write(json.dumps({"phase": phase, "step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name if phase == "train" else f"{phase}/{name}", value, step)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()  # type: ignore[no-untyped-call]


def read_metrics(folder: Path, phase: str) -> list[dict[str, Any]]:
    """The lines of one phase of a run folder, in order."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["phase"] == phase]


def progress_bar(console: Console) -> Progress:
    """A live bar with a line of metrics."""
    return Progress(
        TextColumn("[bold]{task.description:10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def _keep(line: dict[str, Any], resume_from: int) -> bool:
    return bool(line["phase"] != "train" or line["step"] < resume_from)
