"""Question answering over real corpora: questions of one or more data sets, composed into tasks of 1 to 16 goals.

What is given as ``data`` is a folder, files, or a name on the hub; ``docs/data.md`` lists the layouts. Several are
joined into one corpus and one pool of questions.

Invariants:
    * a task is a function of the generator, the number of goals and the files; no question occurs twice in it;
    * the splits are disjoint (see ``envs/qa_files.py``);
    * a goal has evidence for every gold passage, or none at all where a gold passage is in no corpus: the scripted
      expert never takes a part of what an answer rests on for the whole.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mempo_env.errors import UserError
from mempo_env.metrics import normalise_answer
from mempo_env.records import Goal, Passage, Task

from .jsonl import Question, load_corpus
from .qa_evidence import gather_evidence
from .qa_files import Source, SplitRows, find_corpus, is_corpus, read_split
from .qa_formats import Entry, Gold, passage_of
from .qa_hub import PREFIX, read_hub_split
from .records_io import SUFFIXES
from .retrieval import Bm25Index

logger = logging.getLogger(__name__)


class QaDataset:
    """The questions of one split and the passages to search.

    Args:
        folders: Data folders, files of questions or corpora, or names on the hub (``hub:NAME``); at least one.
        split: Which split to read.
        cache_dir: Where the search index is kept; by default the cache folder of ``mempo_env.envs.retrieval``.

    Attributes:
        questions: The questions that can be composed, in the files' order.
        skipped: Questions left out since they or their primary answer have a ``;``, which separates goals and answers.
        dropped: Questions of published files left out since they come twice or stand in a later split, too.
        without_gold: Questions of published files whose gold passages the corpus lacks or nobody says: they are asked,
            but the scripted expert answers "unknown".
        index: The search index of all passages.

    Raises:
        UserError: A file is missing or malformed, the split is unknown, splits overlap, a question occurs twice, there
            is no corpus, or a gold passage named by id is in no corpus.
    """

    def __init__(
        self, folders: Sequence[str | Path], split: str = "train", cache_dir: str | Path | None = None
    ) -> None:
        self.folders = tuple(folder if _on_hub(folder) else Path(folder) for folder in folders)
        self.split = split
        self._cache_dir = cache_dir
        if not self.folders:
            raise UserError("no data folder was given; give at least one folder with corpus.jsonl")
        sources, corpora = _sources(self.folders)
        read = [_read(source, split) for source in sources]
        passages = _passages(sources, read, corpora)
        self._position = {passage.id: at for at, passage in enumerate(passages)}
        if len(self._position) < len(passages):
            raise UserError(
                f"two of the folders {', '.join(map(str, self.folders))} use the same passage id; ids must be unique"
            )
        self._lookup = _GoldLookup(passages, [entry for part in read if not part.strict for entry in part.entries])
        self.dropped = sum(part.dropped for part in read)
        questions: list[Question] = []
        for part in read:
            questions += self._resolved(part)
        self.questions = tuple(q for q in questions if ";" not in q.text + q.answers[0])
        self.skipped = len(questions) - len(self.questions)
        self.without_gold = sum(not q.supporting_ids for q in self.questions)
        self._tell(len(questions))
        self.index = Bm25Index.build(passages, cache_dir)
        del self._lookup

    def sample(self, rng: np.random.Generator, goals: int) -> Task:
        """Composes a task.

        Args:
            rng: Decides which questions, and in which order.
            goals: Number of goals.

        Returns:
            A task without passages of its own.

        Raises:
            UserError: There are fewer questions than goals.
        """
        if goals > len(self.questions):
            raise UserError(f"{goals} goals from {len(self.questions)} {self.split} questions; ask fewer goals")
        chosen = rng.choice(len(self.questions), size=goals, replace=False)
        return self.compose([self.questions[int(at)] for at in chosen])

    def compose(self, questions: Sequence[Question]) -> Task:
        """Makes a task of these questions, in this order."""
        digest = hashlib.sha256("\n".join(question.id for question in questions).encode()).hexdigest()[:16]
        return Task(goals=tuple(map(self._goal, questions)), id=f"qa-{digest}")

    def passage(self, name: str) -> Passage:
        """The passage of an id."""
        return self.index.passages[self._position[name]]

    def __reduce__(self) -> tuple[object, ...]:
        return shared_dataset, (self.folders, self.split, self._cache_dir)

    def _resolved(self, part: SplitRows) -> list[Question]:
        """The questions with the ids of their gold passages."""
        questions: list[Question] = []
        seen: dict[str, str] = {}
        for entry in part.entries:
            question = entry.question
            if part.strict:
                text = normalise_answer(question.text)
                if text in seen:
                    raise UserError(f"{question.where}: the same question as at {seen[text]}; keep one of them")
                seen[text] = question.where
            for name in question.supporting_ids:
                if name not in self._position:
                    raise UserError(f"{question.where}: the supporting passage {name!r} is not in the corpus")
            if entry.gold:
                question = replace(question, supporting_ids=self._lookup.ids(entry))
            questions.append(question)
        return questions

    def _tell(self, total: int) -> None:
        if self.dropped:
            logger.warning(
                "%d %s questions are left out: they come twice, or stand in a later split", self.dropped, self.split
            )
        if self.skipped:
            logger.warning(
                "%d of %d %s questions are left out: question or primary answer has a ';', which separates goals",
                self.skipped,
                total,
                self.split,
            )
        if self.without_gold:
            logger.warning(
                "%d of %d %s questions have no gold passages in the corpus: the scripted expert cannot answer them",
                self.without_gold,
                len(self.questions),
                self.split,
            )

    def _goal(self, question: Question) -> Goal:
        gold = [self.passage(name) for name in dict.fromkeys(question.supporting_ids)]
        evidence = gather_evidence(question.text, question.answers, gold, self.index)
        return Goal(question.text, question.answers, question.kind, evidence, question.id)


def shared_dataset(
    folders: Sequence[str | Path], split: str = "train", cache_dir: str | Path | None = None
) -> QaDataset:
    """A data set that all environments of this process share as long as its files do not change.

    Args:
        folders: As for ``QaDataset``.
        split: As for ``QaDataset``.
        cache_dir: As for ``QaDataset``.

    Returns:
        The data set; treat it as read-only.

    Raises:
        UserError: As for ``QaDataset``.
    """
    paths = tuple(folder if _on_hub(folder) else Path(folder).expanduser().resolve() for folder in folders)
    stamps = tuple(
        (str(file), file.stat().st_mtime_ns, file.stat().st_size)
        for path in paths
        if isinstance(path, Path)
        for file in (sorted(path.iterdir()) if path.is_dir() else [path])
        if file.name.endswith(SUFFIXES) and file.is_file()
    )
    return _dataset(paths, split, None if cache_dir is None else Path(cache_dir), stamps)


@functools.lru_cache(maxsize=4)
def _dataset(folders: tuple[str | Path, ...], split: str, cache_dir: Path | None, _stamps: object) -> QaDataset:
    return QaDataset(folders, split, cache_dir)


def _on_hub(data: str | Path) -> bool:
    return isinstance(data, str) and data.startswith(PREFIX)


def _sources(given: Sequence[str | Path]) -> tuple[list[str | Source], list[Path]]:
    """What is given, as data sets (those of one folder together) and as corpora for all of them."""
    sources: dict[str | Path, list[str]] = {}
    corpora: list[Path] = []
    for one in given:
        if isinstance(one, str) or not one.is_file():
            sources.setdefault(one, [])
        elif not one.name.endswith(SUFFIXES):
            raise UserError(f"{one} is no data file; give a folder, or a file that ends in {', '.join(SUFFIXES)}")
        elif is_corpus(one):
            corpora.append(one)
        else:
            sources.setdefault(one.parent, []).append(one.name)
    for one in given:
        if sources.get(one):
            raise UserError(f"{one} is given as a whole and by single files; give one or the other")
    if not sources:
        raise UserError(f"{', '.join(map(str, given))}: a corpus without questions; give the questions' folder, too")
    return [key if isinstance(key, str) else Source(key, tuple(names)) for key, names in sources.items()], corpora


def _read(source: str | Source, split: str) -> SplitRows:
    return read_hub_split(source.removeprefix(PREFIX), split) if isinstance(source, str) else read_split(source, split)


def _passages(sources: Sequence[str | Source], read: Sequence[SplitRows], corpora: Sequence[Path]) -> list[Passage]:
    """The corpora of the folders and those given; a data set without either brings its questions' own paragraphs.

    Raises:
        UserError: A data set has no passages at all, or a corpus cannot be read.
    """
    passages = [passage for path in corpora for passage in load_corpus(path)]
    own: dict[str, Passage] = {}
    for source, part in zip(sources, read, strict=True):
        path = None if isinstance(source, str) else find_corpus(source.folder)
        if path is not None and path not in corpora:
            passages += load_corpus(path)
        elif not corpora and path is None:
            paragraphs = {passage.id: passage for entry in part.entries for passage in entry.paragraphs}
            if not paragraphs:
                name = source if isinstance(source, str) else source.folder
                raise UserError(
                    f"{name} has no corpus.jsonl or corpus.jsonl.gz, and its questions bring no paragraphs; give a "
                    "corpus, too: psgs_w100.tsv, wiki-18.jsonl, or one of your own"
                )
            own |= paragraphs
    return passages + list(own.values())


@dataclass(frozen=True)
class _Wanted:
    """A gold passage, by what can be compared: title and text with collapsed white space."""

    title: str
    text: str


class _GoldLookup:
    """Finds the gold passages that published rows name by words: by title and text, by id and title, by title alone."""

    def __init__(self, passages: Sequence[Passage], entries: Sequence[Entry]) -> None:
        titles = {_key(gold).title for entry in entries for gold in entry.gold}
        self._title_of: dict[str, str] = {}
        self._by_text: dict[_Wanted, str] = {}
        self._by_title: dict[str, list[str]] = {}
        for passage in passages if titles else ():
            key = _Wanted(*_collapsed(passage.title, passage.text))
            if key.title in titles:
                self._title_of[passage.id] = key.title
                self._by_text.setdefault(key, passage.id)
                self._by_title.setdefault(key.title, []).append(passage.id)

    def ids(self, entry: Entry) -> tuple[str, ...]:
        """Ids of all gold passages of a row; none if one of them cannot be told."""
        found = [self._find(gold) for gold in entry.gold]
        return tuple(dict.fromkeys(name for name in found if name)) if all(found) else ()

    def _find(self, gold: Gold) -> str | None:
        key = _key(gold)
        if name := self._by_text.get(key):
            return name
        if gold.id and self._title_of.get(gold.id) == key.title:
            return gold.id
        named = self._by_title.get(key.title, [])
        return named[0] if len(named) == 1 else None


def _key(gold: Gold) -> _Wanted:
    passage = passage_of(gold.title, gold.text)
    return _Wanted(passage.title, passage.text)


def _collapsed(title: str, text: str) -> tuple[str, str]:
    return " ".join(title.split()), " ".join(text.split())
