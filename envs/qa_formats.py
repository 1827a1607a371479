"""The published formats of question answering data sets: one function a format, from a row to a question.

A row of HotpotQA, 2WikiMultihopQA, MuSiQue or DPR brings paragraphs of its own, the gold ones marked. They are the
corpus where the data folder has none; where it has one, they say which of its passages are gold.

Invariants:
    * the format is known by the fields of the file's first row (``detect``), and every row must keep to it: what does
      not is a ``UserError`` that names file, row and field;
    * ids of paragraphs are made of their words, so that a paragraph in many rows is one passage.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mempo_env.errors import UserError
from mempo_env.records import Passage

from .jsonl import Question, own_question
from .mem1 import joined_questions, mem1_questions
from .records_io import Row, answers, is_list, objects, present, text, texts


@dataclass(frozen=True)
class Gold:
    """What a row says of a gold passage.

    Attributes:
        title: Its title.
        text: Its text; empty if the row has none.
        id: Its id in a corpus published with the data set; empty if the row has none.
    """

    title: str
    text: str = ""
    id: str = ""


@dataclass(frozen=True)
class Entry:
    """A row as read.

    Attributes:
        question: The question; ``supporting_ids`` is filled in once the corpus is known.
        gold: The gold passages, in the order of the reasoning where the row has one.
        paragraphs: The row's own paragraphs, without blank ones.
        answer_id: Wikidata id of the answer, for aliases (2WikiMultihopQA).
    """

    question: Question
    gold: tuple[Gold, ...] = ()
    paragraphs: tuple[Passage, ...] = ()
    answer_id: str = ""


@dataclass(frozen=True)
class Format:
    """A published format.

    Attributes:
        name: How messages call it.
        fields: A row with all of these is one.
        read: From ``(row, place)`` to its questions; one, but for files of whole tasks.
    """

    name: str
    fields: frozenset[str]
    read: Callable[[Row, str], tuple[Entry, ...]]


def detect(row: Row, where: str) -> Format:
    """The format of a file by its first row.

    Raises:
        UserError: It is none of the known ones.
    """
    for known in FORMATS:
        if known.fields <= row.keys():
            return known
    listed = "; ".join(f"{known.name} ({', '.join(sorted(known.fields))})" for known in FORMATS)
    raise UserError(
        f"{where}: the fields {', '.join(sorted(row)) or 'none'} are those of no known format; known, with the fields "
        f"that tell: {listed}"
    )


def passage_of(title: str, body: str) -> Passage:
    """A paragraph as a passage: entities decoded, white space collapsed, an id made of its words."""
    title, body = " ".join(html.unescape(title).split()), " ".join(html.unescape(body).split())
    return Passage(f"p-{_digest(title, body)}", title, body)


def _digest(*parts: str) -> str:
    data = "\0".join(parts).encode("utf-8", errors="surrogatepass")
    return hashlib.sha256(data).hexdigest()[:16]


def _question(row: Row, where: str, name: str, gold_answers: tuple[str, ...], kind: str, hops: int) -> Question:
    return Question(name, text(row, "question", where), tuple(dict.fromkeys(gold_answers)), kind, (), where, hops)


def _own(row: Row, where: str) -> tuple[Entry, ...]:
    return (Entry(own_question(row, where)),)


# HotpotQA and 2WikiMultihopQA ----------------------------------------------------------------------------------------


def _hotpot(row: Row, where: str) -> tuple[Entry, ...]:
    """HotpotQA's rows, which 2WikiMultihopQA follows: ``context`` and ``supporting_facts`` name paragraphs by title.

    Source: hotpotqa.github.io, and the README of Alab-NII/2wikimultihop; columns in place of pairs as on the hub.
    """
    name, gold_answer = text(row, "_id" if "_id" in row else "id", where), _answer(row, where)
    context = _paragraphs(row, where)
    titles = _fact_titles(row, where)
    gold = tuple(Gold(title, context.get(title, "")) for title in titles)
    question = _question(row, where, name, (gold_answer,), text(row, "type", where), len(gold))
    paragraphs = tuple(passage_of(title, body) for title, body in context.items() if body.strip())
    answer_id = row.get("answer_id")
    return (Entry(question, gold, paragraphs, answer_id if isinstance(answer_id, str) else ""),)


def _paragraphs(row: Row, where: str) -> dict[str, str]:
    """Paragraphs by title: ``[[title, [sentence, ..]], ..]``, or the columns ``{title, sentences | content}``."""
    value = present(row, "context", where)
    if isinstance(value, Mapping):
        bodies = value.get("sentences", value.get("content"))
        pairs = _zipped(value.get("title"), bodies, "context", where)
    else:
        pairs = _pairs(value, "context", where)
    found: dict[str, str] = {}
    for title, sentences in pairs:
        if not isinstance(title, str) or not is_list(sentences) or not all(isinstance(s, str) for s in sentences):
            raise UserError(f"{where}: 'context' must pair a title with a list of sentences")
        found.setdefault(title, " ".join(sentences))
    return found


def _fact_titles(row: Row, where: str) -> tuple[str, ...]:
    value = present(row, "supporting_facts", where)
    if isinstance(value, Mapping):
        pairs = _zipped(value.get("title"), value.get("sent_id"), "supporting_facts", where)
    else:
        pairs = _pairs(value, "supporting_facts", where)
    for title, _ in pairs:
        if not isinstance(title, str):
            raise UserError(f"{where}: 'supporting_facts' must pair a title with the number of a sentence")
    return tuple(dict.fromkeys(title for title, _ in pairs))


def _pairs(value: object, field: str, where: str) -> list[tuple[Any, Any]]:
    if not is_list(value) or not all(is_list(pair) and len(pair) == 2 for pair in value):
        raise UserError(f"{where}: '{field}' must be a list of pairs")
    return [(pair[0], pair[1]) for pair in value]


def _zipped(first: object, second: object, field: str, where: str) -> list[tuple[Any, Any]]:
    if not is_list(first) or not is_list(second) or len(first) != len(second):
        raise UserError(f"{where}: the columns of '{field}' must be lists of one length")
    return list(zip(first, second, strict=True))


def _answer(row: Row, where: str) -> str:
    if "answer" not in row or not row["answer"]:
        raise UserError(f"{where}: there is no 'answer'; test questions are published without, use another split")
    return text(row, "answer", where)


# MuSiQue -------------------------------------------------------------------------------------------------------------


def _musique(row: Row, where: str) -> tuple[Entry, ...]:
    """MuSiQue-Ans: ``paragraphs`` with ``is_supporting``, in the order of ``question_decomposition``.

    Source: StonyBrookNLP/musique, ``musique_ans_v1.0_*.jsonl``.
    """
    if row.get("answerable") is False:
        raise UserError(f"{where}: a question without an answer (MuSiQue-Full); use the musique_ans files")
    name, gold_answer = text(row, "id", where), _answer(row, where)
    rows = [_paragraph(paragraph, where) for paragraph in objects(row, "paragraphs", where)]
    marked = {at: Gold(title, body) for at, title, body, supporting in rows if supporting}
    steps = _steps(row, where)
    order = [at for step in steps if (at := step.get("paragraph_support_idx")) is not None]
    for at in order:
        if at not in marked:
            raise UserError(f"{where}: 'question_decomposition' rests on paragraph {at!r}, which is not supporting")
    gold = tuple(marked[at] for at in dict.fromkeys([*order, *marked]))
    aliases = texts(row, "answer_aliases", where) if "answer_aliases" in row else ()
    hops = len(steps) or len(gold)
    question = _question(row, where, name, (gold_answer, *aliases), name.partition("__")[0], hops)
    return (Entry(question, gold, tuple(passage_of(title, body) for _, title, body, _ in rows if body.strip())),)


def _steps(row: Row, where: str) -> list[Row]:
    return objects(row, "question_decomposition", where) if "question_decomposition" in row else []


def _paragraph(row: Row, where: str) -> tuple[object, str, str, bool]:
    if not isinstance(row.get("is_supporting"), bool):
        raise UserError(f"{where}: 'is_supporting' of a paragraph must be true or false")
    return (
        present(row, "idx", where),
        text(row, "title", where, empty=True),
        text(row, "paragraph_text", where, empty=True),
        row["is_supporting"],
    )


# Natural Questions ---------------------------------------------------------------------------------------------------


def _nq_open(row: Row, where: str) -> tuple[Entry, ...]:
    """NQ-open: ``question`` and a list ``answer``, no passages (google-research-datasets/natural-questions)."""
    gold_answers = answers(row, "answer", where)
    return (Entry(_question(row, where, _made_id(row, where), gold_answers, "single", 1)),)


def _dpr(row: Row, where: str) -> tuple[Entry, ...]:
    """DPR's retriever data (facebookresearch/DPR): the first positive passage is taken to be the gold one.

    All positive ones hold an answer; the first is the annotated one where there is one (its score is 1000).
    """
    kinds = ("positive_ctxs", "negative_ctxs", "hard_negative_ctxs")
    groups = {kind: objects(row, kind, where) for kind in kinds if kind in row}
    found = {kind: [_ctx(ctx, where) for ctx in group] for kind, group in groups.items()}
    gold = tuple(found["positive_ctxs"][:1])
    question = _question(row, where, _made_id(row, where), answers(row, "answers", where), "single", 1)
    paragraphs = [passage_of(one.title, one.text) for group in found.values() for one in group if one.text.strip()]
    return (Entry(question, gold, tuple(paragraphs)),)


def _ctx(row: Row, where: str) -> Gold:
    name = row.get("passage_id", row.get("psg_id", ""))
    return Gold(text(row, "title", where, empty=True), text(row, "text", where, empty=True), str(name))


def _made_id(row: Row, where: str) -> str:
    return f"nq-{_digest(text(row, 'question', where))}"


# FlashRAG and Search-R1, and whole tasks -----------------------------------------------------------------------------


def _flashrag(row: Row, where: str) -> tuple[Entry, ...]:
    """FlashRAG's rows, which Search-R1 and MEM1 start from: ``golden_answers``, the data set's own in ``metadata``."""
    name = text(row, "id", where)
    gold_answers = answers(row, "golden_answers", where)
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise UserError(f"{where}: 'metadata' must be an object")
    data = dict(metadata)
    gold: tuple[Gold, ...] = ()
    paragraphs: tuple[Passage, ...] = ()
    kind, hops = "single", 1
    if data.get("supporting_facts"):
        context = _paragraphs(data, where) if data.get("context") else {}
        gold = tuple(Gold(title, context.get(title, "")) for title in _fact_titles(data, where))
        paragraphs = tuple(passage_of(title, body) for title, body in context.items() if body.strip())
        kind, hops = text(data, "type", where) if data.get("type") else "question", len(gold)
    elif data.get("question_decomposition"):
        steps = objects(data, "question_decomposition", where)
        supports = [_paragraph({"idx": 0, **step["support_paragraph"]}, where)
                    for step in steps if isinstance(step.get("support_paragraph"), Mapping)]  # fmt: skip
        told = len(supports) == len(steps)  # a part of the gold passages would be taken for all of them
        gold = tuple(dict.fromkeys(Gold(title, body) for _, title, body, _ in supports)) if told else ()
        paragraphs = tuple(passage_of(one.title, one.text) for one in gold if one.text.strip())
        kind, hops = f"{len(steps)}hop", len(steps)
    return (Entry(_question(row, where, name, gold_answers, kind, hops), gold, paragraphs),)


def _whole_tasks(read: Callable[[Row, str], tuple[Question, ...]]) -> Callable[[Row, str], tuple[Entry, ...]]:
    return lambda row, where: tuple(map(Entry, read(row, where)))


FORMATS = (
    Format("MEM1's tasks", frozenset({"prompt", "reward_model"}), _whole_tasks(mem1_questions)),
    Format("joined questions", frozenset({"questions", "target"}), _whole_tasks(joined_questions)),
    Format("DPR", frozenset({"question", "answers", "positive_ctxs"}), _dpr),
    Format("MuSiQue", frozenset({"question", "paragraphs"}), _musique),
    Format("HotpotQA or 2WikiMultihopQA", frozenset({"question", "context", "supporting_facts"}), _hotpot),
    Format("HotpotQA's test questions", frozenset({"_id", "question", "context"}), _hotpot),
    Format("FlashRAG", frozenset({"question", "golden_answers"}), _flashrag),
    Format("mempo-env", frozenset({"id", "question", "answers"}), _own),
    Format("NQ-open", frozenset({"question", "answer"}), _nq_open),
)
"""Tried in this order; a row of an earlier one may have the fields of a later one, too."""
