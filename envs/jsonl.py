"""The project's own layout of a data set: ``questions.SPLIT.jsonl`` and ``corpus.jsonl``, plain or gzipped.

Invariant: a row is either understood completely or refused with a ``UserError`` that names file, line and what is
wrong; nothing is skipped, guessed or half loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mempo_env.errors import UserError
from mempo_env.records import Passage

from .records_io import Row, answers, read_rows, text, texts
from .search_protocol import read_contents


@dataclass(frozen=True)
class Question:
    """A question of a data set, whatever format it was read from.

    Attributes:
        id: Unique in its file.
        text: The question.
        answers: Gold answers, the primary one first.
        kind: The data set's own type, such as ``bridge``.
        supporting_ids: Ids of the gold passages; empty if the file does not tell, or the corpus lacks one of them.
        where: ``file:line``, for messages.
        hops: How many gold passages the answer rests on; 0 if the file does not tell.
        dataset: Name of the data set, such as ``hotpotqa``; compositions go by it.
        record: Which row of a file of whole tasks the question stands in; empty for a file of questions.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    kind: str
    supporting_ids: tuple[str, ...]
    where: str
    hops: int = 0
    dataset: str = ""
    record: str = ""


def load_questions(path: str | Path) -> tuple[Question, ...]:
    """Reads a questions file: rows ``{id, question, answers, type?, supporting_ids?, hops?}``; others are ignored.

    Args:
        path: ``.jsonl`` or ``.jsonl.gz``.

    Returns:
        The questions in the file's order.

    Raises:
        UserError: The file is missing, cannot be read, is empty or has a bad row.
    """
    questions: list[Question] = []
    seen: set[str] = set()
    for where, row in read_rows(Path(path)):
        question = own_question(row, where)
        if question.id in seen:
            raise UserError(f"{where}: the id {question.id!r} occurs twice; ids must be unique")
        seen.add(question.id)
        questions.append(question)
    if not questions:
        raise UserError(f"{path} has no rows; give a file with at least one question")
    return tuple(questions)


def own_question(row: Row, where: str) -> Question:
    """A row of a questions file.

    Raises:
        UserError: A field is missing or malformed.
    """
    name = text(row, "id", where)
    gold = answers(row, "answers", where)
    kind = text(row, "type", where) if "type" in row else "question"
    supporting = texts(row, "supporting_ids", where) if "supporting_ids" in row else ()
    hops = row.get("hops", len(set(supporting)))
    if isinstance(hops, bool) or not isinstance(hops, int) or hops < 0:
        raise UserError(f"{where}: 'hops' must be a whole number from 0, not {hops!r}")
    return Question(name, text(row, "question", where), gold, kind, supporting, where, hops)


def load_corpus(path: str | Path) -> tuple[Passage, ...]:
    r"""Reads a corpus file.

    Rows are ``{id, title, text}`` (ours, and the columns of DPR's ``psgs_w100.tsv``), or ``{id, contents}``, with the
    title in quotes on the first line of ``contents`` or text alone (FlashRAG, Search-R1); other fields are ignored.

    Args:
        path: ``.jsonl``, ``.json`` or ``.tsv``, plain or gzipped.

    Returns:
        The passages in the file's order.

    Raises:
        UserError: The file is missing, cannot be read, is empty or has a bad row.
    """
    passages: list[Passage] = []
    seen: set[str] = set()
    for where, row in read_rows(Path(path)):
        plain = "contents" not in row or "text" in row
        passage = _with_title(row, where) if plain else _with_contents(row, where)
        if passage.id in seen:
            raise UserError(f"{where}: the id {passage.id!r} occurs twice; ids must be unique")
        seen.add(passage.id)
        passages.append(passage)
    if not passages:
        raise UserError(f"{path} has no rows; give a file with at least one passage")
    return tuple(passages)


def _with_title(row: Row, where: str) -> Passage:
    return Passage(text(row, "id", where), text(row, "title", where, empty=True), text(row, "text", where))


def _with_contents(row: Row, where: str) -> Passage:
    title, body = read_contents(text(row, "contents", where))
    if not body.strip():
        raise UserError(f"{where}: 'contents' has a title and no text")
    return Passage(text(row, "id", where), title.strip(), body)


def find_file(folder: Path, stem: str) -> Path | None:
    """The file ``stem.jsonl`` or ``stem.jsonl.gz`` of a folder, or None; the plain one first."""
    return next((path for suffix in (".jsonl", ".jsonl.gz") if (path := folder / (stem + suffix)).is_file()), None)
