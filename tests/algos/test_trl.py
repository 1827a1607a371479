"""GRPO against TRL's trainers: the same rows, returns and adapters; advantages, loss and every LoRA gradient.

TRL plays nothing here: what it would have sampled is handed to it, and from there on everything is its own code, on a
model of its own: rewards, padding, reference log-probs, advantages, loss, gradients. Episodes have one turn, so that
TRL's sequence is our turn and our episode.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from mempo_env.agents.policy import LoraPolicy
from mempo_env.algos.algorithm_config import GRPOConfig
from mempo_env.algos.base import Advantages, TokenBatch, TurnKey
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.training_rows import training_rows
from mempo_env.algos.update import Updater
from mempo_env.records import Group

trl = pytest.importorskip("trl", reason="TRL is not installed; pip install 'mempo-env[witness]'")

SIZE = 4
RETURNS = (1.0, 0.0, 0.0, 0.5, 0.25, 0.25, 0.25, 0.25, 3.0, -1.0, 0.125, 0.5)
BETA = 0.05
LONGEST = 96
"""Dr. GRPO's constant, TRL's ``max_completion_length``."""
STEP = OptimConfig(lr=2e-2, max_grad_norm=1e9)
TOLERANCE = 1e-6
# By default TRL multiplies the KL term by the ratio (DeepSeek-V3.2); GRPO's paper, and we, do not.
PLAIN: dict[str, Any] = {"loss_type": "grpo", "use_bias_correction_kl": False}


def randomise(policy: LoraPolicy, seed: int) -> LoraPolicy:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in trainable(policy.model):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


@pytest.fixture(scope="module")
def groups(shared_groups: Any) -> list[Group]:
    """Three groups of four one-turn episodes: turns of a demonstrator, cut out of their episodes, with our returns."""
    result = []
    for g, group in enumerate(shared_groups):
        chosen = [episode.turns[(i + g) % len(episode.turns)] for i, episode in enumerate(group)]
        rewarded = [dataclasses.replace(turn, reward=RETURNS[g * SIZE + i]) for i, turn in enumerate(chosen)]
        result.append(tuple(episode.replace(turns=(turn,)) for episode, turn in zip(group, rewarded, strict=True)))
    lengths = [len(turn.output_ids) for turn in turns(result)]
    assert len(set(lengths)) > 3, "the lengths must differ, or the averages could not be told apart"
    assert max(lengths) <= LONGEST
    return result


def turns(groups: Sequence[Group]) -> list[Any]:
    return [episode.turns[0] for group in groups for episode in group]


class Theirs:
    """A TRL trainer on a copy of a policy's model, with the adapter's weights under TRL's name for it.

    Args:
        kind: ``GRPO`` or ``RLOO``.
        policy: What is copied: base, adapter, tokenizer.
        groups: What TRL is told that it sampled.
        folder: Where it may write.
        reference_is_adapter: TRL's reference is a copy of the adapter as it is now; else the base.
        settings: Of TRL's config.
    """

    def __init__(
        self, kind: str, policy: LoraPolicy, groups: Sequence[Group], folder: Path, reference_is_adapter: bool = False,
        **settings: Any,
    ) -> None:  # fmt: skip
        self.rows = turns(groups)
        self.kind = kind
        wrapped: Any = policy.model
        base = copy.deepcopy(wrapped).unload()
        lora = copy.deepcopy(wrapped.peft_config["policy"])
        config = getattr(trl, f"{kind}Config")(
            output_dir=str(folder), per_device_train_batch_size=len(self.rows), num_generations=SIZE,
            max_completion_length=LONGEST, bf16=False, use_cpu=True, report_to=[], gradient_checkpointing=False,
            **({"beta": BETA} | settings),
        )  # fmt: skip
        model: Any = base
        if reference_is_adapter:
            model = get_peft_model(base, lora)  # called "default"; TRL copies it to "ref"
            self._copy_adapter(policy, model)
        self.trainer = getattr(trl, f"{kind}Trainer")(
            model=model,
            reward_funcs=lambda completions, **_: [turn.reward for turn in self.rows],
            args=config,
            train_dataset=importlib.import_module("datasets").Dataset.from_dict({"prompt": ["-"] * len(self.rows)}),
            processing_class=copy.deepcopy(policy.codec.tokenizer),
            peft_config=None if reference_is_adapter else lora,
        )
        self.trainer._generate = self._generate
        self.trainer.current_gradient_accumulation_steps = 1
        self.take(policy)
        self.trainer.model.train()

    def take(self, policy: LoraPolicy) -> None:
        """Gives TRL's adapter the policy's weights of now."""
        self._copy_adapter(policy, self.trainer.model)

    def batch(self) -> dict[str, Any]:
        """TRL's own batch: padding, masks, reference log-probs, advantages."""
        found: dict[str, Any] = self.trainer._generate_and_score_completions([{"prompt": "-"} for _ in self.rows])
        return found

    def logprobs(self, batch: dict[str, Any]) -> Tensor:
        """(B, O) log pi of now, by TRL."""
        ids, mask = (torch.cat([batch[f"prompt_{n}"], batch[f"completion_{n}"]], dim=1) for n in ("ids", "mask"))
        with torch.no_grad():
            found: Tensor = self.trainer._get_per_token_logps_and_entropies(
                self.trainer.model, ids, mask, batch["completion_ids"].shape[1]
            )[0]
        return found

    def gradients(self, batch: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
        """TRL's loss, and the gradient of each LoRA parameter by our names."""
        self.trainer.model.zero_grad()
        loss = self.trainer.compute_loss(self.trainer.model, batch)
        loss.backward()
        return float(loss.detach()), {
            name.replace(".default.", ".policy."): parameter.grad.clone()
            for name, parameter in self.trainer.model.named_parameters()
            if parameter.grad is not None
        }

    def _generate(self, prompts: list[Any]) -> Any:
        prompt_ids, output_ids = ([list(getattr(turn, f"{n}_ids")) for turn in self.rows] for n in ("prompt", "output"))
        texts = [turn.text for turn in self.rows]
        if self.kind == "RLOO":
            return prompt_ids, output_ids, texts
        return prompt_ids, output_ids, None, texts, None, {}, None, []

    @staticmethod
    def _copy_adapter(policy: LoraPolicy, model: Any) -> None:
        with torch.no_grad():
            for name, parameter in trainable(policy.model):
                model.get_parameter(name.replace(".policy.", ".default.")).copy_(parameter)


class Spy(GRPO):
    """Records the objective of the last minibatch: the sum of weighted token losses, as the updater forms it."""

    objective = 0.0

    def token_loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logged = super().token_loss(batch)
        self.last = (loss.detach(), batch.rows.mask)
        return loss, logged

    def critic_loss(self, policy: LoraPolicy, batch: TokenBatch, keys: Sequence[TurnKey]) -> None:
        weights = {row.key: row.weight for row in training_rows(self.groups, self.given, 0, self.token_weights)}
        loss, mask = self.last
        self.objective = sum(float((loss[n] * mask[n]).sum()) * weights[key] for n, key in enumerate(keys))

    def learn(self, policy: LoraPolicy, groups: Sequence[Group], advantages: Advantages, epochs: int) -> None:
        """Takes steps on all rows at once; what is left in ``.grad`` is the gradient before the last one."""
        self.groups, self.given = groups, advantages
        Updater(policy, self, Optimizer(trainable(policy.model), STEP, epochs), epochs=epochs).update(
            groups, advantages
        )


def our_gradients(policy: LoraPolicy) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in trainable(policy.model) if p.grad is not None}


def spread(groups: Sequence[Group], values: Tensor) -> Advantages:
    """One value per episode, on every token."""
    given = iter(values.tolist())
    return Advantages(
        {
            (g, i, 0): torch.full((episode.n_output,), next(given))
            for g, group in enumerate(groups)
            for i, episode in enumerate(group)
        }
    )


CASES: dict[str, tuple[GRPOConfig, dict[str, Any]]] = {
    "grpo": (GRPOConfig(beta=BETA), {}),
    "clip-higher": (GRPOConfig(beta=BETA, clip_low=0.05, clip_high=0.1), {"epsilon": 0.05, "epsilon_high": 0.1}),
    "token mean": (GRPOConfig(beta=BETA, aggregation="token"), {"loss_type": "dapo"}),
    "dr-grpo": (
        GRPOConfig(beta=BETA, aggregation="constant", divisor=LONGEST, normalise_std=False),
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
    ),
    "gspo": (
        GRPOConfig(beta=BETA, ratio="sequence", aggregation="sequence", clip_low=0.01, clip_high=0.02),
        {"importance_sampling_level": "sequence", "epsilon": 0.01, "epsilon_high": 0.02},
    ),
    "no KL": (GRPOConfig(beta=0.0), {"beta": 0.0}),
}


@pytest.mark.parametrize("moved", [False, True], ids=["first step", "second epoch"])
@pytest.mark.parametrize("case", list(CASES))
def test_loss_and_gradients(
    case: str, moved: bool, make_policy: Any, groups: list[Group], tmp_path: Path, record_property: Any
) -> None:
    """First step: the ratio is 1. Second epoch: the policy has moved, ratios are clipped, log pi_old is the first's."""
    config, settings = CASES[case]
    theirs = Theirs("GRPO", randomise(make_policy(), 1), groups, tmp_path, **(PLAIN | settings))
    batch = theirs.batch()
    advantages = spread(groups, batch["advantages"])
    if moved:
        batch["old_per_token_logps"] = theirs.logprobs(batch)
        once = randomise(make_policy(), 1)
        Spy(config).learn(once, groups, advantages, 1)
        theirs.take(once)
    their_loss, expected = theirs.gradients(batch)

    policy, ours = randomise(make_policy(), 1), Spy(config)
    ours.learn(policy, groups, advantages, 2 if moved else 1)
    found = our_gradients(policy)
    assert found.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    difference = max(float((found[name] - expected[name]).abs().max()) for name in found)
    record_property("largest_gradient_difference", difference)
    record_property("largest_gradient", scale)
    record_property("loss_difference", abs(ours.objective - their_loss))
    assert scale > 1e-3
    assert difference < min(TOLERANCE, 1e-4 * scale)
    assert ours.objective == pytest.approx(their_loss, abs=TOLERANCE)
    if moved:
        rows, mask = theirs.logprobs(batch) - batch["old_per_token_logps"], batch["completion_mask"]
        assert float((rows * mask).abs().max()) > config.clip_high, "some token must be beyond the clip"


def test_another_average_is_another_gradient(make_policy: Any, groups: list[Group], tmp_path: Path) -> None:
    """What the comparison above can see: with TRL's mean over sequences, our mean over tokens is far away."""
    theirs = Theirs("GRPO", randomise(make_policy(), 1), groups, tmp_path, **PLAIN)
    batch = theirs.batch()
    _, expected = theirs.gradients(batch)
    for config in (GRPOConfig(beta=BETA, aggregation="token"), GRPOConfig(beta=0.0), GRPOConfig(beta=2 * BETA)):
        policy = randomise(make_policy(), 1)
        Spy(config).learn(policy, groups, spread(groups, batch["advantages"]), 1)
        found = our_gradients(policy)
        assert max(float((found[name] - expected[name]).abs().max()) for name in found) > 100 * TOLERANCE


def test_with_a_frozen_copy_as_reference(make_policy: Any, groups: list[Group], tmp_path: Path) -> None:
    """Training goes on from an adapter: TRL's ``ref`` and our ``reference`` are that adapter as it was."""
    policy = randomise(make_policy(), 1)
    policy.add_frozen_copy()
    theirs = Theirs("GRPO", policy, groups, tmp_path, reference_is_adapter=True, **PLAIN)
    theirs.take(randomise(policy, 2))
    batch = theirs.batch()
    their_loss, expected = theirs.gradients(batch)
    ours = Spy(GRPOConfig(beta=BETA))
    ours.learn(policy, groups, spread(groups, batch["advantages"]), 1)
    found = our_gradients(policy)
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) < TOLERANCE
    assert ours.objective == pytest.approx(their_loss, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "config", "settings"),
    [
        ("GRPO", GRPOConfig(eps=1e-4), {}),
        ("GRPO", GRPOConfig(normalise_std=False), {"scale_rewards": "none"}),
        ("RLOO", GRPOConfig(normalise_std=False, return_baseline="leave_one_out"), {"beta": 0.0}),
    ],
    ids=["eps 1e-4", "no std", "leave one out"],
)
def test_advantages(
    kind: str, config: GRPOConfig, settings: dict[str, Any], make_policy: Any, groups: list[Group], tmp_path: Path,
    fake_scorer: Any, record_property: Any,
) -> None:  # fmt: skip
    """TRL adds 1e-4 to the standard deviation. One group has equal returns."""
    expected = Theirs(kind, make_policy(), groups, tmp_path, **settings).batch()["advantages"]
    tokens = GRPO(config).advantages(groups, fake_scorer()).tokens
    found = torch.tensor([float(value[0]) for value in tokens.values()])
    difference = float((found - expected).abs().max())
    record_property("largest_difference", difference)
    assert difference < 1e-6
    assert not bool(found[SIZE : 2 * SIZE].any())
    assert bool(found[:SIZE].any())
