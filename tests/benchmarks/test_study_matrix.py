"""The matrix of the study: arms that differ by their algorithm alone, tuning, shards, fingerprints."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest
from memory_study.arms import ARMS, CROSSED
from memory_study.cells import (
    DEV_SEED,
    FRESH_SEEDS,
    SEEDS,
    STUDY,
    Cell,
    algorithm_config,
    candidates,
    eval_config,
    fingerprint,
    matrix,
    run_config,
    with_choice,
)
from memory_study.plan import minutes, shard
from memory_study.settings import plain

from mempo_env.algos.algorithm_config import MemPOConfig
from mempo_env.algos.base import get_algorithm
from mempo_env.algos.ppo_config import PPOConfig


def test_the_matrix_gives_every_arm_the_same() -> None:
    cells = matrix()
    assert len({cell.name for cell in cells}) == len(cells)
    for regime in ("easy", "hard"):
        configs = []
        for arm in (arm.name for arm in ARMS.values() if arm.default):
            assert len(candidates(regime, arm)) == 4
            own = [cell for cell in cells if (cell.regime, cell.arm) == (regime, arm) and cell.kind == "train"]
            assert [cell.seed for cell in own] == [0, 1, 2, 3, 4]
            configs.append(replace(run_config(Cell("train", 3, regime, arm), Path("o")), algo="", out=""))
        assert all(config == configs[0] for config in configs)
        assert configs[0].model == "o/runs/warm-3/base"


def test_the_crossed_regimes_differ_from_each_default_one_in_one_thing() -> None:
    configs = {
        regime: replace(run_config(Cell("train", 0, regime, "grpo"), Path("o")), out="")
        for regime in ("easy", "hard", *CROSSED)
    }
    easy, hard = configs["easy"], configs["hard"]
    assert replace(configs["sparse"], env_args=easy.env_args) == easy
    assert replace(configs["sparse"], goals=hard.goals) == hard
    assert replace(configs["long"], goals=easy.goals) == easy
    assert replace(configs["long"], env_args=hard.env_args) == hard
    crossed = [cell for cell in matrix(full=True) if cell.regime in CROSSED]
    assert len({cell.name for cell in crossed}) == len(crossed) == 2 * 6 * 5
    assert {cell.kind for cell in crossed} == {"train"}
    assert not any(cell.regime in CROSSED for cell in matrix())


def test_tuning_sees_neither_test_tasks_nor_test_seeds() -> None:
    for cell in matrix(full=True):
        split = eval_config(cell).split
        assert (cell.kind == "tune") <= (cell.seed == DEV_SEED)
        assert split == ("dev" if cell.seed == DEV_SEED else "test")
        assert run_config(cell, Path("o")).seed == cell.seed


def test_tuning_chooses_the_best_and_waits_for_all() -> None:
    cell = Cell("tuned", 2, "hard", "mempo")
    tried = candidates("hard", "mempo")
    scores = {candidate.name: 10.0 for candidate in tried}
    chosen = with_choice(cell, scores)
    assert chosen is not None
    assert (chosen.lr, chosen.weight) == (2e-3, 1.0)  # equal: the untuned one
    chosen = with_choice(cell, scores | {tried[3].name: 11.0})
    assert chosen is not None
    assert (chosen.lr, chosen.weight) == (2e-3, 0.3)
    assert algorithm_config(chosen).weight == 0.3
    chosen = with_choice(cell, scores | {tried[1].name: 11.0})
    assert chosen is not None
    assert (chosen.weight, run_config(chosen, Path("o")).train.optim.lr) == (1.0, 1e-3)
    assert with_choice(cell, {tried[0].name: 1.0}) is None


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_shards_are_the_matrix_and_about_equally_long(parts: int) -> None:
    cells = matrix(full=True)
    shards = [shard(cells, part, parts) for part in range(1, parts + 1)]
    assert [cell for some in shards for cell in some] == cells
    lengths = [sum(map(minutes, some)) for some in shards]
    assert max(lengths) - min(lengths) < 2 * max(map(minutes, cells))


def test_fingerprints_see_settings_and_the_warm_start_but_not_places() -> None:
    cell = Cell("train", 0, "easy", "mempo")
    names = {
        fingerprint(cell),
        fingerprint(replace(cell, weight=0.3)),
        fingerprint(replace(cell, lr=1e-3)),
        fingerprint(replace(cell, arm="shuffled")),
        fingerprint(replace(cell, seed=1)),
        fingerprint(cell, replace(STUDY, perfect_steps=1)),
        fingerprint(cell, replace(STUDY, episodes=1)),
    }
    assert len(names) == 7
    assert fingerprint(cell) == fingerprint(Cell("train", 0, "easy", "mempo"))


@dataclass(frozen=True)
class OptimConfig:
    """A class of this name that has learned something since the first results were stored."""

    name: str = "adamw"
    lr: float = 0.1
    invented_later: tuple[int, ...] = field(default=(1,))


def test_fields_that_came_later_count_only_where_they_are_set() -> None:
    assert plain(OptimConfig(lr=0.5)) == {"name": "adamw", "lr": 0.5}
    assert plain(OptimConfig(invented_later=(2,))) == {"name": "adamw", "lr": 0.1, "invented_later": (2,)}
    assert plain({"a": 1}) == {"a": 1}
    # Of what has not changed nothing is left out.
    for whole in (run_config(Cell("train", 0, "easy", "mempo"), Path()), MemPOConfig(), PPOConfig()):
        assert set(plain(whole)) >= {each.name for each in fields(whole)}


def test_the_replication_has_seeds_of_its_own() -> None:
    cells = matrix(full=True)
    assert len({cell.name for cell in cells}) == len(cells)
    assert not {*FRESH_SEEDS} & {*SEEDS, DEV_SEED}
    fresh = [cell for cell in cells if cell.seed in FRESH_SEEDS]
    assert fresh == cells[-len(fresh) :]
    names = ["warm-5", "hard-grpo-tuned-5", "hard-mempo-tuned-5", "hard-clipped-5"]
    assert [cell.name for cell in fresh[:4]] == names
    assert len(fresh) == 5 * 4
    assert not any(cell.seed in FRESH_SEEDS for cell in matrix())


def test_the_further_arms_are_what_they_are_called() -> None:
    names = {cell.name for cell in matrix(full=True)}
    assert {"hard-unguarded-0", "easy-ppo-0", "warm-history-3", "easy-short-tuned-4"} <= names
    assert "easy-unguarded-0" not in names
    default = [cell.name for cell in matrix()]
    assert [cell.name for cell in matrix(full=True) if cell.name in default] == default
    history = Cell("train", 1, "hard", "history")
    assert history.warm == Cell("warm", 1, arm="history")
    assert (run_config(history, Path("o")).context, run_config(history.warm, Path("o")).context) == ("history",) * 2
    assert run_config(history, Path("o")).model == "o/runs/warm-history-1/base"
    assert fingerprint(history.warm) != fingerprint(Cell("warm", 1))
    for arm in ARMS.values():
        cell = Cell("train", 0, arm.regimes[0], arm.name)
        settings = get_algorithm(arm.algo).config_class
        assert isinstance(algorithm_config(cell), settings)
        assert len(candidates(cell.regime, arm.name)) == 4
        if arm.context == "memory" and arm.max_grad_norm is None:
            assert replace(run_config(cell, Path("o")), algo="", out="") == replace(
                run_config(replace(cell, arm="grpo"), Path("o")), algo="", out=""
            )


def test_the_clipped_arm_differs_from_tuned_mempo_in_one_thing() -> None:
    cell = Cell("train", 5, "hard", "clipped")
    tuned = Cell("tuned", 5, "hard", "mempo", weight=0.3)  # as tuning chose
    assert algorithm_config(cell) == algorithm_config(tuned)
    ours, theirs = (replace(run_config(one, Path("o")), out="") for one in (cell, tuned))
    assert (ours.train.optim.max_grad_norm, theirs.train.optim.max_grad_norm) == (0.003, 1.0)
    assert replace(ours, train=replace(ours.train, optim=theirs.train.optim)) == theirs
    assert replace(ours.train.optim, max_grad_norm=1.0) == theirs.train.optim
    cells = [one for one in matrix(full=True) if one.arm == "clipped"]
    assert [(one.kind, one.regime, one.seed) for one in cells] == [("train", "hard", seed) for seed in range(10)]
