"""What a user's ``advantages()`` may get wrong is named before it is used; what is right passes as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mempo_env.agents.rollout import EnvPool
from mempo_env.algos.advantage_check import check_advantages
from mempo_env.algos.base import Advantages
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.guards import NonFiniteError
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.trainer import Trainer
from mempo_env.algos.update import Updater
from mempo_env.errors import UserError


@pytest.fixture
def groups(small_turn: Any, small_episode: Any) -> list[Any]:
    """One group: two turns, one turn, and an episode with a fault; every turn has four output tokens."""
    turn = small_turn("a")
    return [(small_episode(0, [turn, turn]), small_episode(1, [turn]), small_episode(2, [turn], error="down"))]


def right() -> dict[Any, Any]:
    return {(0, 0, 0): torch.ones(4), (0, 0, 1): torch.zeros(4), (0, 1, 0): -torch.ones(4), (0, 2, 0): torch.zeros(4)}


def turn(value: Any) -> Callable[[], Any]:
    """Advantages that are right but for one turn."""
    return lambda: Advantages(right() | {(0, 0, 1): value})


def without(*key: int) -> Any:
    return Advantages({k: value for k, value in right().items() if k != key})


WRONG: list[tuple[str, Callable[[], Any], str]] = [
    ("nothing", lambda: None, r"must return Advantages \(mempo_env.algos.base\), not None"),
    ("a dict", right, "must return Advantages .*, not a value of type dict"),
    ("a list", lambda: Advantages([torch.ones(4)]), "tokens as a mapping of .*, not a value of type list"),  # type: ignore[arg-type]
    ("missing", lambda: without(0, 1, 0), r"gave nothing for \(group, episode, turn\) = \(0, 1, 0\); expected a floa"),
    ("unknown", lambda: Advantages(right() | {(1, 0, 0): torch.ones(4)}), r"gave a turn \(1, 0, 0\) that was not pl"),
    ("by number", lambda: Advantages(dict(enumerate(right().values()))), "gave a turn 0 that was not played"),  # type: ignore[arg-type]
    ("a number", turn(0.5), r"gave a value of type float for .* = \(0, 0, 1\); expected a floating tensor"),
    ("0-d", turn(torch.tensor(0.5)), r"gave a tensor of float32 and shape \(\) for .* = \(0, 0, 1\); .* shape \(4,\)"),
    ("2-d", turn(torch.ones(1, 4)), r"gave a tensor of float32 and shape \(1, 4\) for .* = \(0, 0, 1\)"),
    ("integers", turn(torch.ones(4, dtype=torch.int64)), r"gave a tensor of int64 and shape \(4,\) for .* a floating"),
    ("too short", turn(torch.ones(3)), r"gave a tensor of float32 and shape \(3,\) .* of shape \(4,\), one value per"),
    ("metrics", lambda: Advantages(right(), None), "metrics as a mapping of names to numbers, not None"),  # type: ignore[arg-type]
    ("a metric", lambda: Advantages(right(), {"x": torch.ones(2)}), r"float32 and shape \(2,\) for the metric 'x'"),  # type: ignore[dict-item]
    ("a metric's name", lambda: Advantages(right(), {3: 1.0}), "a metric whose name is 3; expected a string"),  # type: ignore[dict-item]
]  # fmt: skip


@pytest.mark.parametrize(("made", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_mistake_is_named(made: Callable[[], Any], message: str, groups: list[Any]) -> None:
    with pytest.raises(UserError, match=rf"^algorithm 'mine': advantages\(\) .*{message}"):
        check_advantages("mine", groups, made())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_blames_no_learning_rate(value: float, groups: list[Any]) -> None:
    found = turn(torch.tensor([0.0, 0.0, value, 0.0]))()
    with pytest.raises(
        NonFiniteError, match=r"advantages are not finite: .*'mine' at group 0, rollout 0, turn 1"
    ) as caught:
        check_advantages("mine", groups, found)
    assert "learning rate" not in str(caught.value)
    assert caught.value.key == (0, 0, 1)


def test_what_is_right_passes_as_it_is(groups: list[Any]) -> None:
    double = {key: value.double() for key, value in right().items()}
    nothing_played: dict[Any, Any] = {}
    for found in (
        Advantages(right(), {"x": 1.0, "n": 3, "not measured": math.nan}),
        Advantages(double),
        without(0, 2, 0),  # of an episode with a fault, which nothing reads
        turn(torch.ones(4))(),
    ):
        before = {key: value.clone() for key, value in found.tokens.items()}
        assert check_advantages("mine", groups, found) is found
        assert before.keys() == found.tokens.keys()
        assert all(torch.equal(before[key], value) for key, value in found.tokens.items())
    assert check_advantages("mine", [], Advantages(nothing_played)).tokens is nothing_played


class Forgetful(GRPO):
    """Gives no advantage for the last turn of the batch."""

    name = "forgetful"

    def advantages(self, groups: Any, scorer: Any) -> Advantages:
        found = super().advantages(groups, scorer)
        found.tokens.popitem()
        return found


def test_the_trainer_asks_before_anything_is_learned(make_imitated: Any, env_factory: Any, fake_scorer: Any) -> None:
    policy, algorithm = make_imitated(), Forgetful()
    updater = Updater(policy, algorithm, Optimizer(trainable(policy.model), OptimConfig(lr=1e-3), 9))
    with EnvPool(env_factory(policy, goals=1)) as pool:
        trainer = Trainer(policy, algorithm, pool, fake_scorer(), updater, groups_per_step=1, group_size=2, seed=0)
        with pytest.raises(UserError, match=r"^algorithm 'forgetful': advantages\(\) gave nothing for .* = \(0, 1, "):
            trainer.step()
    assert trainer.steps_done == updater.optimizer.step_count == 0
