"""Configurations: consistent once made, written and read without loss; presets are valid and distinct."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mempo_env.agents.settings import SamplingConfig
from mempo_env.algos import ALGORITHMS, algorithm_settings
from mempo_env.algos.algorithm_config import GRPOConfig, MemPOConfig
from mempo_env.algos.base import get_algorithm
from mempo_env.algos.config import EvalConfig, OptimConfig, RunConfig, TrainConfig, WarmStartConfig
from mempo_env.algos.config_io import config_from_dict, config_text, read_config, write_config
from mempo_env.algos.ppo_config import PPOConfig
from mempo_env.algos.presets import PRESETS, get_preset
from mempo_env.errors import UserError

NAN = math.nan


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_survive_the_run_folder(name: str, tmp_path: Path) -> None:
    config = get_preset(name)
    assert config.preset == name
    settings = algorithm_settings(config.algo)[1]()
    write_config(tmp_path, config, settings)
    assert read_config(tmp_path) == (config, settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_presets_are_distinct_and_named_in_the_issue() -> None:
    assert {"tiny", "smollm2", "qwen2.5-7b"} <= set(PRESETS)
    unnamed = [dataclasses.replace(preset, preset="tiny") for preset in PRESETS.values()]
    assert all(one != two for n, one in enumerate(unnamed) for two in unnamed[:n])


def test_presets_hold_what_the_sources_state() -> None:
    """The article: 5 calls, 5e-5, 30 k steps, Qwen2.5-7B; the paper: groups of 16, batch 128, 16 turns, 2 goals."""
    brief, paper = get_preset("qwen2.5-7b"), get_preset("qwen2.5-7b-paper")
    assert (brief.model, brief.steps, brief.budget, brief.train.optim.lr) == ("Qwen/Qwen2.5-7B", 30_000, "brief", 5e-5)
    assert (brief.algo, brief.env_args.outcome, brief.goals) == ("mempo", "binary", (2,))
    assert (paper.algo, paper.budget, paper.train.optim.lr) == ("mempo-paper", "paper", 1e-6)
    assert paper.train.group_size == 16
    assert paper.train.group_size * paper.train.groups_per_step == 128
    assert GRPOConfig() == GRPOConfig(0.2, 0.2, 0.001, True, 1e-6, "group_mean", "token", "episode", 0)
    memory = MemPOConfig(weight=1.0, baseline="reference", normalisation="none", credit="guarded", reference_episodes=4)
    assert MemPOConfig() == memory


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        get_preset("tinny")


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_settings_found_without_torch_are_those_of_the_class(name: str) -> None:
    algorithm = get_algorithm(name)
    assert algorithm_settings(name) == (algorithm.name, algorithm.config_class)


def test_configurations_import_no_torch() -> None:
    code = (
        "import sys; from mempo_env.algos.presets import get_preset; from mempo_env.algos import algorithm_settings;"
        "from mempo_env.algos.config_io import config_text;"
        "config_text(get_preset('tiny'), algorithm_settings('mempo')[1]());"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimConfig(lr=0), "lr=0"),
        (lambda: OptimConfig(lr=NAN), "lr=nan"),
        (lambda: OptimConfig(lr=math.inf), "lr=inf"),
        (lambda: OptimConfig(max_grad_norm=NAN), "max_grad_norm=nan"),
        (lambda: SamplingConfig(temperature=NAN), "temperature=nan"),
        (lambda: GRPOConfig(beta=NAN), "beta=nan"),
        (lambda: GRPOConfig(eps=NAN), "eps=nan"),
        (lambda: GRPOConfig(clip_high=NAN), "clip_high=nan"),
        (lambda: MemPOConfig(weight=NAN), "weight=nan"),
        (lambda: PPOConfig(beta=math.inf), "beta=inf"),
        (lambda: OptimConfig(name="adam"), "did you mean 'adamw'"),  # type: ignore[arg-type]
        (lambda: OptimConfig(schedule="cosine"), r"OptimConfig\.schedule"),  # type: ignore[arg-type]
        (lambda: OptimConfig(decay_from=1.0), "decay_from=1.0"),
        (lambda: OptimConfig(warmup_steps=-1), "warmup_steps=-1"),
        (lambda: OptimConfig(betas=(0.9, 1.0)), "betas"),
        (lambda: WarmStartConfig(forget=1.5), "forget=1.5"),
        (lambda: WarmStartConfig(goals=(3, 2)), "goals 3 2"),
        (lambda: WarmStartConfig(target="base"), r"WarmStartConfig\.target"),  # type: ignore[arg-type]
        (lambda: WarmStartConfig(perfect_steps=1, curriculum=((1, 17),)), "goals 1 17"),
        (lambda: WarmStartConfig(perfect_steps=5, curriculum=((0, 1),)), "curriculum_steps=0"),
        (lambda: WarmStartConfig(perfect_steps=-1), "perfect_steps=-1"),
        (lambda: TrainConfig(group_size=0), "group_size=0"),
        (lambda: TrainConfig(groups_per_step=2, minibatches=3), "minibatches=3 cannot exceed groups_per_step=2"),
        (lambda: TrainConfig(score_scope="goal"), "did you mean 'per_goal'"),  # type: ignore[arg-type]
        (lambda: EvalConfig(goals=()), "no number of goals"),
        (lambda: EvalConfig(goals=(2, 17)), "goals 17"),
        (lambda: EvalConfig(split="train"), r"EvalConfig\.split"),  # type: ignore[arg-type]
        (lambda: EvalConfig(episodes=-1), "episodes=-1"),
        (lambda: RunConfig(goals=(1, 2, 3)), "not 3 numbers"),
        (lambda: RunConfig(goals=(0,)), "goals 0: a task has 1 to 16"),
        (lambda: RunConfig(budget="breif"), "did you mean 'brief'"),
        (lambda: RunConfig(steps=-1), "steps=-1"),
        (lambda: RunConfig(seed=-1), "seed=-1"),
        (lambda: RunConfig(dtype="float16"), "did you mean"),  # type: ignore[arg-type]
        (lambda: RunConfig(dataset="qa"), "needs --data"),
        (lambda: RunConfig(sampling=SamplingConfig(greedy=True)), "samples at a temperature"),
    ],
)
def test_what_is_not_consistent_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_greedy_run_without_training_is_fine() -> None:
    assert RunConfig(steps=0, sampling=SamplingConfig(greedy=True)).goal_range == (4, 4)
    assert RunConfig(goals=(2, 6)).goal_range == (2, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["run"].update(stepz=3), r"run has the unknown key 'stepz'"),
        (lambda data: data["run"]["train"]["optim"].update(lr="fast"), r"run\.train\.optim\.lr is \"fast\""),
        (lambda data: data["run"].update(train=3), r"run\.train must be an object"),
        (lambda data: data["run"].update(dtype="int8"), r"run\.dtype is \"int8\""),
        (lambda data: data["algorithm"].update(weight=True), r"algorithm\.weight is true"),
        (lambda data: data["algorithm"].update(normalisation="pooled"), "subtracted twice"),
        (lambda data: data.pop("algorithm"), "has no part 'algorithm'"),
    ],
)
def test_a_file_that_was_edited_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    data = json.loads(config_text(get_preset("tiny"), MemPOConfig()))
    change(data)
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


def test_a_missing_key_takes_its_default() -> None:
    """So that a run folder of an older version can still be read."""
    data = dataclasses.asdict(GRPOConfig(clip_low=0.1))
    del data["beta"]
    assert config_from_dict(GRPOConfig, data) == GRPOConfig(clip_low=0.1)


def test_whole_numbers_may_stand_for_fractions() -> None:
    assert config_from_dict(OptimConfig, {"lr": 1, "betas": [0, 0.5]}) == OptimConfig(lr=1, betas=(0, 0.5))
