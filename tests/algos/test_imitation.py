"""Imitation: whose tokens carry loss, what the prompts are, and that it learns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from mempo_env.agents.base import TurnOutput, TurnRequest
from mempo_env.agents.codec import CodecTokenCounter
from mempo_env.agents.contexts import get_context
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.rollout import group_specs, rollout
from mempo_env.agents.row_batches import TokenRow
from mempo_env.agents.scoring import causal_lm
from mempo_env.agents.wording import Wording
from mempo_env.algos.config import OptimConfig, RunConfig, WarmStartConfig
from mempo_env.algos.imitation import demonstration_rows, imitate, imitation_batches
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.presets import get_preset
from mempo_env.algos.warm_start import warm_start
from mempo_env.errors import UserError
from mempo_env.prompt_styles import MEM1
from mempo_env.records import Episode

INSTRUCTIONS = "Answer all."
FREE = OptimConfig(lr=1e-9, max_grad_norm=1e9)


def demonstrate(policy: LoraPolicy, env: Any, count: int = 4) -> list[Episode]:
    expert = ExpertAgent("brief", context=policy.context, memory_counter=CodecTokenCounter(policy.codec))
    return rollout(expert, env, group_specs(range(count), 1), seed=0, step=0)


def test_demonstrations_are_worded_as_the_policy_is(make_policy: Any, env_factory: Any) -> None:
    policy = make_policy()
    episodes = demonstrate(policy, env_factory(policy))
    policy.wording = Wording(MEM1, "Sum up.")
    rows = demonstration_rows(episodes, policy, "Answer all.")
    turns = [turn for episode in episodes for turn in episode.turns]
    for row, turn in zip(rows, turns, strict=True):
        assert row.output_ids == tuple(policy.codec.encode_text(MEM1.write(turn.text)))
        assert b"<mem>" not in b"".join(policy.codec.token_bytes(row.output_ids))


def test_only_output_tokens_carry_loss(make_policy: Any, env_factory: Any) -> None:
    """Loss and gradient of one step against logits of whole sequences; a batch and its micro-batches agree."""
    policy = make_policy(adapter=False)
    rows = demonstration_rows(demonstrate(policy, env_factory(policy)), policy, INSTRUCTIONS)
    losses = []
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.output_ids]])
        table = policy.model(input_ids=ids).logits[0].log_softmax(-1)
        first = len(row.prompt_ids) - 1
        losses += [-table[first + n, token] for n, token in enumerate(row.output_ids)]
    mean = torch.stack(losses).mean()
    mean.backward()
    expected = {name: p.grad.clone() for name, p in policy.model.named_parameters()}
    for micro_batch_tokens in (100_000, 150):
        policy = make_policy(adapter=False)
        optimizer = Optimizer(trainable(policy.model), FREE, 1)
        steps = imitate(policy, optimizer, itertools.repeat(rows), 1, micro_batch_tokens=micro_batch_tokens)
        assert steps[0].loss == pytest.approx(mean.item(), rel=1e-5)
        assert steps[0].tokens == sum(map(len, rows))
        assert policy.weights_version == 1
        scale = max(float(value.abs().max()) for value in expected.values())
        for name, parameter in policy.model.named_parameters():
            assert float((parameter.grad - expected[name]).abs().max()) < 1e-5 * scale


@pytest.mark.parametrize("adapter", [True, False])
def test_checkpointing_changes_no_gradient(adapter: bool, make_policy: Any, env_factory: Any) -> None:
    rows = demonstration_rows(demonstrate(make_policy(), env_factory(make_policy())), make_policy(), INSTRUCTIONS)
    found = []
    for checkpointing in (False, True):
        policy = make_policy(adapter=adapter)
        policy.train_mode()
        calls: list[int] = []
        layer = causal_lm(policy.model).get_decoder().layers[1]  # type: ignore[operator]
        layer.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        optimizer = Optimizer(trainable(policy.model), FREE, 1)
        settings: dict[str, Any] = {"micro_batch_tokens": 400, "gradient_checkpointing": checkpointing}
        imitate(policy, optimizer, itertools.repeat(rows), 1, **settings)
        gradients = [parameter.grad.flatten() for parameter in policy.trainable_parameters()]
        found.append((torch.cat(gradients), len(calls)))  # (n,)
    (plain, once), (again, twice) = found
    assert float((plain - again).abs().max()) < 1e-6 * float(plain.abs().max())
    assert twice == 2 * once > 0


@pytest.mark.parametrize("context", ["memory", "history"])
def test_prompts_are_those_the_policy_would_be_given(context: str, make_policy: Any, env_factory: Any) -> None:
    policy = make_policy()
    policy.context = get_context(context)
    make = env_factory(policy, memory="required" if context == "memory" else "optional")
    episodes = demonstrate(policy, make)
    rows = demonstration_rows(episodes, policy, make().instructions)

    class Replay:
        """Says what the expert said, and notes what the policy would have been given."""

        name = "replay"

        def __init__(self) -> None:
            self.prompts: list[tuple[int, ...]] = []

        def act(self, requests: Sequence[TurnRequest]) -> list[TurnOutput]:
            self.prompts += [output.prompt_ids for output in policy.act(requests)]
            return [TurnOutput(said[request.key.group_id, request.key.turn], 0, 0) for request in requests]

    said = {(e.group_id, t): turn.text for e in episodes for t, turn in enumerate(e.turns)}
    policy.sampling = replace(policy.sampling, max_new_tokens=1)
    replay = Replay()
    for number in range(len(episodes)):
        rollout(replay, make, [group_specs(range(len(episodes)), 1)[number]], seed=0, step=0)
    assert [row.prompt_ids for row in rows] == replay.prompts
    assert [policy.codec.decode(row.output_ids) for row in rows] == [
        policy.codec.decode(policy.codec.encode_text(turn.text)) for e in episodes for turn in e.turns
    ]
    assert len(rows) > len(episodes)


def test_demonstrations_with_a_fault_are_left_out(make_policy: Any, env_factory: Any) -> None:
    policy = make_policy()
    episodes = demonstrate(policy, env_factory(policy))
    kept = demonstration_rows([episodes[0].replace(error="down"), *episodes[1:]], policy, INSTRUCTIONS)
    assert kept == demonstration_rows(episodes[1:], policy, INSTRUCTIONS)


def test_a_prompt_that_is_too_long_is_refused_not_cut(make_policy: Any, env_factory: Any) -> None:
    policy = make_policy()
    episodes = demonstrate(policy, env_factory(policy))
    policy.max_prompt_tokens = 20
    with pytest.raises(UserError, match="exceeds 20"):
        demonstration_rows(episodes, policy, INSTRUCTIONS)


def fake_rows(chunk: int) -> list[TokenRow]:
    return [TokenRow((chunk, n), tuple(range(n % 5 + 1))) for n in range(20)]


def test_batches_are_a_function_of_the_seed() -> None:
    def first(seed: int) -> list[list[TokenRow]]:
        return list(itertools.islice(imitation_batches(fake_rows, 40, seed), 12))

    assert first(3) == first(3)
    assert first(3) != first(4)


def test_batches_use_every_row_once() -> None:
    batches = imitation_batches(fake_rows, 40, 0)
    rows: list[TokenRow] = []
    while len(rows) < 40:
        batch = next(batches)
        assert 40 <= sum(map(len, batch)) < 40 + 7, "a batch ends with the row that fills it"
        rows += batch
    for chunk in (0, 1):
        assert sorted(row.prompt_ids for row in rows[20 * chunk : 20 * chunk + 20]) == [(chunk, n) for n in range(20)]


def test_empty_demonstrations_are_refused() -> None:
    with pytest.raises(UserError, match="has no turn"):
        next(imitation_batches(lambda chunk: [], 40, 0))


@pytest.fixture
def tiny_run() -> RunConfig:
    warm = WarmStartConfig(
        target="all", perfect_steps=6, demonstrator_steps=4, curriculum=((3, 1),), forget=0.5, goals=(1, 2),
        tokens_per_step=600, episodes_per_chunk=8, optim=OptimConfig(name="muon", lr=5e-3, schedule="linear"),
    )  # fmt: skip
    return replace(get_preset("tiny"), warm_start=warm)


def test_warm_start_learns_and_repeats_itself(make_policy: Any, tiny_run: RunConfig) -> None:
    records: list[Any] = []
    policies = []
    for _ in range(2):
        policy = make_policy(adapter=False)
        warm_start(tiny_run, policy, on_step=lambda step, record: records.append((step, record)))
        policies.append(policy)
    assert [step for step, _ in records] == 2 * list(range(10))
    assert records[:10] == records[10:]
    assert all(
        torch.equal(p, q) for p, q in zip(policies[0].model.parameters(), policies[1].model.parameters(), strict=True)
    )
    losses = [record.loss for _, record in records[:10]]
    assert losses[-1] < losses[0] - 1.5
    assert records[0][1].lr == pytest.approx(5e-3)
    assert 0 < records[9][1].lr < 2e-3


def test_parts_of_the_warm_start_differ_in_goals_and_flaws(
    make_policy: Any, tiny_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short tasks first, then the whole range, then the demonstrator; no task comes twice."""
    from mempo_env.algos import warm_start as module

    played: list[tuple[str, list[Episode]]] = []

    def spy(agent: Any, *rest: Any, **settings: Any) -> list[Episode]:
        episodes = rollout(agent, *rest, **settings)
        played.append((agent.name, episodes))
        return episodes

    monkeypatch.setattr(module, "rollout", spy)
    warm_start(tiny_run, make_policy(adapter=False))
    names = [name for name, _ in played]
    assert names[0] == "expert"
    assert names[-1] == "demonstrator(forget=0.5)"
    assert names == sorted(names, reverse=True), "the perfect expert comes first"
    goals = [{len(episode.task.goals) for episode in episodes} for _, episodes in played]
    assert goals[0] == {1}
    assert set().union(*goals) == {1, 2}
    seeds = [episode.seed for _, episodes in played for episode in episodes]
    assert len(set(seeds)) == len(seeds)


def test_the_ceiling_is_the_perfect_expert_and_leaves_no_trace(make_policy: Any, tiny_run: RunConfig) -> None:
    """What imitation could reach is what a demonstrator without flaws would have taught, to the bit; and the warm start
    that follows is the one that would have been without it."""

    def weights(policy: Any) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in policy.model.parameters()]

    def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
        return all(torch.equal(p, q) for p, q in zip(some, others, strict=True))

    plain, with_ceiling, perfect = (make_policy(adapter=False) for _ in range(3))
    warm_start(tiny_run, plain)
    warm_start(replace(tiny_run, warm_start=replace(tiny_run.warm_start, forget=0.0)), perfect)
    ceiling: list[list[torch.Tensor]] = []
    steps: list[int] = []
    warm_start(
        tiny_run,
        with_ceiling,
        on_ceiling=lambda: ceiling.append(weights(with_ceiling)),
        on_ceiling_step=lambda step, _: steps.append(step),
    )
    assert steps == [6, 7, 8, 9]
    assert same(weights(with_ceiling), weights(plain))
    assert same(ceiling[0], weights(perfect))
    assert not same(ceiling[0], weights(plain))


def test_a_ceiling_leaves_no_trace_in_dropout_either(make_policy: Any, tiny_run: RunConfig) -> None:
    found = []
    for ceiling in (None, lambda: None):
        policy = make_policy(dropout=0.3)
        policy.train_mode()
        warm_start(tiny_run, policy, on_ceiling=ceiling)
        found.append([parameter.detach().clone() for parameter in policy.trainable_parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def test_an_adapter_can_be_the_target(make_policy: Any, tiny_run: RunConfig) -> None:
    policy = make_policy()
    base = {n: p.clone() for n, p in policy.model.named_parameters() if "lora" not in n}
    warm_start(tiny_run, policy)
    assert all(torch.equal(p, base[n]) for n, p in policy.model.named_parameters() if "lora" not in n)
    assert any(bool(p.any()) for n, p in policy.model.named_parameters() if "lora_B" in n)
