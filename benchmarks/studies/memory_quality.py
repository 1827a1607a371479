"""Does Q(m) mean something before any training? An untrained model on real questions.

For each question Q(m) is computed for three memories: extracts of the gold passages, an empty memory, and as many
extracts drawn from other questions. Invariant: same prompts and same questions for all three; only the memory differs.

    python benchmarks/studies/memory_quality.py --data ../shared/data/hotpotqa --questions 100 --out result.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from mempo_env.agents.contexts import get_context
from mempo_env.agents.models import load_model, make_codec
from mempo_env.agents.policy import LoraPolicy
from mempo_env.algos.memory_reward import AnswerScorer
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.envs.qa_data import QaDataset
from mempo_env.metrics import bootstrap_interval
from mempo_env.versions import versions


def measure(model_name: str, dtype: str, data: Path, split: str, questions: int, seed: int) -> dict[str, object]:
    """Scores the three memories of each question.

    Args:
        model_name: As ``load_model`` takes it.
        dtype: Weights' type.
        data: Data folder.
        split: Split of the questions.
        questions: How many, drawn by ``seed``.
        seed: Seed of questions and random passages.

    Returns:
        Means with 95 % bootstrap intervals, and what was run.
    """
    model, tokenizer = load_model(model_name, dtype=dtype)  # type: ignore[arg-type]
    policy = LoraPolicy(model, make_codec(model, tokenizer), get_context("memory"))
    env = MultiGoalEnv(goals=1, dataset="qa", data=str(data), split=split)
    scorer = AnswerScorer(policy, env.instructions, max_tokens=4096)
    dataset, rng = QaDataset([data], split), np.random.default_rng(seed)
    chosen = rng.permutation(len(dataset.questions))[:questions]
    tasks = [dataset.compose([dataset.questions[i]]) for i in chosen]
    notes = ["; ".join(evidence.note for evidence in task.goals[0].evidence) for task in tasks]
    order = rng.permutation(len(tasks))
    while (order == np.arange(len(tasks))).any():  # nobody keeps the own notes
        order = rng.permutation(len(tasks))
    memories = {"supporting": notes, "empty": [""] * len(tasks), "random": [notes[i] for i in order]}
    started = time.perf_counter()
    result: dict[str, object] = {}
    for name, texts in memories.items():
        quality = scorer.quality(list(zip(tasks, texts, strict=True))).numpy()  # (questions,)
        low, high = bootstrap_interval(quality)
        result[name] = {"mean": float(quality.mean()), "low": low, "high": high}
    return {
        "quality": result,
        "questions": len(tasks),
        "model": model_name,
        "dtype": dtype,
        "data": data.name,
        "split": split,
        "seed": seed,
        "seconds": time.perf_counter() - started,
        "versions": versions(),
    }


def main() -> None:
    """Reads the flags, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    result = measure(flags.model, flags.dtype, flags.data, flags.split, flags.questions, flags.seed)
    Console().print_json(json.dumps(result["quality"]))
    if flags.out:
        flags.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
