"""Reads files of documents with questions about them.

Invariant: a row is either understood completely or refused with a ``UserError`` that names file, line and what is
wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mempo_env.errors import UserError

from .jsonl import Question
from .records_io import answers, read_rows, text, texts


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
    for where, row in read_rows(Path(path)):
        name = text(row, "id", where) if "id" in row else where.rpartition(":")[2]
        if name in seen:
            raise UserError(f"{where}: the id {name!r} occurs twice; ids must be unique")
        seen.add(name)
        if ("text" in row) == ("chunks" in row):
            raise UserError(f"{where}: give the document as 'text' or as 'chunks', one of the two")
        whole, chunks = (text(row, "text", where), ()) if "text" in row else ("", texts(row, "chunks", where))
        asked = row.get("questions")
        if not isinstance(asked, list) or not asked or not all(isinstance(each, dict) for each in asked):
            raise UserError(f"{where}: 'questions' must be a list of objects with question and answers, one at least")
        if "chunks" in row and not chunks:
            raise UserError(f"{where}: 'chunks' is empty; a document has at least one")
        questions = []
        for number, each in enumerate(asked, start=1):
            at = f"{where}, question {number}"
            gold = answers(each, "answers", at)
            if ";" in (question := text(each, "question", at)) + gold[0]:
                raise UserError(
                    f"{at}: ';' separates questions and answers; write another sign, or another answer first"
                )
            questions.append(Question(f"{name}/{number}", question, gold, "document", (), at))
        rows.append(DocumentRow(name, whole, chunks, tuple(questions), where))
    if not rows:
        raise UserError(f"{path} has no rows; give a file with at least one document")
    return tuple(rows)
