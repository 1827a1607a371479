"""Documents from files: a folder with ``documents.SPLIT.jsonl`` (or ``.jsonl.gz``), read by ``jsonl``.

A row is ``{"id"?, "text" | "chunks", "questions": [{"question", "answers"}]}``: what RULER's and MemAgent's question
answering sets hold (a context, a question, its answers), with several questions a document where there are some.

Invariants:
    * a text is cut into chunks of at most ``chunk_tokens`` of the regex counter, at ends of sentences where there are
      any, and the chunks joined by a space are the text (white space aside);
    * no document stands in two splits of a folder;
    * a task is a function of the generator, the number of goals and the files.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mempo_env.errors import UserError
from mempo_env.records import Evidence, Goal, Passage, Task
from mempo_env.tokens import RegexTokenCounter

from .document_rows import DocumentRow, load_document_rows
from .document_world import MAX_CHUNKS
from .jsonl import Question, find_file

EXTRACT_WORDS = 12
"""Words of the extract around an answer that a scripted expert notes; our choice."""
_COUNTER = RegexTokenCounter()
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Document:
    """A document that can be asked about: its chunks and its goals."""

    id: str
    chunks: tuple[Passage, ...]
    goals: tuple[Goal, ...]


@dataclass(frozen=True)
class DocumentFiles:
    """The documents of a split."""

    folder: Path
    split: str
    chunk_tokens: int
    documents: tuple[Document, ...]

    def __reduce__(self) -> tuple[object, ...]:
        return load_documents, (self.folder, self.split, self.chunk_tokens)

    @property
    def longest(self) -> int:
        """Most chunks of a document."""
        return max(len(document.chunks) for document in self.documents)

    def sample(self, rng: np.random.Generator, goals: int) -> Task:
        """Draws a document and some of its questions.

        Args:
            rng: Decides both.
            goals: Number of goals.

        Returns:
            A task whose ``passages`` are the chunks in order.

        Raises:
            UserError: No document has so many questions.
        """
        able = [document for document in self.documents if len(document.goals) >= goals]
        if not able:
            most = max(len(document.goals) for document in self.documents)
            raise UserError(
                f"{goals} goals, but the {self.split} documents of {self.folder} have {most} questions at most"
            )
        document = able[int(rng.integers(len(able)))]
        chosen = rng.choice(len(document.goals), size=goals, replace=False)
        return Task(tuple(document.goals[int(at)] for at in chosen), f"doc-{document.id}", document.chunks)


@functools.lru_cache(maxsize=8)
def load_documents(folder: Path, split: str, chunk_tokens: int) -> DocumentFiles:
    """Reads and cuts the documents of a split; what was read once is shared by the environments of a process.

    Args:
        folder: The folder.
        split: Which ``documents.SPLIT`` file.
        chunk_tokens: Longest chunk of a document that is given as one text.

    Returns:
        The documents.

    Raises:
        UserError: A file is missing or malformed, a document is too long, or it stands in two splits.
    """
    path = find_file(folder, f"documents.{split}")
    names = {file.name.removesuffix(".gz") for file in folder.glob("documents.*")} if folder.is_dir() else set()
    splits = sorted(name[len("documents.") : -len(".jsonl")] for name in names if name.endswith(".jsonl"))
    if path is None:
        raise UserError(
            f"{folder} has no documents.{split}.jsonl or .jsonl.gz; its splits: {', '.join(splits) or 'none'}"
        )
    rows = load_document_rows(path)
    ours = {_content(row) for row in rows}
    for other in splits:
        other_path = find_file(folder, f"documents.{other}")
        if other == split or other_path is None:
            continue
        for row in load_document_rows(other_path):
            if _content(row) in ours:
                raise UserError(f"{row.where}: this document is in the split '{split}' too; splits must not mix")
    return DocumentFiles(folder, split, chunk_tokens, tuple(_document(row, chunk_tokens) for row in rows))


def cut(text: str, chunk_tokens: int) -> list[str]:
    """Cuts a text into chunks.

    Args:
        text: Any text that is not blank.
        chunk_tokens: Longest chunk, by the regex counter. A single word that is longer is cut.

    Returns:
        The chunks.

    >>> cut("One two. Three four five. Six.", 6)
    ['One two.', 'Three four five. Six.']
    """
    chunks: list[str] = []
    room = 0
    for sentence in _SENTENCE_END.split(" ".join(text.split())):
        tokens = _COUNTER.count(sentence)
        if tokens <= room:
            chunks[-1] += f" {sentence}"
            room -= tokens
            continue
        while tokens > chunk_tokens:
            head = _head(sentence, chunk_tokens)
            chunks.append(head)
            sentence = sentence[len(head) :].lstrip()
            tokens = _COUNTER.count(sentence)
        chunks.append(sentence)
        room = chunk_tokens - tokens
    return [chunk for chunk in chunks if chunk]


def _head(sentence: str, tokens: int) -> str:
    """The longest beginning of so many tokens that ends with a word, if there is such a one."""
    head = _COUNTER.truncate(sentence, tokens)
    words = head.rpartition(" ")[0] if not sentence[len(head) :].startswith(" ") else head
    return words or head


def _content(row: DocumentRow) -> str:
    return " ".join((row.text or " ".join(row.chunks)).split())


def _document(row: DocumentRow, chunk_tokens: int) -> Document:
    chunks = row.chunks or tuple(cut(row.text, chunk_tokens))
    if len(chunks) > MAX_CHUNKS:
        raise UserError(f"{row.where}: {len(chunks)} chunks, more than {MAX_CHUNKS}; raise chunk_tokens")
    passages = tuple(Passage(f"chunk-{number}", "", text) for number, text in enumerate(chunks, start=1))
    return Document(row.id, passages, tuple(_goal(question, passages) for question in row.questions))


def _goal(question: Question, chunks: Sequence[Passage]) -> Goal:
    """A goal; its evidence is the first place that holds one of its answers, if one does."""
    evidence: tuple[Evidence, ...] = ()
    for answer in question.answers:
        wanted = re.compile(rf"(?<!\w){re.escape(' '.join(answer.split()))}(?!\w)", re.IGNORECASE)
        for chunk in chunks:
            text = " ".join(chunk.text.split())
            if found := wanted.search(text):
                note = _extract(text, found.start(), found.end())
                evidence = (Evidence(question.text, note, chunk.id),)
                break
        if evidence:
            break
    return Goal(question.text, question.answers, "document", evidence, question.id)


def _extract(text: str, start: int, end: int) -> str:
    """Some words around the characters ``[start, end)``."""
    words = text.split(" ")
    first, last = text[:start].count(" "), text[:end].count(" ")
    begin = first - max(0, EXTRACT_WORDS - (last - first + 1)) // 2
    begin = max(0, min(begin, len(words) - EXTRACT_WORDS))
    return " ".join(words[begin : max(last + 1, begin + EXTRACT_WORDS)])
