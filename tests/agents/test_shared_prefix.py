"""Shared prefixes: clusters save the most they can, and what is computed once equals what is computed row by row."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from mempo_env.agents.models import add_lora
from mempo_env.agents.row_batches import TokenRow, collate, micro_batches, shared_clusters
from mempo_env.agents.scoring import can_share, causal_lm, output_logprobs, score_rows
from mempo_env.agents.settings import LoraSettings
from mempo_env.agents.shared_prefix import SHARING_MODELS, Cluster, clusters, saved_tokens

IDS = st.integers(1, 3)
PROMPTS = st.lists(st.lists(IDS, min_size=1, max_size=6).map(tuple), min_size=1, max_size=6)


def saved_by(prompts: list[tuple[int, ...]], parts: list[list[int]]) -> int:
    """Tokens saved by clusters that are given, each with its longest possible prefix."""
    saved = 0
    for part in parts:
        shared = min(len(prompts[index]) for index in part) - 1
        while any(prompts[index][:shared] != prompts[part[0]][:shared] for index in part):
            shared -= 1
        saved += shared * (len(part) - 1)
    return saved


@given(PROMPTS)
@settings(deadline=None)
def test_the_clusters_are_a_partition_that_saves_no_less_than_simple_ones(prompts: list[tuple[int, ...]]) -> None:
    found = clusters(prompts)
    assert sorted(index for cluster in found for index in cluster.rows) == list(range(len(prompts)))
    for cluster in found:
        assert len({prompts[index][: cluster.shared] for index in cluster.rows}) == 1
        assert cluster.shared < min(len(prompts[index]) for index in cluster.rows)
        assert len(cluster.rows) > 1 or cluster.shared == 0
    everyone = list(range(len(prompts)))
    equal = [[index for index in everyone if prompts[index] == prompt] for prompt in dict.fromkeys(prompts)]
    by_first = [[index for index in everyone if prompts[index][0] == first] for first in {p[0] for p in prompts}]
    assert saved_tokens(found) == saved_by(prompts, [list(cluster.rows) for cluster in found])
    assert saved_tokens(found) >= max(saved_by(prompts, parts) for parts in ([everyone], equal, by_first))


def test_branches_are_split_where_that_saves_more() -> None:
    long = (1, *range(10, 30))
    found = clusters([(*long, 5), (*long, 6), (1, 7), (1, 8)])
    assert found == [Cluster(0, (2,)), Cluster(0, (3,)), Cluster(21, (0, 1))]


@given(PROMPTS, st.integers(1, 40))
@settings(deadline=None)
def test_batches_hold_each_row_once_and_keep_their_budget(prompts: list[tuple[int, ...]], budget: int) -> None:
    rows = [TokenRow(prompt, (7,) * (1 + index % 3)) for index, prompt in enumerate(prompts)]
    batches = list(micro_batches(rows, budget, share=True))
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    for indices in batches:
        batch = collate([rows[index] for index in indices], 0, share=True)
        padded = batch.input_ids.numel() + (0 if batch.prefix is None else batch.prefix.input_ids.numel())
        assert len(indices) == 1 or padded <= budget


def example_rows() -> list[TokenRow]:
    """Two groups and a stranger: whole prompts in common, beginnings in common, nothing in common."""
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(20, 300, (n,), generator=generator).tolist())

    first, second = ids(40), ids(25)
    prompts = [first + ids(5)] * 3 + [first + ids(n) for n in (9, 2, 12)] + [second, second, second + ids(8), ids(31)]
    return [TokenRow(prompt, ids(3 + index % 7)) for index, prompt in enumerate(prompts)]


def test_the_example_has_several_prefixes_of_different_lengths_and_rows_without() -> None:
    found = shared_clusters(example_rows())
    assert found is not None
    assert len({cluster.shared for cluster in found}) > 2
    assert Cluster(0, (9,)) in found


@pytest.fixture
def trained_model(tiny_model: Any) -> nn.Module:
    """In float64, so that only a mistake can make a difference; under an adapter that does something."""
    model: nn.Module = add_lora(tiny_model.double(), LoraSettings(rank=4, alpha=8), seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.05)
    return model


def loss_and_gradients(model: nn.Module, rows: list[TokenRow], share: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    model.zero_grad()
    batch = collate(rows, 0, share=share)
    assert (batch.prefix is not None) is share
    logprobs, entropy = output_logprobs(model, batch, entropy=True)  # (B, O), (B, O)
    assert entropy is not None
    weights = torch.linspace(-1, 1, logprobs.numel()).reshape(logprobs.shape)
    (logprobs * weights).sum().backward()
    return logprobs.detach(), entropy, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_log_probabilities_and_gradients_equal_those_of_whole_rows(trained_model: nn.Module) -> None:
    rows = example_rows()
    plain, plain_entropy, plain_gradients = loss_and_gradients(trained_model.train(), rows, share=False)
    shared, entropy, gradients = loss_and_gradients(trained_model, rows, share=True)
    assert float((plain - shared).abs().max()) < 1e-5  # log-softmax is in float32
    assert float((plain_entropy - entropy).abs().max()) < 1e-5
    assert len(gradients) == len(plain_gradients) > 0
    for ours, theirs in zip(gradients, plain_gradients, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-5 * max(1.0, float(theirs.abs().max()))


def test_scores_do_not_depend_on_who_shares(trained_model: nn.Module) -> None:
    rows = example_rows()
    together = score_rows(trained_model, rows, 0, max_tokens=10_000)
    cut = score_rows(trained_model, rows, 0, max_tokens=150)
    alone = [score_rows(trained_model, [row], 0, max_tokens=1)[0] for row in rows]
    for ours, pieces, theirs in zip(together, cut, alone, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-5
        assert float((pieces - theirs).abs().max()) < 1e-5


def test_a_little_in_common_is_not_worth_a_pass_of_its_own() -> None:
    rows = [TokenRow((1, 2, *range(10 * n, 10 * n + 30)), (5, 6)) for n in range(4)]
    assert shared_clusters(rows) is None
    assert collate(rows, 0, share=True).prefix is None


def test_dropout_takes_the_plain_path(tiny_model: Any) -> None:
    model = add_lora(tiny_model, LoraSettings(rank=4, alpha=8, dropout=0.1), seed=0)
    assert not can_share(model.train())
    assert can_share(model.eval())


def test_a_sliding_window_takes_the_plain_path() -> None:
    config = MistralConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=None,
    )
    assert can_share(MistralForCausalLM(config))
    config.sliding_window = 8
    assert not can_share(MistralForCausalLM(config))


def test_dropout_of_attention_weights_takes_the_plain_path() -> None:
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    assert can_share(LlamaForCausalLM(config).train())
    config.attention_dropout = 0.1
    model = LlamaForCausalLM(config)
    assert not can_share(model.train())
    assert can_share(model.eval())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(trained_model: nn.Module, reentrant: bool) -> None:
    rows, lm = example_rows(), causal_lm(trained_model)
    expected, _, gradients = loss_and_gradients(trained_model.train(), rows, share=True)
    lm.gradient_checkpointing_enable({"use_reentrant": reentrant})  # type: ignore[operator]
    lm.enable_input_require_grads()  # type: ignore[operator]
    assert can_share(trained_model)
    found, _, recomputed = loss_and_gradients(trained_model, rows, share=True)
    assert torch.equal(expected, found)
    assert len(recomputed) == len(gradients) > 0
    for ours, theirs in zip(recomputed, gradients, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-12 * max(1.0, float(theirs.abs().max()))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
def test_checkpointing_under_other_attention_takes_the_plain_path(trained_model: nn.Module) -> None:
    causal_lm(trained_model).config._attn_implementation = "eager"  # type: ignore[union-attr]
    assert can_share(trained_model.train())
    causal_lm(trained_model).gradient_checkpointing_enable()  # type: ignore[operator]
    assert not can_share(trained_model)
    assert can_share(trained_model.eval())


def test_other_attention_reads_suffixes_after_a_cache(trained_model: nn.Module) -> None:
    rows = example_rows()
    packed, _, gradients = loss_and_gradients(trained_model.train(), rows, share=True)
    causal_lm(trained_model).config._attn_implementation = "eager"  # type: ignore[union-attr]
    cached, _, others = loss_and_gradients(trained_model, rows, share=True)
    assert causal_lm(trained_model).config._attn_implementation == "eager"  # type: ignore[union-attr]
    assert not torch.equal(packed, cached)  # two ways, or nothing was compared
    assert float((packed - cached).abs().max()) < 1e-5
    for ours, theirs in zip(gradients, others, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-5 * max(1.0, float(theirs.abs().max()))


def small_model(kind: str) -> nn.Module:
    """A causal LM of a kind, in float64, with grouped queries and no window."""
    config = AutoConfig.for_model(
        kind, vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=None, attention_dropout=0.0, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double()
    return made


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", sorted(SHARING_MODELS))
def test_models_that_share_give_the_plain_result(kind: str, attention: str) -> None:
    model, rows = small_model(kind), example_rows()
    causal_lm(model).config._attn_implementation = attention  # type: ignore[union-attr]
    assert can_share(model.train())
    plain, _, plain_gradients = loss_and_gradients(model, rows, share=False)
    shared, _, gradients = loss_and_gradients(model, rows, share=True)
    pairs = zip(gradients, plain_gradients, strict=True)
    assert any(not torch.equal(ours, theirs) for ours, theirs in pairs)  # two ways, or nothing was compared
    assert float((plain - shared).abs().max()) < 1e-5  # log-softmax is in float32
    for ours, theirs in zip(gradients, plain_gradients, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-5 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("kind", ["nemotron", "stablelm"])
def test_models_of_other_kinds_take_the_plain_path(kind: str) -> None:
    model, rows = small_model(kind), example_rows()[:6]
    assert not can_share(model)
    together = score_rows(model, rows, 0, max_tokens=10_000)
    for row, found in zip(rows, together, strict=True):
        assert float((score_rows(model, [row], 0, max_tokens=1)[0] - found).abs().max()) < 1e-5


def test_the_model_keeps_its_attention(trained_model: nn.Module) -> None:
    config: Any = causal_lm(trained_model).config
    loss_and_gradients(trained_model.train(), example_rows(), share=True)
    score_rows(trained_model, example_rows(), 0, max_tokens=10_000)
    assert config._attn_implementation == "sdpa"
    causal_lm(trained_model).get_decoder().norm.register_forward_hook(lambda *_: 1 / 0)  # type: ignore[operator]
    with pytest.raises(ZeroDivisionError):
        score_rows(trained_model, example_rows(), 0, max_tokens=10_000)
    assert config._attn_implementation == "sdpa"


def test_autocast_reads_suffixes_after_a_cache(tiny_model: Any) -> None:
    rows = example_rows()
    expected = score_rows(tiny_model, rows, 0, max_tokens=10_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = score_rows(tiny_model, rows, 0, max_tokens=10_000)
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).abs().max()) < 0.2
