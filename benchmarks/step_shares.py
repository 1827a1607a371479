"""What a MemPO step costs beside a GRPO step, and which share of it is Q(m): the same run, tasks and weights, in turns.

Each round takes one step of every algorithm from the weights of a trained run, which are put back after each step, so
that all of them play the same episodes.

    python benchmarks/step_shares.py RUN --goals 10 --rounds 5 --threads 2 --out benchmarks/results/step_shares.json

Invariant: between the algorithms of a round nothing differs but the algorithm: weights, optimizer state, tasks and
noise are the same.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from mempo_env.algos.algorithm_config import MemPOConfig
from mempo_env.algos.base import get_algorithm
from mempo_env.algos.config_io import read_config
from mempo_env.algos.job import load_run_policy, make_trainer
from mempo_env.algos.trainer import Trainer
from mempo_env.versions import versions

ARMS: dict[str, tuple[str, str]] = {
    "grpo": ("grpo", "joint"),
    "mempo, joint": ("mempo", "joint"),
    "mempo, per_goal": ("mempo", "per_goal"),
}
"""Name to algorithm and scope of Q(m)."""
PARTS = ("sampling", "scoring", "update", "step")


def trainer_of(run: Path, goals: int, groups: int, arm: str) -> Trainer:
    """A trainer at the run's newest checkpoint, on tasks of so many goals."""
    algo, scope = ARMS[arm]
    config, _ = read_config(run)
    train = dataclasses.replace(config.train, score_scope=scope, groups_per_step=groups)  # type: ignore[arg-type]
    config = dataclasses.replace(config, algo=algo, goals=(goals,), train=train)
    algorithm = get_algorithm(algo)(MemPOConfig() if algo == "mempo" else get_algorithm(algo).config_class())
    policy = load_run_policy(run)
    algorithm.setup(policy)
    trainer = make_trainer(config, policy, algorithm, run)
    trainer.steps_done = 1  # step 0 has a self-check, too
    return trainer


def measure(run: Path, goals: int, groups: int, rounds: int) -> dict[str, Any]:
    """Times of each arm, and the ratios between them."""
    trainers = {arm: trainer_of(run, goals, groups, arm) for arm in ARMS}
    states = {arm: copy.deepcopy(trainer.state_dict()) for arm, trainer in trainers.items()}
    weights = {arm: [p.detach().clone() for p in t.policy.trainable_parameters()] for arm, t in trainers.items()}
    times: dict[str, dict[str, list[float]]] = {arm: {part: [] for part in PARTS} for arm in ARMS}
    rows: dict[str, float] = {}
    for number in range(rounds + 1):
        for arm, trainer in trainers.items():
            trainer.load_state_dict(copy.deepcopy(states[arm]))
            with torch.no_grad():
                for parameter, value in zip(trainer.policy.trainable_parameters(), weights[arm], strict=True):
                    parameter.copy_(value)
            metrics = trainer.step().metrics
            rows[arm] = metrics["train/rows"]
            for part in PARTS if number else ():  # the first round has what happens once in it
                times[arm][part].append(metrics[f"time/{part}_s"])
        sys.stderr.write(f"round {number}: { {arm: found['step'][-1:] for arm, found in times.items()} }\n")
    medians = {arm: {part: statistics.median(found) for part, found in parts.items()} for arm, parts in times.items()}
    return {
        "seconds": times,
        "median_seconds": medians,
        "rows": rows,
        "step_against_grpo": {arm: found["step"] / medians["grpo"]["step"] for arm, found in medians.items()},
        "scoring_share": {arm: found["scoring"] / found["step"] for arm, found in medians.items()},
    }


def main() -> None:
    """Parses, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of mempo train")
    parser.add_argument("--goals", type=int, default=10)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    result = measure(flags.run, flags.goals, flags.groups, flags.rounds)
    result |= {"command": " ".join(sys.argv), "versions": versions(), "load_before": os.getloadavg()[0]}
    text = json.dumps(result, indent=2)
    if flags.out:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
