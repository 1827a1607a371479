"""Reading questions and corpora from JSON-lines files, plain or gzipped.

Invariant: a row is either understood completely or refused with a ``UserError`` that names file, line and what is
wrong; nothing is skipped, guessed or half loaded.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mempo_env.errors import UserError
from mempo_env.records import Passage


@dataclass(frozen=True)
class Question:
    """A row of a questions file.

    Attributes:
        id: Unique in its file.
        text: The question.
        answers: Gold answers, the primary one first.
        kind: The data set's own type, such as ``bridge``.
        supporting_ids: Ids of the gold passages; empty if the file does not tell.
        where: ``file:line``, for messages.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    kind: str
    supporting_ids: tuple[str, ...]
    where: str


def load_questions(path: str | Path) -> tuple[Question, ...]:
    """Reads a questions file: rows ``{id, question, answers, type?, supporting_ids?}``; other fields are ignored.

    Args:
        path: ``.jsonl`` or ``.jsonl.gz``.

    Returns:
        The questions in the file's order.

    Raises:
        UserError: The file is missing, cannot be read, is empty or has a bad row.
    """
    questions: list[Question] = []
    seen: set[str] = set()
    for where, row in _rows(Path(path)):
        name = _text(row, "id", where)
        if name in seen:
            raise UserError(f"{where}: the id {name!r} occurs twice; ids must be unique")
        seen.add(name)
        answers = _texts(row, "answers", where)
        if not answers:
            raise UserError(f"{where}: 'answers' is empty; give at least one gold answer")
        kind = _text(row, "type", where) if "type" in row else "question"
        supporting = _texts(row, "supporting_ids", where) if "supporting_ids" in row else ()
        questions.append(Question(name, _text(row, "question", where), answers, kind, supporting, where))
    if not questions:
        raise UserError(f"{path} has no rows; give a file with at least one question")
    return tuple(questions)


def load_corpus(path: str | Path) -> tuple[Passage, ...]:
    """Reads a corpus file: rows ``{id, title, text}``; other fields are ignored.

    Args:
        path: ``.jsonl`` or ``.jsonl.gz``.

    Returns:
        The passages in the file's order.

    Raises:
        UserError: The file is missing, cannot be read, is empty or has a bad row.
    """
    passages: list[Passage] = []
    seen: set[str] = set()
    for where, row in _rows(Path(path)):
        name = _text(row, "id", where)
        if name in seen:
            raise UserError(f"{where}: the id {name!r} occurs twice; ids must be unique")
        seen.add(name)
        passages.append(Passage(name, _text(row, "title", where, empty=True), _text(row, "text", where)))
    if not passages:
        raise UserError(f"{path} has no rows; give a file with at least one passage")
    return tuple(passages)


@dataclass(frozen=True)
class DocumentRow:
    """A row of a documents file.

    Attributes:
        id: Unique in its file.
        text: The document, where the row does not cut it itself; else empty.
        chunks: Its parts in order, where the row gives them; else empty.
        questions: What can be asked about it.
        where: ``file:line``, for messages.
    """

    id: str
    text: str
    chunks: tuple[str, ...]
    questions: tuple[Question, ...]
    where: str


def load_document_rows(path: str | Path) -> tuple[DocumentRow, ...]:
    """Reads a documents file: rows ``{id?, text | chunks, questions: [{question, answers}]}``; others are ignored.

    Args:
        path: ``.jsonl`` or ``.jsonl.gz``.

    Returns:
        The rows in the file's order; one without an id is called by its line.

    Raises:
        UserError: The file is missing, cannot be read, is empty or has a bad row.
    """
    rows: list[DocumentRow] = []
    seen: set[str] = set()
    for where, row in _rows(Path(path)):
        name = _text(row, "id", where) if "id" in row else where.rpartition(":")[2]
        if name in seen:
            raise UserError(f"{where}: the id {name!r} occurs twice; ids must be unique")
        seen.add(name)
        if ("text" in row) == ("chunks" in row):
            raise UserError(f"{where}: give the document as 'text' or as 'chunks', one of the two")
        text, chunks = (_text(row, "text", where), ()) if "text" in row else ("", _texts(row, "chunks", where))
        asked = row.get("questions")
        if not isinstance(asked, list) or not asked or not all(isinstance(each, dict) for each in asked):
            raise UserError(f"{where}: 'questions' must be a list of objects with question and answers, one at least")
        if "chunks" in row and not chunks:
            raise UserError(f"{where}: 'chunks' is empty; a document has at least one")
        questions = []
        for number, each in enumerate(asked, start=1):
            at = f"{where}, question {number}"
            answers = _texts(each, "answers", at)
            if not answers:
                raise UserError(f"{at}: 'answers' is empty; give at least one gold answer")
            if ";" in (question := _text(each, "question", at)) + answers[0]:
                raise UserError(
                    f"{at}: ';' separates questions and answers; write another sign, or another answer first"
                )
            questions.append(Question(f"{name}/{number}", question, answers, "document", (), at))
        rows.append(DocumentRow(name, text, chunks, tuple(questions), where))
    if not rows:
        raise UserError(f"{path} has no rows; give a file with at least one document")
    return tuple(rows)


def find_file(folder: Path, stem: str) -> Path | None:
    """The file ``stem.jsonl`` or ``stem.jsonl.gz`` of a folder, or None; the plain one first."""
    return next((path for suffix in (".jsonl", ".jsonl.gz") if (path := folder / (stem + suffix)).is_file()), None)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ``(file:line, row)``; blank lines are allowed."""
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}:{number}"
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as problem:
                    raise UserError(f"{where}: not UTF-8 ({problem.reason}); save the file as UTF-8") from None
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                except (ValueError, RecursionError) as problem:
                    raise UserError(f"{where}: not valid JSON ({problem}); each line must be one JSON object") from None
                if not isinstance(row, dict):
                    raise UserError(f"{where}: a {type(row).__name__}; each line must be one JSON object")
                yield where, row
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path of the data folder") from None
    except (OSError, EOFError, zlib.error) as problem:
        raise UserError(f"{path}: cannot be read after line {number} ({problem}); fetch the file again") from None


def _text(row: dict[str, Any], field: str, where: str, *, empty: bool = False) -> str:
    if field not in row:
        raise UserError(f"{where}: the field '{field}' is missing; the row has {', '.join(sorted(row)) or 'no fields'}")
    value = row[field]
    if not isinstance(value, str):
        raise UserError(f"{where}: '{field}' must be a string, not {type(value).__name__}")
    if not empty and not value.strip():
        raise UserError(f"{where}: '{field}' is empty")
    return value


def _texts(row: dict[str, Any], field: str, where: str) -> tuple[str, ...]:
    if field not in row:
        raise UserError(f"{where}: the field '{field}' is missing; the row has {', '.join(sorted(row)) or 'no fields'}")
    value = row[field]
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise UserError(f"{where}: '{field}' must be a list of strings that are not empty")
    return tuple(value)
