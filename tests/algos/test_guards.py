"""Guards: what is not finite stops an update before a weight changes and is traced to its row; a KL that ends a run."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mempo_env.agents import scoring
from mempo_env.algos import update as update_module
from mempo_env.algos.algorithm_config import GRPOConfig
from mempo_env.algos.base import Advantages, TokenBatch, TurnKey
from mempo_env.algos.config import OptimConfig, TrainConfig
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.guards import NonFiniteError, row_to_blame, write_failure_row
from mempo_env.algos.losses import kl_k3
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.update import Updater
from mempo_env.cli import main
from mempo_env.errors import UserError

MARK = 0.8125
"""Advantage of the row that is broken, and of no other."""


class Marked(GRPO):
    """GRPO whose loss can be broken for the rows of the marked advantage, forward or backward only."""

    how = "none"

    def token_loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logged = super().token_loss(batch)
        marked = batch.advantages == MARK  # (B, O)
        if self.how == "loss":
            loss = torch.where(marked, torch.full_like(loss, math.inf), loss)
        if self.how == "gradient":  # 0 in the forward pass, 0 / 0 in the backward pass
            zero = torch.where(marked, batch.logprobs - batch.logprobs.detach(), 1.0)  # (B, O)
            loss = loss + torch.where(marked, zero.abs().sqrt(), 0.0)
        return loss, logged

    def critic_loss(self, policy: Any, batch: TokenBatch, keys: Any) -> Any:
        if self.how != "critic loss":
            return None
        marked = batch.advantages == MARK  # (B, O)
        return (policy.trainable_parameters()[0] ** 2).sum() + torch.where(marked, math.nan, 0.0), {}  # (B, O)


KEY: TurnKey = (1, 2, 1)


def marked_advantages(groups: Any) -> Advantages:
    tokens = {
        (g, i, t): torch.full((turn.n_output,), MARK if (g, i, t) == KEY else 0.5 - i)
        for g, group in enumerate(groups)
        for i, episode in enumerate(group)
        for t, turn in enumerate(episode.turns)
    }
    return Advantages(tokens)


def broken_logprobs(row: tuple[int, ...]) -> Callable[..., Any]:
    """``output_logprobs`` with a token of one row that has no probability."""
    real = scoring.output_logprobs

    def output_logprobs(model: Any, batch: Any, **settings: Any) -> Any:
        logprobs, entropy = real(model, batch, **settings)
        for index in range(len(batch.mask)):
            ids = tuple(batch.input_ids[index].tolist())
            if batch.prefix is not None:  # the row's beginning, which others share
                place = int(batch.prefix.of_row[index])
                ids = (*batch.prefix.input_ids[place, : batch.prefix.lengths[place]].tolist(), *ids)
            if ids[: len(row)] == row:
                hit = torch.zeros_like(batch.mask)  # (B, O)
                hit[index, 1] = True
                logprobs = logprobs.masked_fill(hit, -math.inf)
        return logprobs, entropy

    return output_logprobs


@pytest.mark.parametrize("budget", [700, 1_000_000], ids=["small micro-batches", "one"])
@pytest.mark.parametrize("what", ["log-probability", "loss", "gradient", "critic loss"])
def test_what_is_not_finite_is_traced_to_its_row(
    what: str, budget: int, make_policy: Any, shared_groups: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy, algorithm = make_policy(), Marked(GRPOConfig(beta=0.1))
    g, i, t = KEY
    turn = shared_groups[g][i].turns[t]
    ids = turn.prompt_ids + turn.output_ids
    every = [turn.prompt_ids + turn.output_ids for group in shared_groups for e in group for turn in e.turns]
    assert every.count(ids) == 1
    if what == "log-probability":
        monkeypatch.setattr(update_module, "output_logprobs", broken_logprobs(ids))
    algorithm.how = what
    updater = Updater(
        policy, algorithm, Optimizer(trainable(policy.model), OptimConfig(lr=0.1), 9), micro_batch_tokens=budget
    )
    before = [parameter.clone() for parameter in policy.trainable_parameters()]
    with pytest.raises(NonFiniteError, match=f"the {what} at group 1, rollout 2, turn 1 is not finite") as caught:
        updater.update(shared_groups, marked_advantages(shared_groups))
    assert all(torch.equal(p, q) for p, q in zip(policy.trainable_parameters(), before, strict=True))
    assert updater.optimizer.step_count == 0

    path = write_failure_row(tmp_path / "failures", 12, caught.value, shared_groups, policy.codec)
    assert path == tmp_path / "failures" / "step-000012.json"
    row = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (row["step"], row["not_finite"], row["rollout"], row["turn"]) == (12, what, 2, 1)
    assert row["group"] == shared_groups[g][i].group_id
    assert row["task"]["text"] == shared_groups[g][i].task.text
    assert row["output"] == turn.text
    assert row["output_ids"] == list(turn.output_ids)
    assert row["prompt"] == policy.codec.decode(turn.prompt_ids)
    assert row["advantages"] == [MARK] * turn.n_output
    assert row["sampler_logprobs"] == pytest.approx(turn.logprobs)
    if what == "log-probability":
        assert row["logprobs"][1] == "-inf"
        del row["logprobs"][1]
        assert row["logprobs"] == pytest.approx([p for n, p in enumerate(turn.logprobs) if n != 1], abs=1e-4)
    else:
        assert row["logprobs"] == pytest.approx(turn.logprobs, abs=1e-4)
        assert row["reference_logprobs"] == pytest.approx(turn.logprobs, abs=1e-4)
    if what in ("loss", "critic loss"):
        assert set(row[what.replace(" ", "_")]) == {"inf" if what == "loss" else "nan"}


def test_nothing_is_broken_without_the_mark(make_policy: Any, shared_groups: Any) -> None:
    policy = make_policy()
    updater = Updater(policy, Marked(), Optimizer(trainable(policy.model), OptimConfig(), 9))
    assert updater.update(shared_groups, marked_advantages(shared_groups))["train/optimizer_steps"] == 1


def test_a_sum_that_overflows_is_blamed_on_the_largest_row() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = Optimizer([("x", parameter)], OptimConfig(), 1)

    def backward(index: int) -> None:
        parameter.grad = torch.tensor([[2e38, 3e38, 1e38][index]])

    assert row_to_blame(3, optimizer, backward) == 1
    assert parameter.grad is None


# Through the front door -------------------------------------------------------------------------------------------


@pytest.fixture
def small_job() -> Callable[..., int]:
    """Calls ``mempo train`` on a job of seconds whose groups differ in return; gives the exit code."""
    flags = shlex.split(
        "--goals 1 --threads=1 --env-args.format-penalty 0.1 --env-args.distractors 2 --eval.episodes=0 "
        "--warm-start.perfect-steps=18 --warm-start.demonstrator-steps=2 --warm-start.tokens-per-step=600 "
        "--warm-start.episodes-per-chunk=16 --warm-start.goals 1 1 --warm-start.optim.warmup-steps 0 "
        "--train.groups-per-step=2 --train.group-size=3 --train.optim.lr 5e-3 --sampling.max-new-tokens=24 "
        "--tiny.layers=2 --tiny.width 64 --tiny.feed-forward 128 --lora.rank 4 --lora.alpha 8"
    )

    def call(*arguments: object) -> int:
        given = [*map(str, arguments)]
        try:
            main(["train", *given, *([] if "--resume" in given else flags)])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return call


@pytest.mark.parametrize("what", ["advantages", "loss"])
def test_a_run_that_diverges_keeps_its_last_checkpoint_and_the_row(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run, real, real_loss = tmp_path / "run", GRPO.advantages, GRPO.token_loss
    calls = []

    def advantages(self: GRPO, groups: Any, scorer: Any) -> Advantages:
        found = real(self, groups, scorer)
        calls.append(groups)
        if len(calls) == 3:
            found.tokens[1, 0, 0][0] = math.nan if what == "advantages" else MARK
        return found

    def token_loss(self: GRPO, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logged = real_loss(self, batch)
        return torch.where(batch.advantages == MARK, math.nan, loss), logged  # (B, O)

    with monkeypatch.context() as patch:
        patch.setattr(GRPO, "advantages", advantages)
        patch.setattr(GRPO, "token_loss", token_loss)
        assert small_job("--algo", "grpo", "--out", run, "--steps", 4, "--train.save-every", 2) == 2
    error = capsys.readouterr().err
    path = run / "failures" / "step-000002.json"
    says = {
        "advantages": "advantages are not finite: the advantage of algorithm 'grpo' at group 1, rollout 0, turn 0; the "
        "weights were left as they were; look for a division by 0 in it, and at the rewards and scores it is made of",
        "loss": "training diverged: the loss at group 1, rollout 0, turn 0 is not finite; the weights were left as "
        "they were; lower the learning rate",
    }
    assert error == (
        f"mempo: error: {says[what]}; its row is in {path} (go on from step-000002: mempo train --resume {run})\n"
    )
    row = json.loads(path.read_text())
    assert row[what][0] == "nan"
    assert row["output_ids"] == list(calls[2][1][0].turns[0].output_ids)
    assert row["group"] == "2/1"
    assert small_job("--resume", run) == 0
    assert (run / "checkpoints/step-000004").is_dir()


def test_a_run_ends_where_kl_is_above_the_threshold(
    tmp_path: Path, small_job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """At step 0 it is 0, after one update it is not. The algorithm itself asks for no KL here."""
    run = tmp_path / "run"
    flags = ("--algo", "grpo", "--grpo.beta", 0, "--out", run, "--steps", 5, "--train.save-every", 9)
    assert small_job(*flags, "--train.stop-kl", 1e-7) == 0
    told = " ".join(capsys.readouterr().out.split())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kl = [line.get("train/kl") for line in lines if line["phase"] == "train"]  # None: no row had an advantage
    done = len(kl)
    assert done < 5
    assert kl[-1] > 1e-7
    assert {value for value in kl[:-1] if value is not None} == {0.0}
    assert f"stopped after step {done} of 5: KL {kl[-1]:.3g} to the reference is above stop_kl=1e-07" in told
    assert (run / f"checkpoints/step-{done:06d}").is_dir()

    assert small_job("--resume", run, "--steps", 7) == 0
    assert f"stopped after step {done} of 7: KL {kl[-1]:.3g}" in " ".join(capsys.readouterr().out.split())
    assert not (run / f"checkpoints/step-{done + 1:06d}").exists()


def test_watching_kl_changes_no_weight(make_policy: Any, shared_groups: Any) -> None:
    """What it logs is the mean of k3 over the tokens; what it trains is what it would have trained."""
    results = []
    for watch in (False, True):
        policy, algorithm = make_policy(), GRPO(GRPOConfig(beta=0.0))
        optimizer = Optimizer(trainable(policy.model), OptimConfig(lr=1e-2), 9)
        updater = Updater(policy, algorithm, optimizer, watch_kl=watch)
        for _ in range(2):
            metrics = updater.update(shared_groups, algorithm.advantages(shared_groups, None))  # type: ignore[arg-type]
        results.append(([p.detach().clone() for p in policy.trainable_parameters()], metrics))
    (plain, without), (watched, metrics) = results
    assert all(torch.equal(p, q) for p, q in zip(plain, watched, strict=True))
    assert metrics.pop("train/kl") > 0
    assert metrics == without


def test_kl_is_the_same_watched_or_needed(make_policy: Any, shared_groups: Any) -> None:
    found = []
    for beta, watch in ((1e-12, False), (0.0, True)):
        policy, algorithm = make_policy(), GRPO(GRPOConfig(beta=beta))
        with torch.no_grad():
            for name, parameter in trainable(policy.model):
                parameter.add_(0.02 if "lora_B" in name else 0.0)
        advantages = marked_advantages(shared_groups)  # of no row all 0, so that both train on the same rows
        optimizer = Optimizer(trainable(policy.model), OptimConfig(), 9)
        found.append(
            Updater(policy, algorithm, optimizer, watch_kl=watch).update(shared_groups, advantages)["train/kl"]
        )
    assert found[0] == found[1] > 1e-4
    assert float(kl_k3(torch.tensor([-1.0]), torch.tensor([-1.0]))) == 0


def test_a_policy_that_is_its_own_reference_cannot_be_watched(make_policy: Any) -> None:
    policy = make_policy(adapter=False)
    optimizer = Optimizer(trainable(policy.model), OptimConfig(), 1)
    with pytest.raises(ValueError, match="set beta and stop_kl to 0"):
        Updater(policy, GRPO(GRPOConfig(beta=0.0)), optimizer, watch_kl=True)
    with pytest.raises(UserError, match="stop_kl=-1"):
        dataclasses.replace(TrainConfig(), stop_kl=-1)
