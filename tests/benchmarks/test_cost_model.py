"""The cost model against what torch counts, what a pickle weighs, and cases worked out by hand."""

from __future__ import annotations

import math
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mempo_env.agents import prefix_attention
from mempo_env.agents.models import add_lora
from mempo_env.agents.scoring import output_logprobs
from mempo_env.agents.settings import LoraSettings
from mempo_env.budgets import get_budget

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import cost_formulas
from cost_counting import batch_of, counted_flops, kept_bytes, kernels_of, states_of
from cost_episodes import (
    EpisodeLaw,
    EpisodeShape,
    episode_bytes,
    group_prompts,
    group_work,
    rows_work,
    scoring_work,
)
from cost_formulas import (
    QWEN,
    SMOLLM2,
    ModelShape,
    Work,
    backward_flops,
    causal_pairs,
    forward_flops,
    head_flops,
    packed,
    prefix,
    row,
    saved_bytes,
    slope_bytes,
)
from cost_machines import (
    H100,
    Plan,
    all_reduce_seconds,
    decode_bound,
    flops_per_episode,
    memory_of,
    sampling_seconds,
    step_cost,
    update_flops,
)
from learner_step import Work as Rows
from learner_step import make_groups

EPISODE = EpisodeShape(
    goals=2,
    turns=3,
    queries=4,
    frame=100,
    task=20,
    note=10,
    memory_cap=30,
    result=50,
    call=5,
    query=2,
    answer=7,
    gold=6,
)
PROMPT, OUTPUT = 24, 6


def build(family: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> tuple[Any, ModelShape]:
    """A model with grouped queries and an adapter of rank 4, and its shape."""
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "attn_implementation": attention,
    }
    torch.manual_seed(0)
    if family == "qwen":
        config: Any = Qwen2Config(**sizes, tie_word_embeddings=True)
        base: Any = Qwen2ForCausalLM(config)
    else:
        config = LlamaConfig(**sizes, tie_word_embeddings=False)
        base = LlamaForCausalLM(config)
    base = base.to(dtype)
    shape = ModelShape.of(config, family, bytes=base.dtype.itemsize, rank=4)
    assert sum(p.numel() for p in base.parameters()) == shape.weights
    model = add_lora(base, LoraSettings(rank=4, alpha=8), seed=0)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == shape.adapter
    return model.train(), shape


def groups_of(shape: ModelShape) -> list[Any]:
    return make_groups(Rows(rows=8, prompt=PROMPT, output=OUTPUT), shape.vocab)


@pytest.mark.parametrize("family", ["qwen", "llama"])
def test_flops_of_a_prompt_are_those_that_torch_counts(family: str) -> None:
    model, shape = build(family)
    ids = torch.ones((1, PROMPT), dtype=torch.long)
    with torch.no_grad():
        counted = counted_flops(lambda: model(input_ids=ids, logits_to_keep=1))
    assert sum(counted.values()) == forward_flops(shape, row(PROMPT - 1, 1, tile=math.inf))
    # The head of a single token is a batched product, as attention's are.
    assert counted["batched"] == 4 * 3 * 48 * PROMPT**2 + head_flops(shape, 1)


@pytest.mark.parametrize("family", ["qwen", "llama"])
def test_flops_of_a_learner_are_those_that_torch_counts(family: str) -> None:
    model, shape = build(family)
    batch = batch_of(groups_of(shape), share=False)

    def learn() -> None:
        output_logprobs(model, batch, chunk_tokens=None)[0].sum().backward()

    work = sum((row(PROMPT, OUTPUT, tile=math.inf) for _ in range(8)), Work())
    predicted = forward_flops(shape, work) + backward_flops(shape, work)
    assert sum(counted_flops(learn).values()) == pytest.approx(predicted, rel=1e-3)


# The prefix in four tiles, and in one.
@pytest.mark.parametrize("tile", [1 << 10, 1 << 18])
@pytest.mark.parametrize("family", ["qwen", "llama"])
def test_flops_of_packed_rows_are_those_that_torch_counts(
    family: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (prefix_attention, cost_formulas):
        monkeypatch.setattr(module, "TILE", tile)
        monkeypatch.setattr(module, "MIN_QUERIES", 4)
    model, shape = build(family)
    batch = batch_of(groups_of(shape), share=True)
    assert batch.prefix is not None

    def learn() -> None:
        output_logprobs(model, batch, chunk_tokens=20)[0].sum().backward()

    work = packed(shape, PROMPT - 1, 8, 1, OUTPUT)
    attention = 3.5 * 4 * shape.layers * shape.query_width * work.pairs
    counted = counted_flops(learn)
    assert counted["batched"] == attention
    predicted = forward_flops(shape, work) + backward_flops(shape, work)
    assert sum(counted.values()) == pytest.approx(predicted, rel=1e-3)
    assert (cost_formulas.tile_queries(shape, PROMPT - 1) < PROMPT - 1) == (tile == 1 << 10)


def test_flops_of_prefixes_in_a_pass_of_their_own_are_those_that_torch_counts() -> None:
    model, shape = build("qwen", attention="eager")  # as on a GPU: a cache after the prefix
    batch = batch_of(groups_of(shape), share=True)
    assert batch.prefix is not None

    def learn() -> None:
        output_logprobs(model, batch)[0].sum().backward()

    work = prefix(PROMPT - 1, tile=math.inf)
    for _ in range(8):
        work += row(1, OUTPUT, PROMPT - 1, tile=math.inf)
    predicted = forward_flops(shape, work) + backward_flops(shape, work, attention_factor=2)
    assert sum(counted_flops(learn).values()) == pytest.approx(predicted, rel=1e-3)


def test_pairs_of_tiles_by_hand() -> None:
    assert causal_pairs(5) == 15
    assert causal_pairs(5, 2) == 2 * 2 + 2 * 4 + 1 * 5
    assert causal_pairs(5, math.inf) == causal_pairs(5, 9) == 25
    assert causal_pairs(0, math.inf) == 0
    # Two rows of 1 + 3 tokens less the last, after a prefix of 4, in tiles of at least 32 queries.
    assert packed(SMOLLM2, 4, 2, 1, 3) == Work(4 + 6, 16 + 2 * (9 + 3 * 4), 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_rows_keep_as_many_bytes_as_predicted(dtype: torch.dtype) -> None:
    model, shape = build("llama", dtype)
    batch = batch_of(groups_of(shape), share=True)
    work = packed(shape, PROMPT - 1, 8, 1, OUTPUT)
    found = kept_bytes(model, lambda: output_logprobs(model, batch, entropy=True)[0])
    predicted = work.tokens * saved_bytes(shape, packed=True) + work.outputs * slope_bytes(shape)
    assert found == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen", "llama"])
def test_a_token_keeps_as_many_bytes_as_predicted(family: str, dtype: torch.dtype) -> None:
    model, shape = build(family, dtype)
    ids = torch.ones((2, PROMPT), dtype=torch.long)
    found = kept_bytes(model, lambda: states_of(model, ids)) / (2 * PROMPT)
    # Sine and cosine are kept once for both rows.
    assert found == pytest.approx(saved_bytes(shape), rel=0.01)


def test_a_view_starts_no_kernel() -> None:
    x = torch.ones(4, 4)
    assert kernels_of(lambda: x.t().reshape(4, 2, 2)[0]) <= 1  # the reshape copies
    assert kernels_of(lambda: (x + 1).mul_(2)) == 2


def test_known_models_have_their_published_sizes() -> None:
    assert QWEN.weights == pytest.approx(7.61e9, rel=1e-3)  # the model card: 7.61B parameters
    assert QWEN.weights - 2 * QWEN.vocab * QWEN.width == pytest.approx(6.53e9, rel=1e-3)  # 6.53B without embeddings
    assert SMOLLM2.weights == pytest.approx(135e6, rel=0.01)
    assert QWEN.with_rank(32).adapter == 2 * QWEN.adapter


def test_a_backward_pass_of_an_adapter_costs_about_a_forward_pass_and_not_two() -> None:
    work = row(500, 100)
    forward, backward = forward_flops(QWEN, work), backward_flops(QWEN, work)
    assert 0.95 < backward / forward < 1.1
    again = backward_flops(QWEN, work, checkpointing=True)
    assert again - backward == pytest.approx(forward - head_flops(QWEN, 100))


def test_checkpointing_costs_a_forward_pass_and_the_shared_prefixes() -> None:
    alone, again = (Plan(share=False), Plan(checkpointing=True))
    work = group_work(EPISODE, "memory", alone.group_size, share=False)
    layers = forward_flops(QWEN, replace(work, outputs=0))
    assert update_flops(QWEN, EPISODE, again) - update_flops(QWEN, EPISODE, alone) == pytest.approx(layers)
    assert update_flops(QWEN, EPISODE, alone) > update_flops(QWEN, EPISODE, Plan())


def test_turns_of_an_episode_by_hand() -> None:
    assert EPISODE.per_call == 2
    assert [EPISODE.memory(turn) for turn in range(3)] == [0, 20, 30]  # 40 would not fit
    assert EPISODE.outputs() == [9, 29, 37]
    assert EPISODE.prompts("memory") == [120, 120 + 0 + 100, 120 + 20 + 100]
    assert EPISODE.prompts("history") == [120, 120 + 9 + 100, 120 + 9 + 29 + 200]
    assert EPISODE.total("memory") == 120 + 220 + 240 + 75
    assert EPISODE.peak("history") == 358 + 37
    assert replace(EPISODE, thought=10).total("memory") == EPISODE.total("memory") + 30


def test_a_law_gives_back_what_it_was_made_from_and_keeps_to_the_budget() -> None:
    high = replace(EPISODE, goals=10, turns=16, queries=15, task=100, memory_cap=300)
    law = EpisodeLaw(replace(EPISODE, turns=5), high)
    assert law.at(2, get_budget("paper")).task == 20
    assert law.at(6, get_budget("paper")).task == 60
    assert law.at(6, get_budget("paper")).turns == 6 * 2 + 1
    full = law.at(10, get_budget("paper"))
    assert (full.queries, full.turns, full.memory_cap, full.note) == (15, 16, 300, 10)


def test_prompts_of_a_group_share_what_real_ones_share() -> None:
    memory = group_prompts(EPISODE, "memory", 2)
    assert memory[0] == memory[3] == tuple(range(120))
    assert memory[1][:120] == memory[4][:120]
    assert set(memory[1][120:]).isdisjoint(memory[2][120:] + memory[4][120:])
    history = group_prompts(EPISODE, "history", 2)
    assert history[2][: len(history[1])] == history[1]
    assert set(history[1][120:]).isdisjoint(history[4])
    assert [len(prompt) for prompt in history[:3]] == [120, 229, 358]


def test_work_of_a_group_by_hand() -> None:
    prompts = [(1, 2, 3, 4), (1, 2, 3, 5)]
    assert rows_work(prompts, [2, 2], share=False) == Work(12, 2 * 21, 4)
    # A prefix of 3, then twice one prompt token and two outputs that see it.
    assert rows_work(prompts, [2, 2], share=True) == Work(9, 6 + 2 * (9 + 6), 4, 3, 6)
    shared, plain = (group_work(EPISODE, "memory", 4, share=share) for share in (True, False))
    assert plain.tokens == 4 * EPISODE.total("memory")
    assert shared.tokens < plain.tokens / 1.5
    assert shared.outputs == plain.outputs == 4 * 75


def test_scoring_each_goal_alone_reads_each_memory_once_per_goal() -> None:
    joint, alone = scoring_work(EPISODE, 1), scoring_work(EPISODE, 1, "per_goal")
    assert joint.tokens == 120 + 50 + 3 * 6
    assert alone.tokens == 100 + 2 * (50 + 3 * 10 + 3 * 3)
    assert joint.outputs == alone.outputs == 18


def test_bytes_of_an_episode_are_those_of_its_pickle() -> None:
    groups = make_groups(Rows(rows=8, prompt=900, output=300), 40_000)
    shape = replace(EPISODE, turns=1, frame=900, task=0)
    found = len(pickle.dumps(groups[0][0]))
    predicted = 3 * 1200 + 11 * 300  # without texts, which these have none of
    assert found == pytest.approx(predicted, rel=0.15)
    assert episode_bytes(shape, "memory") > 3 * 900


def test_more_gpus_than_groups_do_not_help() -> None:
    few, many = (step_cost(QWEN, EPISODE, Plan(), H100, gpus) for gpus in (8, 800))
    assert (few.busy, many.busy) == (1.0, 0.01)
    assert many.prefill + many.decode + many.update == few.prefill + few.decode + few.update
    grown = step_cost(QWEN, EPISODE, Plan(groups=800), H100, 800)
    assert grown.busy == 1.0
    assert grown.decode == few.decode
    assert grown.communication > few.communication
    assert grown.seconds == pytest.approx(sum(grown.parts.values()))
    assert grown.dominant == "decode"


def test_decoding_is_bound_by_what_is_slowest() -> None:
    graph = replace(H100, launch=0.0)
    bound = decode_bound(QWEN, graph, 1, 100, 60)
    assert max(bound, key=bound.__getitem__) == "bandwidth"
    assert bound["bandwidth"] == pytest.approx((15.23e9 + 0.16e9) / (3.35e12 * 0.6), rel=0.01)
    thousand = decode_bound(QWEN, graph, 1000, 100, 60)
    assert max(thousand, key=thousand.__getitem__) == "compute"
    assert decode_bound(QWEN, H100, 1, 100, 60)["launch"] == pytest.approx(28 * 60 * 6e-6)
    one, two = (sampling_seconds(QWEN, EPISODE, Plan(batch=16), H100, groups)[1] for groups in (1, 2))
    assert two == pytest.approx(2 * one)  # two batches one after the other


def test_sums_over_gpus() -> None:
    assert all_reduce_seconds(H100, 1, 1e9) == 0
    within = all_reduce_seconds(H100, 8, 1e9)
    assert within == pytest.approx(2 * 7 / 8 * 1e9 / (450e9 * 0.6))
    assert all_reduce_seconds(H100, 16, 1e9) > within


def test_memory_of_a_gpu_adds_up() -> None:
    found = memory_of(QWEN, H100)
    used = sum(found[name] for name in ("weights", "adapter, gradient, optimizer", "logits of a chunk"))
    room = found["tokens of a micro-batch"] * found["saved by a token"]
    assert used + room == pytest.approx(0.9 * 80e9)
    assert found["saved by a token, checkpointing"] < found["saved by a token"] / 10


def test_parts_of_an_episode_add_up_to_more_under_full_history() -> None:
    memory, history = (flops_per_episode(QWEN, EPISODE, Plan(context=context)) for context in ("memory", "history"))
    assert all(history[part] >= memory[part] for part in memory)
    outputs = Work(outputs=sum(EPISODE.outputs()))
    assert memory["update"] > memory["reference"] + 2 * forward_flops(QWEN, outputs)
