"""Where the CPU time of a step goes: operators, kinds of work and phases, by torch's profiler on one thread.

    python benchmarks/profile_step.py tiny --out benchmarks/results/profile_tiny.json
    python benchmarks/profile_step.py smollm2 --out benchmarks/results/profile_smollm2.json

``tiny`` is a whole MemPO step of the real trainer on the tiny model, which has imitated the expert for ``--imitate``
steps before, so that it plays episodes and does not babble to the limit. ``smollm2`` is a learner step, reference pass
included, on one group of eight rows of random ids: nobody samples.

Sampling is profiled turn by turn, since every operator is an event of some kilobytes until its profile ends: a turn in
which one row reaches 160 tokens takes over 2 GB. The environment is timed and not profiled.

Invariant: what runs is the trainer's own code, with marks and nothing else added; how time is shared out is said in
``profile_phases.py``.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from cost_check import learner
from learner_step import GROUP
from profile_phases import Phases, run
from results_io import facts, write

from mempo_env.agents.models import add_lora
from mempo_env.algos.algorithm_config import MemPOConfig
from mempo_env.algos.base import get_algorithm
from mempo_env.algos.job import make_trainer
from mempo_env.algos.presets import get_preset
from mempo_env.algos.setup import build_policy, make_policy
from mempo_env.algos.warm_start import warm_start


def tiny(folder: Path, groups: int, imitate: int, goals: int, limit: int) -> dict[str, Any]:
    """A MemPO step of the trainer; weights and optimizer are put back before each."""
    preset = get_preset("tiny")
    warm = dataclasses.replace(
        preset.warm_start, perfect_steps=imitate, demonstrator_steps=0, curriculum=(), goals=(1, goals)
    )
    train = dataclasses.replace(preset.train, groups_per_step=groups)
    sampling = dataclasses.replace(preset.sampling, max_new_tokens=limit)
    config = dataclasses.replace(preset, algo="mempo", goals=(goals,), warm_start=warm, train=train, sampling=sampling)
    policy = build_policy(config, adapter=False)
    policy.train_mode()
    warm_start(config, policy)
    policy = make_policy(config, add_lora(policy.model, config.lora, seed=0), policy.codec)
    algorithm = get_algorithm("mempo")(MemPOConfig())
    algorithm.setup(policy)
    trainer = make_trainer(config, policy, algorithm, folder)
    trainer.steps_done = 1  # step 0 has a self-check, too
    state = copy.deepcopy(trainer.state_dict())
    weights = [parameter.detach().clone() for parameter in policy.trainable_parameters()]
    metrics: dict[str, float] = {}

    def step() -> None:
        trainer.load_state_dict(copy.deepcopy(state))
        with torch.no_grad():
            for parameter, value in zip(policy.trainable_parameters(), weights, strict=True):
                parameter.copy_(value)
        metrics.update(trainer.step().metrics)

    phases = Phases()
    with (
        trainer.envs,
        phases.marked(trainer, "collect", "environment", timed_only=True),
        phases.marked(policy, "act", "sampling"),
        phases.marked(algorithm, "advantages", "scoring"),
        phases.marked(trainer.updater, "update", "update"),
        phases.marked(policy, "use_adapter", "reference", context=True),
    ):
        shape: Any = policy.model.config
        result = run(step, phases, shape.vocab_size)
    shown = ("rollout/turns", "rollout/output_tokens", "rollout/format_errors", "rollout/cut_outputs", "train/rows")
    about = {
        "groups": groups,
        "group_size": train.group_size,
        "goals": goals,
        "imitation_steps": imitate,
        "limit": limit,
    }
    return about | {"metrics": {name: metrics[name] for name in shown}} | result


def smollm2(prompt: int, output: int) -> dict[str, Any]:
    """A learner step of one group of eight rows of random ids."""
    made, phases = learner("smollm2", prompt, output), Phases()

    def step() -> None:
        with phases.phase("update"):
            made.step()

    with phases.marked(made.policy, "use_adapter", "reference", context=True):
        result = run(step, phases, made.shape.vocab)
    return {"rows": GROUP, "prompt": prompt, "output": output} | result


def main() -> None:
    """Parses, profiles, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("tiny", "smollm2"))
    parser.add_argument("--groups", type=int, default=8, help="tiny: tasks of the step")
    parser.add_argument("--goals", type=int, default=4, help="tiny: goals of a task")
    parser.add_argument("--imitate", type=int, default=300, help="tiny: imitation steps before")
    parser.add_argument("--limit", type=int, default=80, help="tiny: longest output")
    parser.add_argument("--prompt", type=int, default=700, help="smollm2: prompt tokens of a row")
    parser.add_argument("--output", type=int, default=150, help="smollm2: output tokens of a row")
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    how = facts()
    if flags.model == "tiny":
        with tempfile.TemporaryDirectory(prefix="profile-") as folder:
            result = tiny(Path(folder), flags.groups, flags.imitate, flags.goals, flags.limit)
    else:
        result = smollm2(flags.prompt, flags.output)
    result |= how
    write(result, flags.out)


if __name__ == "__main__":
    main()
