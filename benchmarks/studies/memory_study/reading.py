"""Is a memory better, or better read? Last memories of an arm and of its warm start, each read by both.

Q(m) beside an arm is by the weights that wrote the memory, so that it rises where the policy learns to read, too. With
one reader for both, what is left is the memories' own; with one set of memories for both readers, the reading.

Invariant: all four are of the same test tasks, in the order of the evaluation; nothing is played and nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mempo_env.agents.episodes_io import load_episodes
from mempo_env.agents.eval_rows import QUALITY
from mempo_env.agents.policy import LoraPolicy
from mempo_env.algos.checkpoint import latest_checkpoint
from mempo_env.algos.config import RunConfig
from mempo_env.algos.config_io import read_config
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.job import load_run_policy, make_trainer
from mempo_env.algos.setup import build_policy
from mempo_env.errors import UserError
from mempo_env.records import Episode

from .analysis import rounded
from .cells import Cell

TOLERANCE = 2e-3
"""Between two scorings of one memory, which differ by rounding."""
Reading = dict[str, dict[str, list[float | None]]]
"""Per number of goals Q of the last memory on each task, None where the episode ended on a fault; by writer and reader:
``ours by ours``, ``ours by start``, ``start by ours``, ``start by start``."""


def cross_reading(cell: Cell, out: Path) -> Reading | None:
    """Reads the last memories of a cell and of its warm start with both policies.

    Args:
        cell: An arm's cell that is done.
        out: Folder of the study, with the run folders of the cell and of its warm start.

    Returns:
        What was read; None for a warm start, where there is no memory to read, and where weights or episodes are gone.

    Raises:
        UserError: Weights and episodes of a run folder do not belong together.
    """
    run, begun = out / "runs" / cell.name, out / "runs" / cell.warm.name
    played = {"ours": run / "eval" / "after.episodes.jsonl.gz", "start": begun / "eval" / "before.episodes.jsonl.gz"}
    if cell.kind == "warm" or cell.context != "memory" or not (begun / "base").exists():
        return None
    if not all(path.exists() for path in played.values()) or latest_checkpoint(run) is None:
        return None
    memories = {name: load_episodes(path) for name, path in played.items()}
    if [episode.seed for episode in memories["ours"]] != [episode.seed for episode in memories["start"]]:
        return None  # tuning is tested at fewer numbers of goals than its warm start
    config, _ = read_config(run)
    # An adapter that has learned nothing yet is the warm start itself.
    readers = {"ours": load_run_policy(run), "start": build_policy(config, run)}
    found: Reading = {}
    for writer, episodes in memories.items():
        for reader, policy in readers.items():
            read = _read(config, policy, run, episodes)
            if writer == reader:
                _check(read, episodes, run if writer == "ours" else begun)
            for episode, quality in zip(episodes, read, strict=True):
                columns = found.setdefault(str(len(episode.task.goals)), {})
                columns.setdefault(f"{writer} by {reader}", []).append(quality)
    return found


def _check(read: Sequence[float | None], episodes: Sequence[Episode], run: Path) -> None:
    """Compares with the Q that the evaluation noted of the same memories.

    Raises:
        UserError: They are not equal, so the weights at hand did not play these episodes.
    """
    for quality, episode in zip(read, episodes, strict=True):
        noted = [float(str(t.info[QUALITY])) for t in episode.turns if t.memory_written and QUALITY in t.info]
        if quality is not None and noted and abs(quality - noted[-1]) > TOLERANCE:
            raise UserError(
                f"the weights in {run} give another Q than its evaluation noted ({quality:.4f}, {noted[-1]:.4f}): they "
                "did not play its episodes; remove the folder, and run the cell again"
            )


def _read(config: RunConfig, policy: LoraPolicy, run: Path, episodes: Sequence[Episode]) -> list[float | None]:
    """Q of the last memory of each episode."""
    trainer = make_trainer(config, policy, GRPO(), run)
    with trainer.envs:
        valid = [episode for episode in episodes if episode.error is None]
        scores = iter(
            trainer.scorer.memory_quality([(episode, episode.turns[-1].memory) for episode in valid]).tolist()
        )
    return [rounded(next(scores)) if episode.error is None else None for episode in episodes]
