"""Did one update do it? A run is played again up to an update, which is taken whole or clipped, and goes on anew.

Some runs of the study fall apart soon after an update in which an episode answered every goal, whose gradient is ten
and more times the usual one. Whether that update does it, or what is sampled afterwards, one run cannot say. So from
the run's checkpoint the updates before are repeated, the one in question is taken as it was or with its gradient
clipped, and then training goes on several times, each time with other tasks and other noise.

    python benchmarks/studies/one_update.py --study study --out one_update --only 5-36    # needs that run's weights
    python benchmarks/studies/one_update.py --out one_update --keep                       # into benchmarks/results
    python benchmarks/studies/one_update.py --page                                        # the table of docs/study.md

Invariants:
    * up to the update in question every number is the run's own, to the last digit, or nothing is measured;
    * both variants differ by that one update alone: what follows has the same tasks and the same noise, draw by draw.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from memory_study.analysis import episode_facts
from memory_study.arms import CLIP
from memory_study.document import DOCS, between
from memory_study.estimates import over_seeds
from memory_study.measures import mean
from memory_study.tables import Table
from rich.console import Console

from mempo_env.algos.base import get_algorithm
from mempo_env.algos.checkpoint import check_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from mempo_env.algos.config_io import read_config
from mempo_env.algos.job import make_trainer
from mempo_env.algos.logs import read_metrics
from mempo_env.algos.setup import build_policy
from mempo_env.algos.trainer import StepResult, Trainer
from mempo_env.errors import UserError
from mempo_env.versions import versions

KEPT = Path(__file__).resolve().parents[1] / "results" / "one_update.json"
AFTER, DRAWS = 5, 5
"""Updates after the one in question, and how often they are drawn anew."""
VARIANTS = ("as it was", "clipped")


@dataclass(frozen=True)
class Event:
    """An update of a tuned MemPO run in ``hard`` in which an episode answered every goal.

    Attributes:
        seed: Of the run.
        update: Which, from 0.
        fell: Whether the run fell apart within the next five updates.
    """

    seed: int
    update: int
    fell: bool

    @property
    def name(self) -> str:
        """As ``--only`` takes it."""
        return f"{self.seed}-{self.update}"


EVENTS = (
    *(Event(9, 34, True), Event(5, 36, True), Event(5, 6, True)),
    *(Event(0, 22, False), Event(4, 32, False), Event(7, 12, False)),
)
"""All three that were followed by a fall, and of the other seeds' first ones that had five updates after them three."""


@contextmanager
def opened(run: Path) -> Iterator[Trainer]:
    """The trainer of a run at its beginning."""
    config, settings = read_config(run)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    policy = build_policy(config, run)
    algorithm = get_algorithm(config.algo)(settings)
    algorithm.setup(policy)
    trainer = make_trainer(config, policy, algorithm, run)
    with trainer.envs:
        yield trainer


def replay(trainer: Trainer, run: Path, update: int) -> list[float]:
    """Goes to the state before an update, from the run's newest checkpoint that is not beyond it.

    Returns:
        F1 of the run's training episodes in the five updates up to and including this one, in %.

    Raises:
        UserError: A repeated update does not give the run's numbers.
    """
    known, name = read_metrics(run, "train"), trainer.algorithm.name
    checkpoints = list_checkpoints(run / "checkpoints")
    if earlier := [path for path in checkpoints if check_checkpoint(path, name)["step"] <= update]:
        _restore(trainer, earlier[-1])
    while trainer.steps_done < update:
        step = trainer.steps_done
        check_equal(trainer.step(), known[step], step)
    return [100 * line["rollout/f1"] for line in known[max(0, update - 4) : update + 1]]


def check_equal(found: StepResult, known: Mapping[str, Any], step: int) -> None:
    """Refuses an update that is not the run's own.

    Raises:
        UserError: Its F1 or its gradient is another one.
    """
    for name in ("rollout/f1", "train/grad_norm"):
        if found.metrics[name] != known[name]:
            raise UserError(
                f"update {step} has {name} {found.metrics[name]} and had {known[name]}: this machine does not repeat "
                "the run to the last digit; run its cell here first"
            )


def branch(run: Path, event: Event, *, draws: int = DRAWS, after: int = AFTER, clip: float = CLIP) -> dict[str, Any]:
    """Both variants of an update, each gone on with several times.

    Args:
        run: Run folder with its checkpoints.
        event: Which update.
        draws: How often what follows is drawn anew.
        after: Updates that follow.
        clip: Norm that the gradient of the update in question is clipped to in the second variant.

    Returns:
        ``before``, see ``replay``; ``norm``, the gradient's; and per variant and draw what each update after it
        sampled: ``f1`` and ``wrong_number`` in %, ``tool_calls``.
    """
    found: dict[str, Any] = {"event": asdict(event), "clip": clip, "versions": versions()}
    with opened(run) as trainer, tempfile.TemporaryDirectory() as folder:
        found["before"] = replay(trainer, run, event.update)
        state = _saved(trainer, Path(folder) / "start")
        optimizer, seed = trainer.updater.optimizer, trainer.seed
        usual, known = optimizer.config, read_metrics(run, "train")[event.update]
        for variant in VARIANTS:
            _restore(trainer, state)
            trainer.seed = seed
            if variant == "clipped":
                optimizer.config = replace(usual, max_grad_norm=clip)
            taken = trainer.step()
            optimizer.config = usual
            check_equal(taken, known, event.update)  # the norm is that before clipping
            found["norm"], found["successes"] = known["train/grad_norm"], _successes(taken)
            moved = _saved(trainer, Path(folder) / variant)
            found[variant] = []
            for draw in range(draws):
                _restore(trainer, moved)
                trainer.seed = 1000 * (event.seed + 1) + draw
                found[variant].append([_sampled(trainer.step()) for _ in range(after)])
    return found


def _saved(trainer: Trainer, folder: Path) -> Path:
    name = trainer.algorithm.name
    return save_checkpoint(folder, trainer.steps_done, trainer.policy, trainer.state_dict(), name, keep=1)


def _restore(trainer: Trainer, path: Path) -> None:
    state, _ = load_checkpoint(path, trainer.policy, trainer.algorithm.name)
    trainer.load_state_dict(state)


def _successes(step: StepResult) -> int:
    return sum(episode.outcome > 0 for group in step.groups for episode in group)


def _sampled(step: StepResult) -> dict[str, float]:
    facts = [episode_facts(episode) for group in step.groups for episode in group if episode.error is None]
    return {
        "f1": round(100 * step.metrics["rollout/f1"], 2),
        "wrong_number": round(100 * mean([one["wrong_number"] for one in facts]), 2),
        "tool_calls": round(step.metrics["rollout/tool_calls"], 3),
    }


def fell(before: list[float], after: list[dict[str, float]]) -> bool:
    """Whether F1 of the last two updates is under half of what it was in the five up to the one in question.

    >>> fell([20.0, 20.0], [{"f1": 30.0}, {"f1": 9.0}, {"f1": 10.0}])
    True
    """
    return mean([one["f1"] for one in after[-2:]]) < mean(before) / 2


def results_table(found: list[dict[str, Any]]) -> Table:
    """One line per event: how many draws fell in each variant, and F1 of the last two updates."""
    rows = []
    for one in found:
        event = Event(**one["event"])
        ends = {name: [mean([step["f1"] for step in draw[-2:]]) for draw in one[name]] for name in VARIANTS}
        wrong = {name: mean([step["wrong_number"] for draw in one[name] for step in draw[-2:]]) for name in VARIANTS}
        less = [a - b for a, b in zip(ends["clipped"], ends["as it was"], strict=True)]
        rows.append(
            (
                *(str(event.seed), str(event.update), str(one["successes"]), f"{one['norm']:.4f}"),
                *("yes" if event.fell else "no", f"{mean(one['before']):.1f}"),
                *(f"{sum(fell(one['before'], draw) for draw in one[name])} of {len(one[name])}" for name in VARIANTS),
                *(f"{mean(ends[name]):.1f}" for name in VARIANTS),
                over_seeds(less).text(sign=True),
                *(f"{wrong[name]:.0f}" for name in VARIANTS),
            )
        )
    header = (
        *("seed", "update", "successes in it", "gradient", "the run fell", "F1 before"),
        *(f"draws that fell, {name}" for name in VARIANTS),
        *(f"F1 after, {name}" for name in VARIANTS),
        *("clipped less as it was", *(f"wrong number of answers, {name}" for name in VARIANTS)),
    )
    title = (
        f"One update: tuned mempo in hard goes on {DRAWS} times for {AFTER} updates after an update with a success, "
        f"which is taken as it was or clipped to {CLIP}; F1 (%) sampled in the last two, before: in the five up to it; "
        "a draw fell if that is under half; differences over draws (95 % t interval)"
    )
    return Table("one-update", title, header, rows)


def kept() -> list[dict[str, Any]]:
    """The kept results, in the order of ``EVENTS``."""
    found: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    return [found[event.name] for event in EVENTS if event.name in found]


def page(text: str) -> str:
    """A page with the table between its markers."""
    table = results_table(kept())
    return between(text, table.key, f"**{table.title}**\n\n{table.markdown()}" if table.rows else "Not run yet.")


def main() -> None:
    """Reads the flags, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--study", type=Path, default=Path("study"), help="folder of memory_reward.py, with its runs")
    parser.add_argument("--out", type=Path, default=Path("one_update"), help="one file per event")
    parser.add_argument("--only", nargs="+", default=[event.name for event in EVENTS], metavar="SEED-UPDATE")
    parser.add_argument("--keep", action="store_true", help=f"collect what is in --out in {KEPT.name}")
    parser.add_argument("--page", action="store_true", help="write the table into docs/study.md")
    flags = parser.parse_args()
    console = Console()
    if flags.keep:
        files = {event.name: flags.out / f"{event.name}.json" for event in EVENTS}
        found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.exists()}
        KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if flags.page:
        path = DOCS / "study.md"
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    if not (flags.keep or flags.page):
        flags.out.mkdir(parents=True, exist_ok=True)
        for event in (event for event in EVENTS if event.name in flags.only):
            path, run = flags.out / f"{event.name}.json", flags.study / "runs" / f"hard-mempo-tuned-{event.seed}"
            if not path.exists():
                result = branch(run, event)
                path.write_text(json.dumps(result), encoding="utf-8")
                console.print(results_table([result]).markdown(), markup=False)


if __name__ == "__main__":
    main()
