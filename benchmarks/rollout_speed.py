"""Sampling the turns of a group of sixteen against transformers' ``generate``, on the same contexts.

The contexts are those of real episodes: a demonstrator that forgets plays sixteen episodes of one task, so that only
instructions and task are shared and memories differ. Turn by turn both sides sample one output per running episode, at
temperature 1 with no other filter, and stop at the same strings.

    python benchmarks/rollout_speed.py --turns 4 --rounds 3 --threads 2 --out benchmarks/results/rollout_speed.json
    python benchmarks/rollout_speed.py --quick

``--quick`` takes the tiny float32 model, built in place, and few tokens: seconds, and the same record.

Invariant: both sides get the same prompts in the same batches, with the same limit, from the same weights; tokens are
counted the same way, up to and with the one that stopped a row, and a row that is short without a reason is an error.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from results_io import facts, write

from mempo_env.actions import ACTION_CLOSERS
from mempo_env.agents.codec import CodecTokenCounter
from mempo_env.agents.contexts import get_context
from mempo_env.agents.models import add_lora, load_model, make_codec
from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.rollout import EpisodeSpec, rollout
from mempo_env.agents.sampler import EmbeddedSampler, SampleRequest
from mempo_env.agents.scripted_expert import Flaws, make_expert
from mempo_env.agents.settings import LoraSettings, SamplingConfig
from mempo_env.agents.tiny import build_tiny
from mempo_env.envs.closed_world import closed_world_vocabulary
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.prompts import InstructionStyle

GROUP = 16
Prompts = list[tuple[int, ...]]
Side = Callable[[LoraPolicy, list[Prompts], int], list[list[int]]]
_FULL = {"model": "smollm2", "dtype": "bfloat16", "goals": 4, "budget": "paper", "turns": 4, "limit": 150, "rounds": 3}
_QUICK = {"model": "tiny", "dtype": "float32", "goals": 2, "budget": "brief", "turns": 2, "limit": 24, "rounds": 1}


def contexts(policy: LoraPolicy, goals: int, budget: str, instructions: InstructionStyle) -> list[Prompts]:
    """Per turn the prompts of the episodes that are still running."""
    counter = CodecTokenCounter(policy.codec)

    def make() -> MultiGoalEnv:
        return MultiGoalEnv(goals=goals, budget=budget, token_counter=counter, instructions=instructions)

    expert = make_expert(make(), flaws=Flaws(forget=0.3, garble=0.3, bloat=0.5), memory_counter=counter)
    taken: dict[int, Prompts] = {}

    class Recorder:
        name = "recorder"

        def act(self, requests: Any) -> Any:
            for request in requests:
                taken.setdefault(request.key.turn, []).append(policy.prompt_ids(request))
            return expert.act(requests)

    rollout(Recorder(), make, [EpisodeSpec("g", i, 7) for i in range(GROUP)], seed=0, step=0)
    return [taken[turn] for turn in sorted(taken)]


def ours(policy: LoraPolicy, turns: list[Prompts], limit: int) -> list[list[int]]:
    """Samples all turns with the embedded sampler; returns the outputs, the token that stopped a row included."""
    sampler = EmbeddedSampler(policy.model, policy.codec)
    config = SamplingConfig(max_new_tokens=limit, batch_size=GROUP)
    found = []
    for turn, prompts in enumerate(turns):
        requests = [SampleRequest(prompt, (0, turn, index)) for index, prompt in enumerate(prompts)]
        found += [list(result.output_ids) for result in sampler.sample(requests, config)]
    return found


def theirs(policy: LoraPolicy, turns: list[Prompts], limit: int) -> list[list[int]]:
    """The same with ``generate``, whose rows go on as padding when they have stopped."""
    model, tokenizer = policy.model, policy.codec.tokenizer
    ends = list(policy.codec.eos_ids)
    outputs = []
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
            stopped = next((n for n, token in enumerate(row) if token in ends), None)
            while stopped is None and row and row[-1] == policy.codec.pad_id:
                row.pop()
            outputs.append(row if stopped is None else row[: stopped + 1])
    return outputs


def checked(policy: LoraPolicy, outputs: list[list[int]], turns: list[Prompts], limit: int) -> dict[str, int]:
    """Counts a side's outputs.

    Raises:
        RuntimeError: They are not one per prompt, or a row is empty, too long, or short without a reason.
    """
    if len(outputs) != sum(map(len, turns)):
        raise RuntimeError(f"{len(outputs)} outputs for {sum(map(len, turns))} prompts")
    closers = tuple(closer.encode() for closer in ACTION_CLOSERS)
    for row in outputs:
        ended = bool(row) and (
            row[-1] in policy.codec.eos_ids
            or any(closer in b"".join(policy.codec.token_bytes(row)) for closer in closers)
        )
        if not 0 < len(row) <= limit or (len(row) < limit and not ended):
            raise RuntimeError(f"a row of {len(row)} tokens, limit {limit}, has no reason to end there")
    return {"tokens": sum(map(len, outputs)), "rows": len(outputs), "at_limit": sum(len(r) == limit for r in outputs)}


def make_policy(name: str, dtype: Literal["float32", "bfloat16"]) -> LoraPolicy:
    """SmolLM2 or another model, or the tiny one, with LoRA of rank 16 on every linear layer."""
    if name == "tiny":
        model, tokenizer = build_tiny(0, closed_world_vocabulary())
    else:
        model, tokenizer = load_model(name, dtype=dtype)
    lora = add_lora(model, LoraSettings(rank=16, alpha=32), seed=0).eval()
    return LoraPolicy(lora, make_codec(lora, tokenizer), get_context("memory"))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parses, measures, writes; returns the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in _FULL.items():
        parser.add_argument(f"--{name}", type=type(value), default=None, help=f"{value}; quick: {_QUICK[name]}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args(argv)
    for name, value in (_QUICK if flags.quick else _FULL).items():
        if getattr(flags, name) is None:
            setattr(flags, name, value)
    torch.set_num_threads(flags.threads)
    policy = make_policy(flags.model, flags.dtype)
    turns = contexts(policy, flags.goals, flags.budget, "terse" if flags.model == "tiny" else "full")
    count = min(flags.turns, len(turns))
    chosen = [turns[round(n * (len(turns) - 1) / max(1, count - 1))] for n in range(count)]
    sides: dict[str, Side] = {"ours": ours, "generate": theirs}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    cpu_rates: dict[str, list[float]] = {name: [] for name in sides}
    counts: dict[str, dict[str, int]] = {}
    how = facts()
    for side in sides.values():
        side(policy, chosen[:1], 4)  # what happens once
    for _ in range(flags.rounds):
        for name, side in sides.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            outputs = side(policy, chosen, flags.limit)
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            counts[name] = checked(policy, outputs, chosen, flags.limit)
            rates[name].append(counts[name]["tokens"] / seconds)
            cpu_rates[name].append(counts[name]["tokens"] / cpu_seconds)
            sys.stderr.write(f"{name}: {counts[name]['tokens']} tokens, {rates[name][-1]:.1f} tokens/s\n")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    cpu_medians = {name: statistics.median(found) for name, found in cpu_rates.items()}
    result = {
        **how,
        "settings": {name: getattr(flags, name) for name in (*_FULL, "threads")},
        # Shortest, longest, rows, distinct ones.
        "prompt_tokens": [[min(map(len, turn)), max(map(len, turn)), len(turn), len(set(turn))] for turn in chosen],
        "outputs": counts,
        "tokens_per_second": rates,
        "tokens_per_cpu_second": cpu_rates,
        "median": medians,
        "ratio": medians["ours"] / medians["generate"],
        "ratio_cpu": cpu_medians["ours"] / cpu_medians["generate"],
    }
    write(result, flags.out)
    return result


if __name__ == "__main__":
    main()
