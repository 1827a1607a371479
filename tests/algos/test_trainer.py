"""The loop: what a step plays is a function of its number, and what it reports is counted right."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mempo_env.actions import FormatError, FormatErrorKind
from mempo_env.agents.rollout import EnvPool
from mempo_env.algos.base import Advantages
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.mempo import MemPO
from mempo_env.algos.metrics import advantage_metrics, rollout_metrics
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.trainer import Trainer, task_seed
from mempo_env.algos.update import Updater


def test_task_seeds_are_apart_and_below_those_of_evaluation() -> None:
    seeds = {task_seed(seed, step, index) for seed in range(3) for step in range(40) for index in range(12)}
    assert len(seeds) == 3 * 40 * 12
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert task_seed(1, 23, 4) != task_seed(12, 3, 4) != task_seed(1, 2, 34)


def make_trainer(policy: Any, env_factory: Any, scorer: Any, seed: int = 0, **env: Any) -> Trainer:
    algorithm = MemPO()
    updater = Updater(policy, algorithm, Optimizer(trainable(policy.model), OptimConfig(lr=1e-3), 9))
    pool = EnvPool(env_factory(policy, goals=1, **env))
    return Trainer(policy, algorithm, pool, scorer, updater, groups_per_step=2, group_size=3, seed=seed)


def test_what_a_step_plays_depends_on_seed_and_number_alone(
    make_imitated: Any, env_factory: Any, fake_scorer: Any
) -> None:
    trainer = make_trainer(make_imitated(), env_factory, fake_scorer())
    played = trainer.collect(5)
    assert trainer.collect(5) == played
    other = make_trainer(make_imitated(), env_factory, fake_scorer(), seed=1)
    assert other.collect(5) != played != trainer.collect(6)
    assert [[episode.rollout_id for episode in group] for group in played] == [[0, 1, 2]] * 2
    for group in played:
        assert len({episode.task for episode in group}) == 1
        assert len({episode.turns[0].prompt_ids for episode in group}) == 1
        assert len({episode.turns[0].output_ids for episode in group}) > 1
    assert played[0][0].task != played[1][0].task
    trainer.envs.close()
    other.envs.close()


def test_first_step_checks_itself(make_imitated: Any, env_factory: Any, fake_scorer: Any) -> None:
    """Ratio 1, KL 0, a small gap; and the update reached the weights that sample, far beyond that gap."""
    trainer = make_trainer(make_imitated(), env_factory, fake_scorer())
    first = trainer.step().metrics
    assert first["train/ratio"] == 1.0
    assert first["train/kl"] == 0.0
    assert first["train/sampler_mismatch_max"] < 1e-4
    assert first["train/sampler_moved"] > 100 * first["train/sampler_mismatch"]
    parts = [first[f"time/{part}_s"] for part in ("sampling", "scoring", "update")]
    assert min(parts) > 0
    assert first["time/step_s"] >= sum(parts)
    second = trainer.step().metrics
    assert "train/sampler_moved" not in second
    assert second["train/sampler_mismatch_max"] < 1e-4
    assert trainer.steps_done == trainer.policy.weights_version == 2
    trainer.envs.close()


def test_cut_prompts_and_outputs_are_counted(
    make_imitated: Any, env_factory: Any, fake_scorer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_imitated(max_new_tokens=6)
    trainer = make_trainer(policy, env_factory, fake_scorer())
    metrics = trainer.step().metrics
    assert metrics["rollout/cut_outputs"] > 0.5
    assert metrics["rollout/cut_prompts"] == 0
    real = trainer.collect

    def collect(step: int) -> Any:
        policy.truncated_prompts += 3  # as the policy counts them; of this step alone
        return real(step)

    monkeypatch.setattr(trainer, "collect", collect)
    assert [trainer.step().metrics["rollout/cut_prompts"] for _ in range(2)] == [3, 3]
    trainer.envs.close()


def test_rollout_metrics_by_hand(shared_groups: Any) -> None:
    groups = [(shared_groups[0][0].replace(error="down"), *shared_groups[0][1:]), *shared_groups[1:]]
    valid = [episode for group in groups for episode in group if episode.error is None]
    turns = [turn for episode in valid for turn in episode.turns]
    metrics = rollout_metrics(groups)
    assert metrics["rollout/episodes"] == 12
    assert metrics["rollout/errors"] == 1
    assert metrics["rollout/return"] == pytest.approx(sum(e.episode_return for e in valid) / 11)
    assert metrics["rollout/f1"] == pytest.approx(sum(e.scores["f1"] for e in valid) / 11)
    assert metrics["rollout/turns"] == pytest.approx(len(turns) / 11)
    assert metrics["rollout/reward/outcome"] == pytest.approx(sum(e.outcome for e in valid) / 11)
    assert metrics["rollout/tool_calls"] == pytest.approx(sum(e.turns[-1].info["tool_calls"] for e in valid) / 11)
    assert metrics["memory/written"] == 1
    parts = [metrics[f"rollout/tokens/{name}"] for name in ("other", "memory", "think", "tool_call", "answer")]
    assert sum(parts) == pytest.approx(sum(turn.n_output for turn in turns) / len(turns))


def test_metrics_of_nothing_but_faults(shared_groups: Any) -> None:
    group = tuple(episode.replace(error="down") for episode in shared_groups[0])
    assert rollout_metrics([group]) == {"rollout/episodes": 4, "rollout/errors": 4}


def test_advantages_by_segment_by_hand(small_turn: Any, small_episode: Any) -> None:
    """Turns of four tokens, two of the memory and two of the answer; an episode with a fault does not count."""
    group = (small_episode(0, [small_turn("a"), small_turn("b")]), small_episode(1, [small_turn("c")]))
    failed = small_episode(2, [small_turn("d")], error="down")
    tokens = {
        (0, 0, 0): torch.tensor([1.0, 2.0, 0.5, 0.5]),
        (0, 0, 1): torch.tensor([0.0, 0.0, 0.5, 0.5]),
        (0, 1, 0): torch.tensor([-3.0, -3.0, -1.0, -1.0]),
        (0, 2, 0): torch.full((4,), 9.0),
    }
    assert advantage_metrics([(*group, failed)], Advantages(tokens)) == {
        "train/advantage/memory": pytest.approx(-3 / 6),
        "train/advantage_abs/memory": pytest.approx(9 / 6),
        "train/advantage/answer": 0.0,
        "train/advantage_abs/answer": pytest.approx(4 / 6),
    }
    assert advantage_metrics([(failed,)], Advantages(tokens | {(0, 0, 0): tokens[0, 2, 0]})) == {}


def test_format_errors_are_counted_by_kind(shared_groups: Any) -> None:
    episode = shared_groups[0][0]
    wrong = dataclasses.replace(episode.turns[0], action=FormatError(FormatErrorKind.BAD_JSON, "m"))
    metrics = rollout_metrics([(episode.replace(turns=(wrong, *episode.turns[1:])),)])
    assert metrics["rollout/format_errors"] == pytest.approx(1 / len(episode.turns))
    assert metrics["rollout/format_errors/bad_json"] == metrics["rollout/format_errors"]
    assert all(metrics[f"rollout/format_errors/{kind}"] == 0 for kind in FormatErrorKind if kind != "bad_json")


def test_a_memory_that_all_tasks_share_shows_as_collapse(shared_groups: Any) -> None:
    assert rollout_metrics(shared_groups)["memory/distinct"] > 0.5
    same = [
        tuple(e.replace(turns=tuple(dataclasses.replace(t, memory="same") for t in e.turns)) for e in group)
        for group in shared_groups
    ]
    assert rollout_metrics(same)["memory/distinct"] == 0
