"""One learner step against TRL's, on the same model, rows, dtype, LoRA and beta: seconds, memory, share of matmul rate.

A step is the reference pass, forward and backward over all rows, and the optimizer step; nobody samples. The rows are
what a group of GRPO is in TRL: one prompt, several outputs. Each side runs in processes of its own, in turns. Each
first tries its settings on one group; the one that takes the least CPU time, or within noise of it the least memory,
does the whole. With shared prefixes a group of ours is 1,907 tokens: settings above that are told apart by noise alone.

    python benchmarks/learner_step.py --rows 64 --rounds 3 --threads 2 --out benchmarks/results/learner_step.json
    python benchmarks/learner_step.py --quick

Invariant: both sides are given the same ids, advantages and adapter shape, and both take the optimizer step.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import forget_peak, resident

BETA, RANK, GROUP = 1e-3, 16, 8
OURS: list[dict[str, Any]] = [{"micro": tokens} for tokens in (1024, 2048, 4096, 8192)]
TRL: list[dict[str, Any]] = [{"micro": rows, "checkpointing": flag} for flag in (False, True) for rows in (1, 2, 4, 8)]
NOISE = 0.05
"""Share by which CPU times of equal steps were seen to differ."""
SAME = ("model", "dtype", "prompt", "output", "threads")
"""What a grid must have in common with the work that it is used for."""
Grids = dict[str, list[dict[str, Any]]]
QUICK_SETTINGS: Grids = {"ours": [{"micro": 4096}], "trl": [{"micro": 4, "checkpointing": False}]}
QUICK = {"model": "tiny", "dtype": "float32", "rows": 16, "prompt": 96, "output": 32, "threads": 1}


@dataclass(frozen=True)
class Work:
    """What is computed.

    Attributes:
        model: ``smollm2``; ``wide``: a small Qwen2 body under Qwen2.5's vocabulary; ``tiny``: a Qwen2 of a few words.
        dtype: Of weights and activations.
        rows: Rows, in groups of eight that share their prompt.
        prompt: Prompt tokens.
        output: Output tokens.
        threads: CPU threads.
    """

    model: str = "smollm2"
    dtype: str = "bfloat16"
    rows: int = 64
    prompt: int = 700
    output: int = 150
    threads: int = 2


def load(work: Work) -> tuple[Any, Any]:
    """Model and tokenizer, without an adapter."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from mempo_env.agents.models import load_model
    from mempo_env.agents.tiny import build_tiny

    torch.set_num_threads(work.threads)
    if work.model == "tiny":
        small, words = build_tiny(0, [f"word{n}" for n in range(1000)])
        return small.to(getattr(torch, work.dtype)), words
    model, tokenizer = load_model("smollm2", dtype=work.dtype)  # type: ignore[arg-type]
    if work.model == "wide":
        torch.manual_seed(0)
        shape = Qwen2Config(
            vocab_size=151_936, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=4, tie_word_embeddings=True, max_position_embeddings=4096,
        )  # fmt: skip
        model = Qwen2ForCausalLM(shape).to(getattr(torch, work.dtype))
    return model, tokenizer


def make_groups(work: Work, vocabulary: int) -> list[Any]:
    """Groups of one-turn episodes with random ids."""
    import torch

    from mempo_env.actions import Answer
    from mempo_env.records import Episode, Goal, Task, Turn

    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, vocabulary - 10, (count,), generator=generator).tolist())

    groups = []
    for g in range(work.rows // GROUP):
        prompt, group = ids(work.prompt), []
        for i in range(GROUP):
            observation = dict.fromkeys(("task", "memory", "tool_result", "budget"), "")
            turn = Turn(
                observation, "", Answer(("x",)), 0.0, {"outcome": 0.0}, "", False, work.prompt, work.output,
                prompt, ids(work.output), (-1.0,) * work.output, (0,) * work.output,
            )  # fmt: skip
            task = Task((Goal("?", ("x",)),), id=str(g))
            group.append(Episode((turn,), task, str(g), i, 0, 0.0, True, False))
        groups.append(tuple(group))
    return groups


def advantages(groups: list[Any]) -> list[float]:
    """One per row, not 0."""
    return [(1.0 if i % 2 else -1.0) * (1 + i / 10) for group in groups for i in range(len(group))]


def our_step(work: Work, micro: int) -> Callable[[int], None]:
    """A function that takes a step on the first ``n`` groups."""
    import torch

    from mempo_env.agents.contexts import get_context
    from mempo_env.agents.models import add_lora, make_codec
    from mempo_env.agents.policy import LoraPolicy
    from mempo_env.agents.settings import LoraSettings
    from mempo_env.algos.algorithm_config import GRPOConfig
    from mempo_env.algos.base import Advantages
    from mempo_env.algos.config import OptimConfig
    from mempo_env.algos.grpo import GRPO
    from mempo_env.algos.optim import Optimizer, trainable
    from mempo_env.algos.update import Updater

    model, tokenizer = load(work)
    codec = make_codec(model, tokenizer)
    policy = LoraPolicy(add_lora(model, LoraSettings(rank=RANK, alpha=2 * RANK), seed=0), codec, get_context("memory"))
    algorithm = GRPO(GRPOConfig(beta=BETA))
    optimizer = Optimizer(trainable(policy.model), OptimConfig(lr=1e-5), 1000)
    updater = Updater(policy, algorithm, optimizer, micro_batch_tokens=micro)
    groups = make_groups(work, model.config.vocab_size)
    values = iter(advantages(groups))
    given = {(g, i, 0): torch.full((work.output,), next(values)) for g in range(len(groups)) for i in range(GROUP)}

    def step(n: int) -> None:
        updater.update(groups[:n], Advantages(given))

    return step


def trl_step(work: Work, micro: int, checkpointing: bool) -> Callable[[int], None]:
    """The same with TRL's trainer: its reference pass, its loss, its log-probabilities."""
    import datasets
    import torch
    import trl
    from peft import LoraConfig

    model, tokenizer = load(work)
    folder = tempfile.mkdtemp(prefix="trl-")
    trainer: Any = trl.GRPOTrainer(
        model=copy.deepcopy(model),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=GROUP,
            num_generations=GROUP,
            max_completion_length=work.output,
            bf16=False,
            use_cpu=True,
            report_to=[],
            beta=BETA,
            loss_type="grpo",
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["-"] * GROUP}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    if checkpointing:
        trainer.model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-5)
    groups = make_groups(work, model.config.vocab_size)
    rows = [episode.turns[0] for group in groups for episode in group]
    prompts, outputs = (torch.tensor([getattr(row, f"{name}_ids") for row in rows]) for name in ("prompt", "output"))
    given = torch.tensor(advantages(groups))

    def step(n: int) -> None:
        count = n * GROUP
        parts = [slice(start, min(start + micro, count)) for start in range(0, count, micro)]
        references = []
        with torch.no_grad(), trainer.model.disable_adapter():
            for part in parts:
                ids = torch.cat([prompts[part], outputs[part]], dim=1)
                found = trainer._get_per_token_logps_and_entropies(
                    trainer.model, ids, torch.ones_like(ids), work.output, batch_size=micro
                )
                references.append(found[0])
        for part, reference in zip(parts, references, strict=True):
            loss = trainer.compute_loss(
                trainer.model,
                {
                    "prompt_ids": prompts[part], "prompt_mask": torch.ones_like(prompts[part]),
                    "completion_ids": outputs[part], "completion_mask": torch.ones_like(outputs[part]),
                    "advantages": given[part], "ref_per_token_logps": reference, "num_items_in_batch": None,
                },
            )  # fmt: skip
            (loss * (part.stop - part.start) / count).backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def matmul_rate(dtype: str, threads: int) -> float:
    """FLOP/s of a large product in this process."""
    import torch

    torch.set_num_threads(threads)
    a, b = (torch.randn(2048, 2048, dtype=getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best


def step_flops(work: Work, model: Any) -> float:
    """FLOPs of one step with each prompt computed once per group; what is computed twice to save memory is not counted.

    Per token and pass 2 x (weights of the body's matrices) and, for attention, 4 x width x visible positions, halved
    under the causal mask; the head, 2 x width x vocabulary, on output tokens. A backward pass costs as much as a
    forward one (the base is frozen, so there is no gradient of its weights), attention's twice; the adapters are left
    out. Passes: the reference, forward, backward.
    """
    shape, groups = model.config, work.rows // GROUP
    layers, width = shape.num_hidden_layers, shape.hidden_size
    body = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name)
    tokens = groups * (work.prompt + GROUP * work.output)
    seen = groups * (work.prompt**2 / 2 + GROUP * work.output * (work.prompt + work.output / 2))
    head = 2 * width * shape.vocab_size * work.rows * work.output
    return float(3 * (2 * body * tokens + head) + 4 * (4 * layers * width * seen))


def serve(side: str, work: Work, setting: dict[str, Any]) -> None:
    """A worker: reads numbers of groups, takes a step on each, answers with seconds and memory."""
    step = our_step(work, **setting) if side == "ours" else trl_step(work, **setting)
    loaded = forget_peak()
    _say({"ready": True, "matmul": matmul_rate(work.dtype, work.threads)})
    for line in sys.stdin:
        begun, cpu = time.perf_counter(), time.process_time()
        step(int(line))
        peak = resident("VmHWM")
        _say(
            {
                "seconds": time.perf_counter() - begun,
                "cpu_seconds": time.process_time() - cpu,
                "peak_gib": peak / 2**30,
                "above_model_gib": (peak - loaded) / 2**30,
            }
        )


def _say(record: dict[str, Any]) -> None:
    sys.stdout.write("@" + json.dumps(record) + "\n")
    sys.stdout.flush()


class Worker:
    """One side with one setting, in a process of its own."""

    def __init__(self, side: str, work: Work, setting: dict[str, Any]) -> None:
        self.side, self.setting = side, setting
        command = [sys.executable, __file__, "--worker", json.dumps([side, asdict(work), setting])]
        environment = os.environ | {"OMP_NUM_THREADS": str(work.threads), "TRL_EXPERIMENTAL_SILENCE": "1"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.facts = self._answer()

    def step(self, groups: int) -> dict[str, Any]:
        """One step on that many groups."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{groups}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                found: dict[str, Any] = json.loads(line[1:])
                return found
        raise RuntimeError(f"{self.side} {self.setting} ended: {self.process.wait()}")


def try_settings(side: str, work: Work, settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each setting on one group, the better of two steps; one that fails for memory stands with its error."""
    grid = []
    for setting in settings:
        worker = Worker(side, work, setting)
        try:
            worker.step(1)
            grid.append(setting | min((worker.step(1) for _ in range(2)), key=lambda record: record["cpu_seconds"]))
        except RuntimeError as error:
            grid.append(setting | {"error": str(error)})
        finally:
            worker.close()
        sys.stderr.write(f"{side} {grid[-1]}\n")
    return grid


def fastest(grid: list[dict[str, Any]], settings: list[dict[str, Any]]) -> dict[str, Any]:
    """The setting of least CPU time, and of least memory among those that differ by no more than noise.

    Other programs lengthen CPU time less than they lengthen the time by the clock.
    """
    tried = [record for record in grid if "error" not in record]
    if not tried:
        raise RuntimeError("no setting took a step: see the errors of the grid above")
    least = min(record["cpu_seconds"] for record in tried)
    equal = [record for record in tried if record["cpu_seconds"] <= (1 + NOISE) * least]
    best = min(equal, key=lambda record: record["peak_gib"])
    return {name: best[name] for name in settings[0]}


def measure(work: Work, rounds: int, settings: Grids, known: Grids) -> dict[str, Any]:
    """Grids, where none are known, then both sides in turns; medians and ratios."""
    chosen, grids = {}, {}
    for side in settings:
        grids[side] = known.get(side) or try_settings(side, work, settings[side])
        chosen[side] = fastest(grids[side], settings[side])
    workers = {side: Worker(side, work, setting) for side, setting in chosen.items()}
    records: dict[str, list[dict[str, Any]]] = {side: [] for side in workers}
    for worker in workers.values():
        worker.step(1)  # what happens once: threads, kernels
    for _ in range(rounds):
        for side, worker in workers.items():
            records[side].append(worker.step(work.rows // GROUP))
            sys.stderr.write(f"{side} {records[side][-1]}\n")
    tokens = work.rows * (work.prompt + work.output)
    rate = statistics.median(worker.facts["matmul"] for worker in workers.values())
    for worker in workers.values():
        worker.close()
    result: dict[str, Any] = {"work": asdict(work), "rounds": rounds, "grids": grids, "matmul_gflops": rate / 1e9}
    for side, found in records.items():
        seconds = statistics.median(record["seconds"] for record in found)
        result[side] = {
            "setting": chosen[side],
            "seconds": [record["seconds"] for record in found],
            "cpu_seconds": [record["cpu_seconds"] for record in found],
            "tokens_per_second": tokens / seconds,
            "peak_gib": max(record["peak_gib"] for record in found),
            "above_model_gib": max(record["above_model_gib"] for record in found),
        }
    model = load(work)[0]
    needed = step_flops(work, model)
    ours = statistics.median(result["ours"]["seconds"])
    result["share_of_matmul_rate"] = needed / ours / rate
    result["tflop_per_step"] = needed / 1e12
    result["speed_ratio"] = result["ours"]["tokens_per_second"] / result["trl"]["tokens_per_second"]
    result["memory_ratio"] = result["ours"]["above_model_gib"] / result["trl"]["above_model_gib"]
    return result


def main() -> None:
    """Parses, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in asdict(Work()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rows: whether all of it runs")
    parser.add_argument("--grids", type=Path, help="JSON with the grids of a former call, as in its result")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        side, work, setting = json.loads(flags.worker)
        serve(side, Work(**work), setting)
        return
    if flags.quick:
        vars(flags).update(QUICK)
    if flags.rows % GROUP:
        parser.error(f"--rows must be a multiple of {GROUP}")
    from importlib.metadata import version

    from results_io import facts, write

    how = facts()
    how["versions"] |= {"trl": version("trl")}
    known = json.loads(flags.grids.read_text(encoding="utf-8")) if flags.grids else {}
    work = Work(**{name: getattr(flags, name) for name in asdict(Work())})
    if known and (other := [name for name in SAME if known["work"][name] != getattr(work, name)]):
        parser.error(f"--grids {flags.grids} was measured with another {other[0]}; leave the flag out")
    known = known.get("grids", {})
    settings = QUICK_SETTINGS if flags.quick else {"ours": OURS, "trl": TRL}
    write(how | measure(work, flags.rounds, settings, known), flags.out)


if __name__ == "__main__":
    main()
