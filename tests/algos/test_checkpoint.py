"""Checkpoints: going on is bit for bit what never stopping would have been, and a broken write harms nothing."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.console import Console

from mempo_env.agents.adapters import adapter_state
from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.rollout import EnvPool
from mempo_env.agents.settings import LoraSettings, SamplingConfig, TinyConfig
from mempo_env.algos.algorithm_config import GRPOConfig, MemPOConfig
from mempo_env.algos.base import Algorithm
from mempo_env.algos.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from mempo_env.algos.config import EnvSettings, EvalConfig, OptimConfig, RunConfig, TrainConfig, WarmStartConfig
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.job import load_run_policy, resume_run, start_run
from mempo_env.algos.logs import read_metrics
from mempo_env.algos.memory_reward import AnswerScorer
from mempo_env.algos.mempo import MemPO
from mempo_env.algos.optim import make_optimizer, trainable
from mempo_env.algos.ppo import PPO
from mempo_env.algos.ppo_config import PPOConfig
from mempo_env.algos.trainer import Trainer
from mempo_env.algos.update import Updater
from mempo_env.errors import UserError


@pytest.fixture
def make_trainer(make_imitated: Any, env_factory: Any) -> Any:
    """Trainers that go on from imitated weights, in a real environment, with every kind of state."""
    pools: list[EnvPool] = []

    def make(algorithm: Algorithm[Any] | None = None, seed: int = 0) -> Trainer:
        policy = make_imitated(max_new_tokens=32)
        algorithm = algorithm or MemPO()
        algorithm.setup(policy)
        pool = EnvPool(env_factory(policy, goals=1, format_penalty=0.1))
        pools.append(pool)
        optim = OptimConfig(lr=5e-3, warmup_steps=2, schedule="linear", decay_from=0.2)
        return Trainer(
            policy,
            algorithm,
            pool,
            AnswerScorer(policy, pool.memory_env.instructions),
            Updater(policy, algorithm, make_optimizer(policy, algorithm, optim, 12), epochs=2, minibatches=2),
            groups_per_step=2,
            group_size=3,
            seed=seed,
        )

    yield make
    for pool in pools:
        pool.close()


def without_time(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def parameters(policy: LoraPolicy) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}


def assert_same(one: Any, two: Any) -> None:
    """Bit for bit, in any nesting."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            assert_same(left, right)
    else:
        assert one == two


class WithState(GRPO):
    """GRPO with a parameter of its own and a running number, as an algorithm with a controller has."""

    def setup(self, policy: LoraPolicy) -> None:
        policy.add_frozen_copy("critic")
        for name, parameter in policy.model.named_parameters():
            if ".critic.lora_A" in name:
                parameter.requires_grad_(True)
        self.bias = torch.nn.Parameter(torch.zeros(1))
        self.calls = 0

    def advantages(self, groups: Any, scorer: Any) -> Any:
        self.calls += 1
        return super().advantages(groups, scorer)

    def critic_loss(self, policy: Any, batch: Any, keys: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        pull = sum((p**2).sum() for n, p in policy.model.named_parameters() if ".critic.lora_A" in n)
        return (self.bias - self.calls) ** 2 + 0.01 * pull + torch.zeros_like(batch.logprobs), {}

    def extra_parameters(self) -> Iterator[torch.nn.Parameter]:
        yield self.bias

    def state_dict(self) -> dict[str, object]:
        return {"bias": self.bias.detach(), "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.bias.copy_(state["bias"])
        self.calls = int(state["calls"])


@pytest.mark.parametrize("algorithm", [MemPO, PPO, WithState])
def test_going_on_is_never_having_stopped(algorithm: Any, make_trainer: Any, tmp_path: Path) -> None:
    whole = make_trainer(algorithm())
    expected = [without_time(whole.step().metrics) for _ in range(4)]

    first = make_trainer(algorithm())
    found = [without_time(first.step().metrics) for _ in range(2)]
    path = save_checkpoint(tmp_path, 2, first.policy, first.state_dict(), algorithm.name, keep=2)
    second = make_trainer(algorithm())
    state, warnings = load_checkpoint(path, second.policy, algorithm.name)
    assert warnings == []
    second.load_state_dict(state)
    assert second.steps_done == 2
    assert second.policy.weights_version == first.policy.weights_version > 0
    found += [without_time(second.step().metrics) for _ in range(2)]

    assert found == expected
    assert_same(parameters(second.policy), parameters(whole.policy))
    assert_same(second.state_dict(), whole.state_dict())
    start = make_trainer(algorithm()).policy
    moved = [n for n, p in start.model.named_parameters() if not torch.equal(p, parameters(whole.policy)[n])]
    assert any("lora_B.policy" in name for name in moved), "it must have learnt, or nothing was compared"
    assert any("lora_B.critic" in name for name in moved) is (algorithm is PPO)
    assert len({metrics["train/loss"] for metrics in expected}) == 4
    assert len({metrics["train/lr"] for metrics in expected}) > 2


def test_dropout_is_keyed_by_seed_and_step(make_trainer: Any) -> None:
    """Not drawn from what the process happened to have drawn before."""
    found = []
    for history in (1, 2):
        torch.manual_seed(history)
        trainer = make_trainer(GRPO())
        for layer in trainer.policy.model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.lora_dropout["policy"] = torch.nn.Dropout(0.3)
        before, state = parameters(trainer.policy), torch.get_rng_state()
        trainer.step()
        assert torch.equal(torch.get_rng_state(), state), "the global generator is as it was"
        assert not same_weights(parameters(trainer.policy), before)
        found.append(parameters(trainer.policy))
    assert_same(*found)


def test_the_reference_of_an_adapter_that_is_trained_on_comes_back(make_trainer: Any, tmp_path: Path) -> None:
    """As after a warm start of the adapter: the third, frozen adapter is what the policy's was when training began.

    The trainer that goes on copies its own fresh adapter, as a resume does, and must not keep that copy.
    """

    first = make_trainer(GRPO(GRPOConfig(beta=0.05)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in trainable(first.policy.model):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    first.policy.add_frozen_copy()
    begun = {name: value.clone() for name, value in adapter_state(first.policy.model, "policy").items()}
    first.step()
    path = save_checkpoint(tmp_path, 1, first.policy, first.state_dict(), "grpo", keep=1)
    second = make_trainer(GRPO(GRPOConfig(beta=0.05)))
    second.policy.add_frozen_copy()
    assert not same_weights(adapter_state(second.policy.model, "reference"), begun)
    second.load_state_dict(load_checkpoint(path, second.policy, "grpo")[0])
    for trainer in (first, second):
        assert same_weights(adapter_state(trainer.policy.model, "reference"), begun)
        assert not same_weights(adapter_state(trainer.policy.model, "policy"), begun)
    expected, found = (without_time(trainer.step().metrics) for trainer in (first, second))
    assert found == expected
    assert expected["train/kl"] > 0


def same_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_random_states_come_back(make_policy: Any, tmp_path: Path) -> None:
    policy = make_policy()
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    np.random.standard_normal()  # noqa: NPY002 - leaves half a pair in the generator
    path = save_checkpoint(tmp_path, 0, policy, {}, "grpo", keep=1)

    def draw() -> tuple[float, ...]:
        return random.random(), float(np.random.standard_normal()), float(torch.rand(1))  # noqa: NPY002

    expected = draw()
    assert draw() != expected
    load_checkpoint(path, policy, "grpo")
    assert draw() == expected


def test_another_algorithm_is_refused_before_anything_is_loaded(make_policy: Any, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, make_policy(), {}, "grpo", keep=1)
    policy = make_policy(seed=1)
    before = parameters(policy)
    with pytest.raises(UserError, match=r"checkpoint of 'grpo', not of 'mempo'.*without --algo"):
        load_checkpoint(path, policy, "mempo")
    assert_same(parameters(policy), before)


def test_facts_of_the_machine_that_differ_are_named(
    make_policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    path = save_checkpoint(tmp_path, 0, policy, {}, "grpo", keep=1)
    assert load_checkpoint(path, policy, "grpo")[1] == []
    torch.set_num_threads(2)
    try:
        (warning,) = load_checkpoint(path, policy, "grpo")[1]
    finally:
        torch.set_num_threads(1)
    assert warning == "threads was 1 and is 2: the run goes on, but not bit for bit"
    meta = json.loads((path / "meta.json").read_text())
    meta["machine"] |= {"torch": "2.0.0", "dtype": "torch.float64"}
    (path / "meta.json").write_text(json.dumps(meta))
    assert [line.split()[0] for line in load_checkpoint(path, policy, "grpo")[1]] == ["torch", "dtype"]


def test_newest_is_the_newest_and_only_some_are_kept(make_policy: Any, tmp_path: Path) -> None:
    policy, folder = make_policy(), tmp_path / "checkpoints"
    for step in (1, 999_999, 1_000_000, 20):  # a seventh digit must not sort below
        save_checkpoint(folder, step, policy, {}, "grpo", keep=3)
    assert [path.name for path in list_checkpoints(folder)] == ["step-000020", "step-999999", "step-1000000"]
    assert latest_checkpoint(tmp_path) == folder / "step-1000000"
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_a_torn_checkpoint_is_ignored(make_policy: Any, tmp_path: Path) -> None:
    policy, folder = make_policy(), tmp_path / "checkpoints"
    save_checkpoint(folder, 1, policy, {}, "grpo", keep=3)
    shutil.copytree(folder / "step-000001", folder / ".step-000002.partial")
    (folder / "step-000003").mkdir()
    (folder / "step-notes").mkdir()
    assert latest_checkpoint(tmp_path) == folder / "step-000001"
    save_checkpoint(folder, 4, policy, {}, "grpo", keep=3)
    assert not (folder / ".step-000002.partial").exists(), "what a killed process left is cleared away"


@pytest.mark.parametrize("file", ["state.pt", "adapters/policy/adapter_model.safetensors", "meta.json"])
def test_a_damaged_file_is_named(file: str, make_policy: Any, tmp_path: Path) -> None:
    policy = make_policy()
    path = save_checkpoint(tmp_path, 1, policy, {"weights": torch.ones(1000)}, "grpo", keep=1)
    data = (path / file).read_bytes()
    (path / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=path.name):
        load_checkpoint(path, policy, "grpo")


def test_a_checkpoint_runs_no_code(make_policy: Any, tmp_path: Path) -> None:
    """A pickle can hold calls; ours hold plain values and are read as such."""

    class Evil:
        def __reduce__(self) -> Any:
            return (tmp_path / "ran").write_text, ("x",)

    policy = make_policy()
    path = save_checkpoint(tmp_path, 1, policy, {}, "grpo", keep=1)
    torch.save({"random": Evil()}, path / "state.pt")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path, policy, "grpo")
    assert not (tmp_path / "ran").exists()


# Disks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2_000, 100_000], ids=["adapter does not fit", "state does not fit"])
@pytest.mark.parametrize("step", [1, 2], ids=["same step", "next step"])
def test_a_full_disk_leaves_the_old_checkpoint(
    size: int, step: int, make_policy: Any, tmp_path: Path, files_of_at_most: Any
) -> None:
    policy, folder = make_policy(), tmp_path / "checkpoints"
    old = save_checkpoint(folder, 1, policy, {"weights": torch.arange(100_000)}, "grpo", keep=1)
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    with (
        files_of_at_most(size),
        pytest.raises(UserError, match=rf"step-00000{step} cannot be written: .*free some space"),
    ):
        save_checkpoint(folder, step, policy, {"weights": torch.zeros(100_000)}, "grpo", keep=1)
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.iterdir()] == ["step-000001"]
    state, _ = load_checkpoint(old, policy, "grpo")
    assert torch.equal(state["weights"], torch.arange(100_000))


def test_a_failing_rename_brings_the_old_one_back(
    make_policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    save_checkpoint(tmp_path, 1, policy, {"n": 1}, "grpo", keep=1)
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if source.name.endswith(".partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(tmp_path, 1, policy, {"n": 2}, "grpo", keep=1)
    assert load_checkpoint(tmp_path / "step-000001", policy, "grpo")[0] == {"n": 1}


def test_an_error_that_is_not_the_disks_is_not_blamed_on_it(make_policy: Any, tmp_path: Path) -> None:
    class Unwritable:
        def __reduce__(self) -> Any:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        save_checkpoint(tmp_path, 1, make_policy(), {"x": Unwritable()}, "grpo", keep=1)
    assert list(tmp_path.iterdir()) == []


# The whole job ----------------------------------------------------------------------------------------------------


def small_run(out: Path, target: Any, steps: int) -> RunConfig:
    return RunConfig(
        out=str(out),
        goals=(1,),
        steps=steps,
        threads=1,
        env_args=EnvSettings(outcome="fraction", instructions="terse", format_penalty=0.1, distractors=2),
        tiny=TinyConfig(layers=2, width=64, heads=4, feed_forward=128),
        lora=LoraSettings(rank=4, alpha=8),
        sampling=SamplingConfig(max_new_tokens=24 if target == "all" else 8),
        warm_start=WarmStartConfig(
            target=target,
            perfect_steps=18 if target == "all" else 4,
            demonstrator_steps=2,
            goals=(1, 1),
            tokens_per_step=600,
            episodes_per_chunk=16,
            optim=OptimConfig(name="muon", lr=5e-3),
        ),
        train=TrainConfig(
            groups_per_step=2, group_size=3, save_every=2, keep_checkpoints=9, optim=OptimConfig(lr=5e-3)
        ),
        eval=EvalConfig(goals=(1,), episodes=0),
    )


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("target", "algo", "settings"),
    [
        ("all", "mempo", MemPOConfig()),
        ("adapter", "grpo", GRPOConfig(beta=0.01)),
        ("all", "ppo", PPOConfig(critic_lr_factor=2.0)),
        ("adapter", "ppo", PPOConfig(kl_in="loss", beta=0.01)),
    ],
)
def test_a_job_that_is_resumed(target: Any, algo: str, settings: Any, tmp_path: Path) -> None:
    """Through the front door, with the weights that the warm start made and both kinds of reference."""
    console = Console(file=StringIO(), width=200)
    config = dataclasses.replace(small_run(tmp_path / "whole", target, 4), algo=algo)
    whole = start_run(config, settings, console)
    # What a process leaves that was killed after step 3, while it logged step 4.
    half = Path(shutil.copytree(whole, tmp_path / "half"))
    shutil.rmtree(half / "checkpoints/step-000004")
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "train", "st')
    resume_run(half, console)

    for phase, count in (("train", 4), ("imitation", config.warm_start.perfect_steps + 2)):
        expected, found = read_metrics(whole, phase), read_metrics(half, phase)
        assert [line["step"] for line in found] == list(range(count))
        assert [without_time(line) for line in found] == [without_time(line) for line in expected]
    ours, theirs = (torch.load(run / "checkpoints/step-000004/state.pt") for run in (half, whole))
    assert_same(ours, theirs)
    one, two = load_run_policy(half), load_run_policy(whole)
    assert_same(parameters(one), parameters(two))
    assert any(bool(p.any()) for n, p in parameters(one).items() if "lora_B.policy" in n)
    reference, critic = ("reference",) * (target == "adapter"), ("critic",) * (algo == "ppo")
    assert one.adapters == ("policy", *reference, *critic)
    assert bool(ours["algorithm"]) is bool(critic)
    if target == "adapter":  # the reference is what reinforcement learning began with, also after the resume
        first, last = (half / f"checkpoints/step-{step}/adapters" for step in ("000000", "000004"))
        begun = adapter_bytes(first / "policy")
        assert adapter_bytes(first / "reference") == adapter_bytes(last / "reference") == begun
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "ratio 1.000000 (1), KL 0.0e+00 (0)" in text
    assert "at step 2" in text
    resume_run(half, console, steps=5)
    assert [line["step"] for line in read_metrics(half, "train")] == list(range(5))
    assert json.loads((half / "config.json").read_text())["run"]["steps"] == 5
    with pytest.raises(UserError, match=rf"checkpoint of '{algo}', not of '"):
        resume_run(half, console, algo="grpo" if algo == "mempo" else "mempo")
    with pytest.raises(UserError, match="at step 5 already"):
        resume_run(half, console, steps=3)
