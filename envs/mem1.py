"""MEM1's layout of several questions in one (Zhou et al., arXiv 2506.15841), read from files that have it.

Its code joins questions by ``"; "``, each with a question mark, after the words ``Answer the following questions:``,
asks for ``<answer> answer1; answer2; ... </answer>``, and writes tasks as Parquet rows ``{data_source, prompt,
reward_model}``. ``Task.text`` is what it joins; ``composition="mem1"`` gives the question marks.

Invariant: a row has as many lists of gold answers as questions; where a question holds the separator itself, the counts
differ and the row is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from mempo_env.errors import UserError

from .jsonl import Question
from .records_io import Row, answers, is_list, objects, present, text

SEPARATOR = "; "
OPENING = "Answer the following questions: "
"""What stands before the joined questions in a prompt of its data."""


def mem1_questions(row: Row, where: str) -> tuple[Question, ...]:
    """The questions of ``{prompt: [{content}], reward_model: {ground_truth: {target: [[..], ..]}}, data_source?}``.

    Args:
        row: The row.
        where: Its place, for messages.

    Returns:
        The questions of one task, in order, with the row as their ``record``.

    Raises:
        UserError: A field is missing or malformed, or questions and answers differ in number.
    """
    prompt = "\n".join(text(message, "content", where) for message in objects(row, "prompt", where))
    _, opening, joined = prompt.rpartition(OPENING)
    if not opening:
        raise UserError(f"{where}: 'prompt' does not say '{OPENING.strip()}'")
    targets = row["reward_model"]
    for field in ("ground_truth", "target"):
        if not isinstance(targets, Mapping):
            raise UserError(f"{where}: 'reward_model' must be an object with ground_truth.target")
        targets = present(dict(targets), field, where)
    return _task(joined, targets, where, text(row, "data_source", where) if "data_source" in row else "")


def joined_questions(row: Row, where: str) -> tuple[Question, ...]:
    """The same in plain: ``{questions: "q1; q2", target: [["a1"], ["a2", "alias"]]}``; see ``mem1_questions``."""
    return _task(text(row, "questions", where), row["target"], where, "")


def _task(joined: str, targets: object, where: str, dataset: str) -> tuple[Question, ...]:
    questions = [part.strip() for part in joined.strip().split(SEPARATOR)]
    if not is_list(targets) or len(targets) != len(questions):
        count = len(targets) if is_list(targets) else "no"
        raise UserError(f"{where}: {len(questions)} questions, separated by '{SEPARATOR}', with {count} answer lists")
    place = where.rpartition(":")[2].strip()  # without the path, so that ids are the same on every machine
    record = hashlib.sha256(f"{place}\0{joined}".encode("utf-8", errors="surrogatepass")).hexdigest()[:16]
    made = []
    for at, (question, target) in enumerate(zip(questions, targets, strict=True)):
        row: Row = {"question": question, "target": target}
        gold = answers(row, "target", where)
        name = f"{record}-{at}"
        made.append(
            Question(name, text(row, "question", where), gold, "question", (), where, dataset=dataset, record=record)
        )
    return tuple(made)
