"""What a MemPO step costs beside a GRPO step, and which share of it is Q(m): the same run, tasks and weights, in turns.

Each round takes one step of every algorithm from the same weights, which are put back after each step, so that all of
them play the same episodes. The order turns round from round to round, and what is reported is the median over rounds
of the ratio within a round, so that a load that comes and goes meets all alike.

    python benchmarks/step_shares.py RUN --goals 10 --rounds 5 --threads 2 --out benchmarks/results/step_shares.json
    python benchmarks/step_shares.py --imitate 400 --out benchmarks/results/step_shares.json
    python benchmarks/step_shares.py --quick

Without a run folder the model of the preset ``tiny`` is built in place and imitates the scripted expert for so many
steps: enough that it writes memories, searches and answers, so that episodes are real; it is no good agent. ``--quick``
does so with a smaller model on tasks of four goals.

``mempo-paper, history`` has a baseline of its own for every memory, the answer's probability given all that was seen,
which is quadratic in turns; it is reported apart from the others.

Invariant: between the algorithms of a round nothing differs but the algorithm: weights, optimizer state, tasks and
noise are the same.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from results_io import facts, parser_for, write

from mempo_env.agents.models import add_lora
from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.settings import TinyConfig
from mempo_env.algos.base import get_algorithm
from mempo_env.algos.config import RunConfig
from mempo_env.algos.config_io import read_config
from mempo_env.algos.job import load_run_policy, make_trainer
from mempo_env.algos.presets import get_preset
from mempo_env.algos.setup import build_policy, make_policy
from mempo_env.algos.trainer import Trainer
from mempo_env.algos.warm_start import warm_start
from mempo_env.errors import UserError

ARMS: dict[str, tuple[str, str]] = {
    "grpo": ("grpo", "joint"),
    "mempo, joint": ("mempo", "joint"),
    "mempo, per_goal": ("mempo", "per_goal"),
    "mempo-paper, history": ("mempo-paper", "joint"),
}
"""Name to algorithm, with its default settings, and scope of Q(m)."""
PARTS = ("sampling", "scoring", "update", "step")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
QUICK_SHAPE = TinyConfig(layers=2, width=64, heads=4, feed_forward=128)
Times = dict[str, dict[str, dict[str, list[float]]]]
"""Arm, clock, part, seconds by round."""


class Stopwatch:
    """Adds up wall and CPU seconds of the parts of a trainer's step, by wrapping what the step calls."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.spent = {clock: dict.fromkeys(PARTS, 0.0) for clock in CLOCKS}
        for owner, name, part in (
            (trainer, "collect", "sampling"),
            (trainer.algorithm, "advantages", "scoring"),
            (trainer.updater, "update", "update"),
        ):
            setattr(owner, name, self._timed(getattr(owner, name), part))
        self.step = self._timed(trainer.step, "step")

    def _timed(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            begun = {clock: now() for clock, now in CLOCKS.items()}
            try:
                return call(*arguments, **named)
            finally:
                for clock, now in CLOCKS.items():
                    self.spent[clock][part] += now() - begun[clock]

        return timed

    def take(self) -> dict[str, dict[str, float]]:
        """What was spent since the last call, by clock and part."""
        spent, self.spent = self.spent, {clock: dict.fromkeys(PARTS, 0.0) for clock in CLOCKS}
        return spent


def imitated(steps: int, quick: bool, seed: int = 0) -> tuple[RunConfig, Callable[[], LoraPolicy]]:
    """A configuration, and what gives a policy of its own over the same imitated weights at every call.

    Args:
        steps: Steps of imitation.
        quick: The smaller model, on short demonstrations.
        seed: Of weights and tasks.
    """
    preset = get_preset("tiny")
    warm = dataclasses.replace(preset.warm_start, perfect_steps=steps, demonstrator_steps=0, curriculum=())
    if quick:
        warm = dataclasses.replace(warm, goals=(1, 2), tokens_per_step=1500, episodes_per_chunk=32)
    else:
        warm = dataclasses.replace(warm, curriculum=((steps // 3, 2), (steps // 3, 5)))
    warm = dataclasses.replace(warm, optim=dataclasses.replace(warm.optim, warmup_steps=min(30, steps // 4)))
    config = dataclasses.replace(preset, seed=seed, warm_start=warm, tiny=QUICK_SHAPE if quick else preset.tiny)
    plain = build_policy(config, adapter=False)
    plain.train_mode()
    warm_start(config, plain)

    def make() -> LoraPolicy:
        return make_policy(config, add_lora(copy.deepcopy(plain.model), config.lora, seed=seed), plain.codec)

    return config, make


def of_run(run: Path) -> tuple[RunConfig, Callable[[], LoraPolicy]]:
    """The same of a run folder, at its newest checkpoint."""
    return read_config(run)[0], lambda: load_run_policy(run)


def trainer_of(config: RunConfig, policy: LoraPolicy, goals: int, groups: int, arm: str, folder: Path) -> Trainer:
    """A trainer of an arm, on tasks of so many goals."""
    algo, scope = ARMS[arm]
    train = dataclasses.replace(config.train, score_scope=scope, groups_per_step=groups)  # type: ignore[arg-type]
    config = dataclasses.replace(config, algo=algo, goals=(goals,), train=train)
    algorithm = get_algorithm(algo)(get_algorithm(algo).config_class())
    algorithm.setup(policy)
    trainer = make_trainer(config, policy, algorithm, folder)
    trainer.steps_done = 1  # step 0 has a self-check, too
    return trainer


def ratios(times: Times) -> dict[str, Any]:
    """Medians over rounds of each arm's step against GRPO's of the same round, and of the share of scoring in a step.

    Args:
        times: Seconds, with an arm ``grpo``.
    """

    def middle(above: Sequence[float], below: Sequence[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 4)

    return {
        "step_against_grpo": {
            arm: {clock: middle(found[clock]["step"], times["grpo"][clock]["step"]) for clock in CLOCKS}
            for arm, found in times.items()
        },
        "scoring_share": {
            arm: {clock: middle(found[clock]["scoring"], found[clock]["step"]) for clock in CLOCKS}
            for arm, found in times.items()
        },
        "median_seconds": {
            arm: {
                clock: {part: round(statistics.median(all_rounds), 4) for part, all_rounds in parts.items()}
                for clock, parts in found.items()
            }
            for arm, found in times.items()
        },
    }


def measure(trainers: Mapping[str, Trainer], rounds: int) -> dict[str, Any]:
    """Times of each arm, and the ratios between them.

    Raises:
        UserError: No memory was scored, so that there is nothing to measure.
    """
    states = {arm: copy.deepcopy(trainer.state_dict()) for arm, trainer in trainers.items()}
    weights = {arm: [p.detach().clone() for p in t.policy.trainable_parameters()] for arm, t in trainers.items()}
    watches = {arm: Stopwatch(trainer) for arm, trainer in trainers.items()}
    times: Times = {arm: {clock: {part: [] for part in PARTS} for clock in CLOCKS} for arm in trainers}
    played: dict[str, dict[str, float]] = {}
    order = list(trainers)
    for number in range(rounds + 1):
        for arm in order if number % 2 else reversed(order):
            trainer, watch = trainers[arm], watches[arm]
            trainer.load_state_dict(copy.deepcopy(states[arm]))
            with torch.no_grad():
                for parameter, value in zip(trainer.policy.trainable_parameters(), weights[arm], strict=True):
                    parameter.copy_(value)
            metrics = watch.step().metrics
            names = ("train/rows", "memory/scored", "rollout/turns", "rollout/f1")
            played[arm] = {name: round(metrics[name], 4) for name in names if name in metrics}
            for clock, parts in watch.take().items():
                for part in PARTS if number else ():  # the first round has what happens once in it
                    times[arm][clock][part].append(round(parts[part], 4))
        sys.stderr.write(f"round {number}: { {arm: found['wall']['step'][-1:] for arm, found in times.items()} }\n")
    unscored = [arm for arm in played if arm != "grpo" and not played[arm].get("memory/scored")]
    if unscored:
        raise UserError(f"{unscored[0]} scored no memory: the policy writes none; imitate longer (--imitate)")
    return {"seconds": times, "played": played} | ratios(times)


def main() -> None:
    """Parses, measures, writes."""
    parser = parser_for(__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="run folder of mempo train; without it: built in place")
    parser.add_argument("--imitate", type=int, help="steps of imitation of a model built in place (400; quick: 100)")
    parser.add_argument("--quick", action="store_true", help="a smaller model, fewer goals, groups and rounds")
    parser.add_argument("--goals", type=int, help="per task (10; quick: 4)")
    parser.add_argument("--groups", type=int, help="per step (8; quick: 2)")
    parser.add_argument("--rounds", type=int, help="that are counted (5; quick: 3)")
    parser.add_argument("--threads", type=int, default=2)
    flags = parser.parse_args()
    if flags.run and (flags.imitate is not None or flags.quick):
        parser.error("--imitate and --quick build a model in place; drop the run folder, or drop them")
    steps, goals, groups, rounds = (
        given if given is not None else standard[flags.quick]
        for given, standard in (
            (flags.imitate, (400, 100)),
            (flags.goals, (10, 4)),
            (flags.groups, (8, 2)),
            (flags.rounds, (5, 3)),
        )
    )
    torch.set_num_threads(flags.threads)
    result = facts()
    try:
        config, make = of_run(flags.run) if flags.run else imitated(steps, flags.quick)
        with tempfile.TemporaryDirectory(prefix="shares-") as name:
            trainers = {arm: trainer_of(config, make(), goals, groups, arm, Path(name)) for arm in ARMS}
            found = measure(trainers, rounds)
    except UserError as error:
        parser.error(str(error))
    weights = "of a run folder" if flags.run else f"built in place, {steps} steps of imitation"
    result |= {"weights": weights, "goals": goals, "groups": groups, "rounds": rounds} | found
    write(result, flags.out)


if __name__ == "__main__":
    main()
