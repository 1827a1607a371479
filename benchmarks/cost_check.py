"""Predictions of the cost model beside measurements: FLOPs, kept bytes, CPU seconds, peak memory, tokens by goals.

    python benchmarks/cost_check.py --data ../shared/data/hotpotqa --out benchmarks/results/cost_check.json

Seconds are predicted from one row size: the FLOPs of a step over its CPU time give the share of the matmul rate that
is reached, and the share gives the seconds of other sizes. Tokens are predicted from 2 and 10 goals.

Invariant: what a prediction was fitted to is not counted among its errors.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cost_counting import batch_of, counted_flops, cpu_seconds, kept_bytes, kernels_of, matmul_rate, states_of
from cost_formulas import (
    QWEN,
    ModelShape,
    Work,
    backward_flops,
    forward_flops,
    logits_bytes,
    packed,
    row,
    saved_bytes,
    slope_bytes,
)
from cost_tokens import check_tokens
from learner_step import GROUP, make_groups
from learner_step import Work as Rows
from machine import forget_peak, resident
from results_io import facts, write

from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.contexts import get_context
from mempo_env.agents.head import chunk_size
from mempo_env.agents.models import add_lora, load_model, make_codec
from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.scoring import output_logprobs
from mempo_env.agents.settings import LoraSettings
from mempo_env.algos.algorithm_config import GRPOConfig
from mempo_env.algos.base import Advantages
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.presets import get_preset
from mempo_env.algos.setup import load_base
from mempo_env.algos.update import Updater

SIZES = {"tiny": ((64, 16), (128, 32), (256, 64), (512, 128)), "smollm2": ((64, 24), (128, 48), (256, 64))}
"""Prompt and output tokens of a row; the first is calibrated on."""
DTYPES = {"tiny": "float32", "smollm2": "bfloat16"}


def load(name: str) -> tuple[Any, ModelShape, ChatCodec]:
    """A model with its adapter, its shape, and its codec."""
    if name == "tiny":
        base, tokenizer = load_base(get_preset("tiny"))
    else:
        base, tokenizer = load_model(name, dtype=DTYPES[name])  # type: ignore[arg-type]
    shape = ModelShape.of(base.config, name, bytes=4 if DTYPES[name] == "float32" else 2)
    codec = make_codec(base, tokenizer)
    return add_lora(base, LoraSettings(rank=16, alpha=32), seed=0), shape, codec


def one_group(shape: ModelShape, prompt: int, output: int) -> list[Any]:
    """One group of rows with random ids."""
    return make_groups(Rows(rows=GROUP, prompt=prompt, output=output), shape.vocab)


def shared_work(shape: ModelShape, prompt: int, output: int) -> Work:
    """Of one group: all but the last prompt token is read once."""
    return packed(shape, prompt - 1, GROUP, 1, output)


def check_flops(name: str, prompt: int, output: int) -> Iterator[dict[str, Any]]:
    """Reading a prompt, and a learner's forward and backward pass with and without shared prefixes."""
    model, shape, _ = load(name)
    groups = one_group(shape, prompt, output)
    ids = torch.tensor([groups[0][0].turns[0].prompt_ids])  # (1, T)

    def learn(share: bool) -> None:
        logprobs, _ = output_logprobs(model, batch_of(groups, share=share))
        logprobs.sum().backward()

    with torch.no_grad():
        counted = counted_flops(lambda: model(input_ids=ids, logits_to_keep=1))
    work = row(prompt - 1, 1, tile=math.inf)
    yield {"what": "prefill", "predicted": forward_flops(shape, work), "measured": sum(counted.values())}
    model.train()
    for share in (False, True):
        work = shared_work(shape, prompt, output)
        if not share:
            work = Work()
            for _ in range(GROUP):
                work += row(prompt, output, tile=math.inf)
        predicted = forward_flops(shape, work) + backward_flops(shape, work)
        counted = counted_flops(lambda share=share: learn(share))  # type: ignore[misc]
        what = "forward and backward" + (", shared prefixes" if share else "")
        yield {"what": what, "predicted": predicted, "measured": sum(counted.values())}


def check_kept(name: str, tokens: int = 64) -> dict[str, Any]:
    """Bytes a token keeps for the backward pass; of Qwen2.5-7B one layer, which is all that fits, times 28."""
    if name == QWEN.name:
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.set_default_dtype(torch.bfloat16)
        try:
            config = Qwen2Config(
                vocab_size=1000, hidden_size=QWEN.width, intermediate_size=QWEN.feed_forward, num_hidden_layers=1,
                num_attention_heads=QWEN.heads, num_key_value_heads=QWEN.kv_heads, tie_word_embeddings=True,
            )  # fmt: skip
            model = add_lora(Qwen2ForCausalLM(config), LoraSettings(rank=16, alpha=32), seed=0)
        finally:
            torch.set_default_dtype(torch.float32)
        shape = ModelShape.of(config, "one layer of Qwen2.5-7B")
    else:
        model, shape, _ = load(name)
    model.train()
    ids = torch.randint(0, 1000, (1, tokens), generator=torch.Generator().manual_seed(0)) % shape.vocab  # (1, T)
    found = kept_bytes(model, lambda: states_of(model, ids)) / tokens
    return {"what": f"{shape.name}: kept by a token", "predicted": saved_bytes(shape), "measured": found}


@dataclass(frozen=True)
class Learner:
    """The learner's step of one group, reference pass included.

    Attributes:
        policy: What learns.
        step: Takes the step.
        flops: What it has to compute.
        shape: Of the model.
    """

    policy: LoraPolicy
    step: Callable[[], object]
    flops: float
    shape: ModelShape


def learner(name: str, prompt: int, output: int, *, checkpointing: bool = False) -> Learner:
    """The learner of one group of rows of that size."""
    model, shape, codec = load(name)
    policy = LoraPolicy(model, codec, get_context("memory"))
    optimizer = Optimizer(trainable(policy.model), OptimConfig(lr=1e-5), 1000)
    updater = Updater(
        policy, GRPO(GRPOConfig(beta=1e-3)), optimizer, micro_batch_tokens=2048, gradient_checkpointing=checkpointing
    )
    groups = one_group(shape, prompt, output)
    given = {(0, i, 0): torch.full((output,), 1.0 - 2.0 * (i % 2)) for i in range(GROUP)}
    work = shared_work(shape, prompt, output)
    backward = backward_flops(shape, work, checkpointing=checkpointing)
    flops = forward_flops(shape, work, adapter=False) + forward_flops(shape, work) + backward
    return Learner(policy, lambda: updater.update(groups, Advantages(given)), flops, shape)


def check_seconds(name: str) -> dict[str, Any]:
    """CPU seconds of a learner step, reference pass included, predicted from the first size.

    Those between are also predicted by a line through the first and the last, which allows for a cost of every step.
    """
    rate, share = matmul_rate(DTYPES[name]), 0.0
    rows: list[dict[str, Any]] = []
    for prompt, output in SIZES[name]:
        made = learner(name, prompt, output)
        found, flops = cpu_seconds(made.step), made.flops
        share = share or flops / found / rate
        rows.append(
            {
                "what": f"{GROUP} rows of {prompt} + {output}",
                "flops": flops,
                "predicted": flops / (rate * share),
                "measured": found,
                "calibrated": not rows,
            }
        )
        del made
        gc.collect()
    first, *middle, last = rows
    slope = (last["measured"] - first["measured"]) / (last["flops"] - first["flops"])
    for line in middle:
        line["line"] = first["measured"] + slope * (line["flops"] - first["flops"])
    return {"model": name, "matmul_gflops": rate / 1e9, "share": share, "rows": rows}


def peak(name: str, prompt: int, output: int, checkpointing: bool) -> dict[str, float]:
    """In a process of its own: bytes that a step takes above what is there before it; a small one warms up."""
    learner(name, 8, 2, checkpointing=checkpointing).step()
    made = learner(name, prompt, output, checkpointing=checkpointing)
    before = forget_peak()
    made.step()
    shape, work = made.shape, shared_work(made.shape, prompt, output)
    kept = work.tokens * saved_bytes(shape, packed=True, checkpointing=checkpointing)
    kept += work.outputs * slope_bytes(shape)
    most = chunk_size(1024, shape.vocab, "cpu")
    predicted = kept + logits_bytes(shape, min(most, work.outputs))  # gradients and moments come when these are gone
    return {"predicted": predicted, "measured": resident("VmHWM") - before}


def check_peak(name: str) -> Iterator[dict[str, Any]]:
    """Peak memory by row size, the smallest and the largest, the latter also with gradient checkpointing.

    Each is measured in a process of its own.
    """
    small, large = SIZES[name][0], SIZES[name][-1]
    for (prompt, output), mode in ((small, ""), (large, ""), (large, ", checkpointing")):
        command = [sys.executable, __file__, "--peak", name, str(prompt), str(output), mode]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        yield {"what": f"{name}: {GROUP} rows of {prompt} + {output}{mode}"} | json.loads(found)


def decode_kernels(name: str) -> float:
    """Kernels a layer starts to decode one token, adapter included; embedding, last norm and head are shared out."""
    from transformers import DynamicCache

    model, shape, _ = load(name)
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(input_ids=torch.ones((1, 8), dtype=torch.long), past_key_values=cache, use_cache=True)
        token = torch.ones((1, 1), dtype=torch.long)  # (1, 1)
        count = kernels_of(lambda: model(input_ids=token, past_key_values=cache, use_cache=True))
    return count / shape.layers


def main() -> None:
    """Measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data folder for the tokens by goals")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--models", nargs="+", choices=sorted(DTYPES), default=list(DTYPES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    if flags.peak:
        name, prompt, output, mode = flags.peak
        sys.stdout.write(json.dumps(peak(name, int(prompt), int(output), bool(mode))) + "\n")
        return
    result = facts()
    # First, while this process is small itself.
    result["peak"] = [line for name in flags.models for line in check_peak(name)]
    result["seconds"] = [check_seconds(name) for name in flags.models]
    result["flops"] = [{"model": name} | line for name in flags.models for line in check_flops(name, *SIZES[name][0])]
    result["kept"] = [check_kept(name) for name in (*flags.models, QWEN.name)]
    result["decode_kernels_per_layer"] = {name: decode_kernels(name) for name in flags.models}
    if flags.data is not None:
        result |= check_tokens(flags.data, flags.episodes)
    write(result, flags.out)


if __name__ == "__main__":
    main()
