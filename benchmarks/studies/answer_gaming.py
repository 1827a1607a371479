"""What answers that know nothing earn: the question copied, all options listed, thousands of candidates, and so on.

EM pays none of them more than a lucky guess; token F1, as published, pays part of a listed option. Invariant: the same
questions and the project's own scores for every strategy; no model takes part.

    python benchmarks/studies/answer_gaming.py --data ../shared/data --out result.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mempo_env.envs.jsonl import Question
from mempo_env.envs.qa_data import QaDataset
from mempo_env.metrics import score_answers
from mempo_env.versions import versions

NAMES = ("hotpotqa", "2wikimultihopqa", "musique", "nq")


def strategies(data: QaDataset, train: QaDataset) -> dict[str, Callable[[Question], str]]:
    """Answers by strategy; a ``;`` would be a second answer and is written as a comma."""
    candidates = ", ".join(sorted({question.answers[0] for question in train.questions}))

    def titles(question: Question) -> list[str]:
        return [data.passage(name).title for name in question.supporting_ids]

    return {
        "question copied": lambda question: question.text,
        "all gold titles listed": lambda question: ", ".join(titles(question)),
        "first gold title": lambda question: titles(question)[0],
        "all training answers listed": lambda question: candidates,
        "gold passages whole": lambda question: " ".join(data.passage(name).text for name in question.supporting_ids),
        "yes or no": lambda question: "yes or no",
        "yes": lambda question: "yes",
    }


def measure(folder: Path) -> list[dict[str, object]]:
    """Scores every strategy on all dev questions of a data set, and on its comparisons.

    Args:
        folder: Data folder.

    Returns:
        Rows with mean EM and F1, and the largest F1 of an answer that is not right.
    """
    data, train = QaDataset([folder], "dev"), QaDataset([folder], "train")
    rows: list[dict[str, object]] = []
    for kind in ("all", "comparison"):
        chosen = [question for question in data.questions if kind in ("all", question.kind)]
        goals = [data.compose([question]).goals for question in chosen]
        for name, answer in strategies(data, train).items() if chosen else ():
            scores = [
                score_answers([answer(question).replace(";", ",")], goal)
                for question, goal in zip(chosen, goals, strict=True)
            ]
            rows.append(
                {
                    "data": folder.name,
                    "kind": kind,
                    "questions": len(chosen),
                    "strategy": name,
                    "em": float(np.mean([score.em for score in scores])),
                    "f1": float(np.mean([score.f1 for score in scores])),
                    "largest_f1_of_a_wrong_answer": max(score.f1 for score in scores if score.em < 1),
                }
            )
    return rows


def main() -> None:
    """Reads the flags, measures, shows and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the four data sets")
    parser.add_argument("--out", type=Path, help="file to write the result to")
    flags = parser.parse_args()
    rows = [row for name in NAMES for row in measure(flags.data / name)]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if flags.out:
        flags.out.write_text(json.dumps({"rows": rows, "versions": versions()}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
