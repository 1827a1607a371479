"""Sampling the turns of a group of sixteen against transformers' ``generate``, on the same contexts.

The contexts are those of real episodes: a demonstrator that forgets plays sixteen episodes of one task, so that only
instructions and task are shared and memories differ. Turn by turn both sides sample one output per running episode, at
temperature 1 with no other filter, and stop at the same strings.

    python benchmarks/rollout_speed.py --turns 4 --rounds 3 --threads 2 --out benchmarks/results/rollout_speed.json

Invariant: both sides get the same prompts in the same batches, with the same limit, from the same weights; tokens are
counted the same way, up to and with the one that stopped a row.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mempo_env.actions import ACTION_CLOSERS
from mempo_env.agents.codec import CodecTokenCounter
from mempo_env.agents.contexts import get_context
from mempo_env.agents.models import add_lora, load_model, make_codec
from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.rollout import EpisodeSpec, rollout
from mempo_env.agents.sampler import EmbeddedSampler, SampleRequest
from mempo_env.agents.scripted_expert import Flaws, make_expert
from mempo_env.agents.settings import LoraSettings, SamplingConfig
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.versions import versions

GROUP = 16
Prompts = list[tuple[int, ...]]


def contexts(policy: LoraPolicy, goals: int, budget: str) -> list[Prompts]:
    """Per turn the prompts of the episodes that are still running."""
    counter = CodecTokenCounter(policy.codec)

    def make() -> MultiGoalEnv:
        return MultiGoalEnv(goals=goals, budget=budget, token_counter=counter)

    expert = make_expert(make(), flaws=Flaws(forget=0.3), memory_counter=counter)
    taken: dict[int, Prompts] = {}

    class Recorder:
        name = "recorder"

        def act(self, requests: Any) -> Any:
            for request in requests:
                taken.setdefault(request.key.turn, []).append(policy.prompt_ids(request))
            return expert.act(requests)

    rollout(Recorder(), make, [EpisodeSpec("g", i, 7) for i in range(GROUP)], seed=0, step=0)
    return [taken[turn] for turn in sorted(taken)]


def ours(policy: LoraPolicy, turns: list[Prompts], limit: int) -> int:
    """Samples all turns with the embedded sampler; returns output tokens."""
    sampler = EmbeddedSampler(policy.model, policy.codec)
    config = SamplingConfig(max_new_tokens=limit, batch_size=GROUP)
    total = 0
    for turn, prompts in enumerate(turns):
        requests = [SampleRequest(prompt, (0, turn, index)) for index, prompt in enumerate(prompts)]
        total += sum(len(result.output_ids) for result in sampler.sample(requests, config))
    return total


def theirs(policy: LoraPolicy, turns: list[Prompts], limit: int) -> int:
    """The same with ``generate``."""
    model, tokenizer, total = policy.model, policy.codec.tokenizer, 0
    ends = list(policy.codec.eos_ids)
    for turn, prompts in enumerate(turns):
        torch.manual_seed(turn)
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), policy.codec.pad_id)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        with torch.inference_mode():
            found = model.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, pad_token_id=policy.codec.pad_id, eos_token_id=ends, stop_strings=list(ACTION_CLOSERS),
                tokenizer=tokenizer,
            )[:, width:]  # fmt: skip
        for row in found.tolist():
            stopped = next((n for n, token in enumerate(row) if token in ends or token == policy.codec.pad_id), None)
            total += len(row) if stopped is None else stopped + 1
    return total


def main() -> None:
    """Parses, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--goals", type=int, default=4)
    parser.add_argument("--budget", default="paper")
    parser.add_argument("--turns", type=int, default=4, help="how many of the episode's turns")
    parser.add_argument("--limit", type=int, default=150, help="longest output")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    model, tokenizer = load_model(flags.model, dtype=flags.dtype)
    model = add_lora(model, LoraSettings(rank=16, alpha=32), seed=0).eval()
    policy = LoraPolicy(model, make_codec(model, tokenizer), get_context("memory"))
    turns = contexts(policy, flags.goals, flags.budget)
    chosen = [turns[round(n * (len(turns) - 1) / max(1, flags.turns - 1))] for n in range(min(flags.turns, len(turns)))]
    sides = {"ours": ours, "generate": theirs}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side(policy, chosen[:1], 4)  # what happens once
    for _ in range(flags.rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            tokens = side(policy, chosen, flags.limit)
            rates[name].append(tokens / (time.perf_counter() - started))
            sys.stderr.write(f"{name}: {tokens} tokens, {rates[name][-1]:.1f} tokens/s\n")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    result = {
        "prompt_tokens": [[min(map(len, turn)), max(map(len, turn)), len(turn)] for turn in chosen],
        "tokens_per_second": rates,
        "median": medians,
        "ratio": medians["ours"] / medians["generate"],
        "command": " ".join(sys.argv),
        "versions": versions(),
        "load_before": os.getloadavg()[0],
    }
    text = json.dumps(result, indent=2)
    if flags.out:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
