"""docs/metrics.md lists what a step of training logs, all of it and nothing else, for every registered algorithm."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from mempo_env.agents.rollout import EnvPool
from mempo_env.algos import ALGORITHMS
from mempo_env.algos.base import get_algorithm
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.imitation import ImitationStep
from mempo_env.algos.memory_reward import AnswerScorer
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.trainer import Trainer
from mempo_env.algos.update import Updater

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/metrics.md").read_text(encoding="utf-8")
PREFIXES = ("train", "rollout", "memory", "time")


def listed(document: str) -> dict[str, tuple[str, ...]]:
    """From each listed name, or pattern of names, to the algorithms whose step has it; none: all."""
    found: dict[str, tuple[str, ...]] = {}
    for name, by in re.findall(r"^\| `(\w+/[^`]+)` \| ([^|]+) \|", document, flags=re.MULTILINE):
        assert name not in found, f"{name} is listed twice"
        found[name] = () if by == "all" else tuple(by.split(", "))
    return found


def complaints(emitted: set[str], algorithm: str, document: str) -> list[str]:
    """Names that were logged and are not listed for the algorithm, and those that are and were not."""
    patterns = {
        name: re.compile(re.sub(r"<\\?\w+\\?>", "[a-z_]+", re.escape(name)))
        for name, by in listed(document).items()
        if not by or algorithm in by
    }
    unlisted = [name for name in sorted(emitted) if not any(p.fullmatch(name) for p in patterns.values())]
    absent = [name for name, p in patterns.items() if not any(map(p.fullmatch, emitted))]
    return [f"{name} is not listed" for name in unlisted] + [f"{name} was not logged" for name in absent]


@pytest.fixture
def logged(make_imitated: Any, env_factory: Any) -> Any:
    """What one step of an algorithm logs, in a real environment, with weights that know the format of an output."""

    def step(name: str) -> set[str]:
        policy, algorithm = make_imitated(), get_algorithm(name)()
        algorithm.setup(policy)
        parameters = [*trainable(policy.model), *(("extra", p) for p in algorithm.extra_parameters())]
        with EnvPool(env_factory(policy, goals=1, format_penalty=0.1)) as pool:
            trainer = Trainer(
                policy,
                algorithm,
                pool,
                AnswerScorer(policy, pool.memory_env.instructions),
                Updater(policy, algorithm, Optimizer(parameters, OptimConfig(), 9)),
                groups_per_step=2,
                group_size=3,
                seed=0,
            )
            return set(trainer.step().metrics)

    return step


@pytest.mark.parametrize("algorithm", ALGORITHMS.names())
def test_what_a_step_logs_is_what_is_listed(algorithm: str, logged: Any) -> None:
    assert complaints(logged(algorithm), algorithm, DOCUMENT) == []


def test_names_begin_as_they_should_and_are_of_algorithms_that_exist() -> None:
    names = listed(DOCUMENT)
    assert {name.partition("/")[0] for name in names} == set(PREFIXES)
    assert {by for algorithms in names.values() for by in algorithms} <= {*ALGORITHMS.names(), "ppo"}


def test_a_planted_difference_is_found() -> None:
    document = "| `train/a` | all | s | x |\n| `train/b/<kind>` | grpo | | y |\n| `train/c` | mempo | | z |\n"
    assert complaints({"train/a", "train/b/one_two"}, "grpo", document) == []
    assert complaints({"train/a", "train/d"}, "grpo", document) == [
        "train/d is not listed",
        "train/b/<kind> was not logged",
    ]


def test_the_warm_starts_names_are_listed() -> None:
    section = DOCUMENT.partition("## The warm start")[2]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [f.name for f in dataclasses.fields(ImitationStep)]
