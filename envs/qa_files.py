"""Finds the files of a data set and reads one split of it, in the project's layout or as it was published.

A folder in the project's layout has ``questions.SPLIT.jsonl``. Any other folder is looked through for one file whose
name says the split (``hotpot_train_v1.1.json``, ``musique_ans_v1.0_dev.jsonl``, ``NQ-open.dev.jsonl``, ``test.jsonl``)
and for one file that is a corpus by its name (``corpus.jsonl``, ``psgs_w100.tsv``, ``wiki-18.jsonl``).

Invariants:
    * what a name leaves open (two files for a split, two corpora) is refused, never decided by order;
    * no question of a later split (``test`` after ``dev`` after ``train``) is in an earlier one. In the project's
      layout such a question is refused; published files have some, and there it is left out of the earlier split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mempo_env.errors import UserError
from mempo_env.metrics import normalise_answer

from .jsonl import Question, find_file, load_questions
from .qa_formats import Entry, Format, detect
from .records_io import SUFFIXES, Row, read_rows, text, texts

_SPLIT_WORDS = {"train": "train", "dev": "dev", "valid": "dev", "val": "dev", "validation": "dev", "test": "test"}
_CORPUS_WORDS = {"corpus", "psgs", "wiki"}
_ALIASES = "id_aliases.json"
ORDER = ("train", "dev", "test")
"""The splits; a question in two of them stays in the later one."""


@dataclass(frozen=True)
class Source:
    """One data set among those given.

    Attributes:
        folder: Where its files are.
        only: Names of the files to use for questions; empty for all.
    """

    folder: Path
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitRows:
    """One split of a data set, as read.

    Attributes:
        entries: The questions, in the order of the files.
        strict: Whether it is in the project's layout, in which gold passages are named by their ids.
        dropped: Questions left out since they occur twice or in a later split.
    """

    entries: tuple[Entry, ...]
    strict: bool
    dropped: int = 0


def is_corpus(path: Path) -> bool:
    """Whether a file is a corpus by its name."""
    tokens = _tokens(path)
    return not tokens & _SPLIT_WORDS.keys() and (bool(tokens & _CORPUS_WORDS) or ".tsv" in path.suffixes)


def find_corpus(folder: Path) -> Path | None:
    """The corpus file of a folder, or None.

    Raises:
        UserError: There are several.
    """
    if own := find_file(folder, "corpus"):
        return own
    return _only_one(filter(is_corpus, _files(folder)), folder, "corpora")


def read_split(source: Source, split: str) -> SplitRows:
    """Reads the questions of one split.

    Args:
        source: Where they are.
        split: ``train``, ``dev`` or ``test``; in the project's layout whatever ``questions.SPLIT`` file there is.

    Returns:
        The questions.

    Raises:
        UserError: A file is missing, ambiguous or malformed, or splits of the project's layout overlap.
    """
    folder = source.folder
    if not folder.is_dir():
        raise UserError(f"the data folder {folder} does not exist; check --data")
    if any(folder.glob("questions.*.jsonl*")) and not source.only:
        questions = _read_own_split(folder, split)
        return SplitRows(tuple(map(Entry, name_dataset(questions, folder.name))), strict=True)
    return _read_published_split(source, split)


def read_entries(rows: Iterable[tuple[str, Row]], dataset: str, aliases: Path | None = None) -> tuple[Entry, ...]:
    """Reads rows of one format, known by the first.

    Args:
        rows: ``(place, row)``.
        dataset: Name of the data set.
        aliases: 2WikiMultihopQA's ``id_aliases.json``.

    Returns:
        The questions with their gold passages and paragraphs.

    Raises:
        UserError: The format is unknown, or a row breaks it.
    """
    known: Format | None = None
    entries: list[Entry] = []
    for where, row in rows:
        known = known or detect(row, where)
        entries += known.read(row, where)
    questions = name_dataset([entry.question for entry in entries], dataset)
    named = [replace(entry, question=question) for entry, question in zip(entries, questions, strict=True)]
    return tuple(_with_aliases(named, aliases)) if aliases else tuple(named)


def without_repeats(entries: Sequence[Entry], later: set[str]) -> tuple[Entry, ...]:
    """Leaves out questions that come twice or stand in a later split.

    Args:
        entries: The questions.
        later: Normalised questions of the later splits.

    Returns:
        The others, in their order. Questions of whole tasks all stay: a task may share one with another task.
    """
    seen, kept = set(later), []
    for entry in entries:
        key = normalise_answer(entry.question.text)
        if entry.question.record or key not in seen:
            kept.append(entry)
        seen.add(key)
    return tuple(kept)


def name_dataset(questions: Iterable[Question], name: str) -> list[Question]:
    """Gives questions the name of their data set, in the spelling that compositions know.

    >>> from mempo_env.envs.jsonl import Question
    >>> name_dataset([Question("", "", ("",), "", (), "")], "biencoder-nq-train.json")[0].dataset
    'nq'
    """
    return [question if question.dataset else replace(question, dataset=canonical(name)) for question in questions]


def canonical(name: str) -> str:
    """The name of a data set by that of its folder or file: known ones in one spelling, others as they are."""
    lowered = name.lower()
    tokens = set(re.split(r"[._\-/ ]+", lowered))
    for start, known in (("hotpot", "hotpotqa"), ("musique", "musique"), ("2wiki", "2wikimultihopqa")):
        if any(token.startswith(start) for token in tokens):
            return known
    return "nq" if "nq" in tokens or "naturalquestions" in re.sub(r"[^a-z]", "", lowered) else name


def question_texts(rows: Iterable[tuple[str, Row]]) -> Iterator[str]:
    """The normalised questions of rows of any format of single questions, answers or not."""
    for where, row in rows:
        if "question" in row:
            yield normalise_answer(text(row, "question", where))


def _read_own_split(folder: Path, split: str) -> tuple[Question, ...]:
    """The questions of one split of a folder, after a look that no other split holds one of them."""
    files = sorted(folder.glob("questions.*.jsonl*"))
    splits = sorted({file.name.split(".")[1] for file in files if not file.name.startswith("questions.jsonl")})
    path = find_file(folder, f"questions.{split}")
    if path is None:
        raise UserError(
            f"{folder} has no questions.{split}.jsonl or .jsonl.gz; its splits: {', '.join(splits) or 'none'}"
        )
    questions = load_questions(path)
    ours = {normalise_answer(question.text) for question in questions}
    for other in splits:
        other_path = find_file(folder, f"questions.{other}")
        if other == split or other_path is None:
            continue
        for question in load_questions(other_path):
            if normalise_answer(question.text) in ours:
                raise UserError(f"{question.where}: this question is in the split '{split}' too; splits must not mix")
    return questions


def _read_published_split(source: Source, split: str) -> SplitRows:
    folder = source.folder
    files = [file for file in _files(folder) if _split_of(file) and (not source.only or file.name in source.only)]
    path = _only_one((file for file in files if _split_of(file) == split), folder, f"files of the split '{split}'")
    if path is None:
        splits = ", ".join(sorted({str(_split_of(file)) for file in files})) or "none"
        if source.only:
            raise UserError(f"the files given of {folder}: none is of the split '{split}'; their splits: {splits}")
        raise UserError(
            f"{folder} has no questions.{split}.jsonl or .jsonl.gz, and no published file whose name says '{split}'; "
            f"its splits: {splits}"
        )
    aliases = folder / _ALIASES
    name = canonical(path.name)
    entries = read_entries(
        read_rows(path), folder.name if name == path.name else name, aliases if aliases.is_file() else None
    )
    if not entries:
        raise UserError(f"{path} has no rows; give a file with at least one question")
    later: set[str] = set()
    for other in ORDER[ORDER.index(split) + 1 :] if split in ORDER else ():
        for file in files:
            if _split_of(file) == other:
                later |= set(question_texts(read_rows(file)))
    kept = without_repeats(entries, later)
    return SplitRows(kept, strict=False, dropped=len(entries) - len(kept))


def _with_aliases(entries: Sequence[Entry], path: Path) -> Iterator[Entry]:
    """Adds 2WikiMultihopQA's aliases and demonyms of the answer, as its evaluation script of April 2021 does."""
    wanted = {entry.answer_id for entry in entries if entry.answer_id}
    found: dict[str, tuple[str, ...]] = {}
    for where, row in read_rows(path) if wanted else ():
        name = text(row, "Q_id", where)
        if name in wanted:
            found[name] = texts(row, "aliases", where) + texts(row, "demonyms", where)
    for entry in entries:
        more = found.get(entry.answer_id, ())
        every = tuple(dict.fromkeys((*entry.question.answers, *more)))
        yield replace(entry, question=replace(entry.question, answers=every))


def _files(folder: Path) -> list[Path]:
    """The data files of a folder, in order of their names; of a plain and a gzipped one the plain."""
    found = [file for file in sorted(folder.iterdir()) if file.name.endswith(SUFFIXES) and file.name != _ALIASES]
    names = {file.name for file in found}
    return [file for file in found if not (file.suffix == ".gz" and file.name.removesuffix(".gz") in names)]


def _tokens(path: Path) -> set[str]:
    return set(re.split(r"[._\-]+", path.name.lower()))


def _split_of(path: Path) -> str | None:
    """The split that a name says; None where it says none, or two (MuSiQue's ``dev_test_singlehop_questions``)."""
    said = {_SPLIT_WORDS[token] for token in _tokens(path) if token in _SPLIT_WORDS}
    return said.pop() if len(said) == 1 and ".tsv" not in path.suffixes else None


def _only_one(files: Iterable[Path], folder: Path, what: str) -> Path | None:
    found = list(files)
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{folder} has several {what}: {names}; name the file itself as data, or move the others")
    return found[0] if found else None
