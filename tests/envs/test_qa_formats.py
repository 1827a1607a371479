"""The published formats, on files written by hand: what is read, what is refused, and that the expert can play them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.rollout import EnvPool, EpisodeSpec, rollout
from mempo_env.envs.making import make_env
from mempo_env.envs.qa_data import QaDataset, shared_dataset
from mempo_env.errors import UserError
from mempo_env.records import Goal

Published = dict[str, tuple[str, list[dict[str, Any]]]]
Write = Callable[..., Path]
WITH_PARAGRAPHS = [
    "hotpotqa",
    "2wikimultihopqa",
    "musique",
    "dpr",
    "flashrag-hotpotqa",
    "flashrag-2wikimultihopqa",
    "flashrag-musique",
    "hub-hotpotqa",
]


def goals_of(data: QaDataset) -> list[Goal]:
    return list(data.compose(data.questions).goals)


def test_hotpotqa(tmp_path: Path, published: Published, write: Write) -> None:
    name, rows = published["hotpotqa"]
    data = QaDataset([write(tmp_path / name, rows).parent], "dev")
    first, second = data.questions
    assert (first.id, first.text, first.answers, first.kind, first.hops, first.dataset) == (
        "5a8b57f25542995d1e6f1371",
        "Were Scott Derrickson and Ed Wood of the same nationality?",
        ("yes",),
        "comparison",
        2,
        "hotpotqa",
    )
    assert [data.passage(name).title for name in first.supporting_ids] == ["Scott Derrickson", "Ed Wood"]
    # "Ed Wood" stands in both rows and is one passage; the empty paragraph is none; entities are decoded.
    assert sorted(passage.title for passage in data.index.passages) == [
        "Doctor Strange & Co",
        "Ed Wood",
        "Kiss and Tell (1945 film)",
        "Scott Derrickson",
        "Shirley Temple",
    ]
    assert (
        data.passage(first.supporting_ids[1]).text == "Edward Davis Wood Jr. was an American filmmaker. He made films."
    )
    evidence = goals_of(data)[1].evidence
    assert [(piece.query, piece.after) for piece in evidence] == [
        ("Kiss and Tell (1945 film)", -1),
        ("Shirley Temple", 0),
    ]
    assert evidence[1].note == "Shirley Temple: She was Chief of Protocol of the United States."
    assert second.kind == "bridge"


def test_hotpotqa_as_the_hub_has_it_is_the_same(tmp_path: Path, published: Published, write: Write) -> None:
    (name, rows), (hub_name, hub_rows) = published["hotpotqa"], published["hub-hotpotqa"]
    pairs = QaDataset([write(tmp_path / "a" / name, rows)], "dev")
    columns = QaDataset([write(tmp_path / "b" / hub_name, hub_rows)], "dev")
    assert goals_of(pairs) == goals_of(columns)
    assert pairs.index.passages == columns.index.passages


def test_2wikimultihopqa_with_aliases(
    tmp_path: Path, published: Published, write: Write, texts: dict[str, str]
) -> None:
    name, rows = published["2wikimultihopqa"]
    folder = write(tmp_path / "2wikimultihopqa" / name, rows).parent
    plain = QaDataset([folder], "dev").questions[0]
    assert (plain.answers, plain.kind, plain.hops, plain.dataset) == (
        ("Poland",),
        "compositional",
        2,
        "2wikimultihopqa",
    )
    (folder / "id_aliases.json").write_text(texts["aliases"])
    data = QaDataset([folder], "dev")
    assert data.questions[0].answers == ("Poland", "PL", "Republic of Poland", "Polish")
    assert [piece.after for piece in goals_of(data)[0].evidence] == [-1, 0]
    assert data.index.passages[0].text.endswith("film director. He works.")  # sentences without a space between them


def test_musique(tmp_path: Path, published: Published, write: Write) -> None:
    name, rows = published["musique"]
    data = QaDataset([write(tmp_path / f"{name}.gz", rows).parent], "dev")
    question = data.questions[0]
    assert (question.answers, question.kind, question.hops, question.dataset) == (
        ("Miquette Giraudy", "Giraudy"),
        "2hop",
        2,
        "musique",
    )
    titles = [data.passage(name).title for name in question.supporting_ids]
    assert titles == ["Green (Steve Hillage album)", "Miquette Giraudy"]  # as the decomposition reasons


def test_nq_open_needs_a_corpus_and_has_no_evidence(
    tmp_path: Path, published: Published, write: Write, texts: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    name, rows = published["nq-open"]
    folder = write(tmp_path / name, rows).parent
    with pytest.raises(UserError, match=r"bring no paragraphs; give a corpus, too: psgs_w100.tsv"):
        QaDataset([folder], "dev")
    (folder / "wiki-18.jsonl").write_text(texts["wiki-18"])
    with caplog.at_level(logging.WARNING):
        data = QaDataset([folder], "dev")
    assert "2 of 2 dev questions have no gold passages in the corpus" in caplog.text
    assert [(q.answers, q.kind, q.hops, q.dataset, q.supporting_ids) for q in data.questions] == [
        (("Fernie Alpine Resort",), "single", 1, "nq", ()),
        (("pedestrians", "the pedestrian"), "single", 1, "nq", ()),
    ]
    passage = data.index.passages[0]
    assert (passage.id, passage.title) == ("0", "Nobel Prize in Physics")
    assert passage.text == "The first one went to Wilhelm Röntgen."


def test_dpr_with_its_own_paragraphs_or_its_corpus(
    tmp_path: Path, published: Published, write: Write, texts: dict[str, str]
) -> None:
    name, rows = published["dpr"]
    questions = write(tmp_path / "q" / name, rows)
    data = QaDataset([questions], "dev")
    assert [passage.title for passage in data.index.passages] == [
        "Does He Love You",
        "Linda Davis",
        "Cormac McCarthy",
        "Why Not Me",
    ]
    assert data.passage(data.questions[0].supporting_ids[0]).title == "Does He Love You"
    assert (data.questions[0].dataset, data.questions[0].hops) == ("nq", 1)
    corpus = tmp_path / "psgs_w100.tsv"
    corpus.write_text(texts["psgs"])
    with_corpus = QaDataset([questions, corpus], "dev")
    assert [passage.id for passage in with_corpus.index.passages] == ["11828866", "2"]
    assert with_corpus.index.passages[0].text == (
        'Does He Love You is a song recorded by "Reba McEntire" and Linda Davis.'
    )
    assert with_corpus.questions[0].supporting_ids == ("11828866",)


def test_flashrag(tmp_path: Path, published: Published, write: Write, texts: dict[str, str]) -> None:
    shown = {}
    for name in ("flashrag-hotpotqa", "flashrag-2wikimultihopqa", "flashrag-musique"):
        file, rows = published[name]
        data = QaDataset([write(tmp_path / name.removeprefix("flashrag-") / file, rows).parent], "dev")
        question = data.questions[0]
        gold = [data.passage(passage).title for passage in question.supporting_ids]
        shown[question.dataset] = (question.answers, question.kind, question.hops, gold)
    assert shown == {
        "hotpotqa": (("yes",), "comparison", 2, ["Scott Derrickson", "Ed Wood"]),
        "2wikimultihopqa": (("Poland",), "compositional", 2, ["A film", "A man"]),
        "musique": (
            ("Miquette Giraudy", "Giraudy"),
            "2hop",
            2,
            ["Green (Steve Hillage album)", "Miquette Giraudy"],
        ),
    }
    file, rows = published["flashrag-nq"]
    questions = write(tmp_path / "nq" / file, rows)
    (tmp_path / "nq" / "wiki-18.jsonl").write_text(texts["wiki-18"])
    assert QaDataset([questions.parent], "dev").questions[0].answers == ("Wilhelm Röntgen",)


def test_a_part_of_the_gold_passages_is_none(tmp_path: Path, published: Published, write: Write) -> None:
    file, rows = published["flashrag-musique"]
    del rows[0]["metadata"]["question_decomposition"][0]["support_paragraph"]
    write(tmp_path / file, rows)
    write(tmp_path / "corpus.jsonl", [{"id": "c", "title": "Miquette Giraudy", "text": "A musician."}])
    data = QaDataset([tmp_path], "dev")
    assert data.questions[0].hops == 2
    assert goals_of(data)[0].evidence == ()


def test_a_separate_corpus_decides_what_is_searched(tmp_path: Path, published: Published, write: Write) -> None:
    name, rows = published["hotpotqa"]
    folder = write(tmp_path / name, rows).parent
    corpus = [
        {"id": "w1", "title": "Scott  Derrickson", "text": "Other words on Scott Derrickson."},
        {"id": "w2", "title": "Ed Wood", "text": "Edward Davis Wood Jr. was an American filmmaker.  He made films."},
        {"id": "w3", "title": "Ed Wood", "text": "A film of 1994."},
        {"id": "w4", "title": "Shirley Temple", "text": "Shirley Temple, part one."},
        {"id": "w5", "title": "Shirley Temple", "text": "Shirley Temple, part two."},
    ]
    write(folder / "corpus.jsonl", corpus)
    data = QaDataset([folder], "dev")
    assert [passage.id for passage in data.index.passages] == ["w1", "w2", "w3", "w4", "w5"]
    # By its only title, and by its words; of the second question one passage is missing and one is not told apart.
    assert [question.supporting_ids for question in data.questions] == [("w1", "w2"), ()]
    assert data.questions[1].hops == 2
    assert goals_of(data)[1].evidence == ()
    assert data.without_gold == 1


@pytest.mark.parametrize("name", WITH_PARAGRAPHS)
def test_the_scripted_expert_plays_what_has_gold_passages(
    tmp_path: Path, published: Published, write: Write, name: str
) -> None:
    file, rows = published[name]
    folder = write(tmp_path / file, rows).parent

    def make() -> Any:
        return make_env("MemPO-MultiGoal-v0", goals=len(rows), dataset="qa", data=str(folder), split="dev")

    with EnvPool(make) as envs:
        episode = rollout(ExpertAgent(), envs, [EpisodeSpec("g", 0, 0)], seed=0, step=0)[0]
    assert episode.scores == {"em": 1.0, "f1": 1.0, "success": 1.0}


def test_the_split_is_in_the_name(tmp_path: Path, published: Published, write: Write) -> None:
    _, rows = published["hotpotqa"]
    folder = tmp_path / "hotpot"
    write(folder / "hotpot_train_v1.1.json", rows[:1])
    write(folder / "hotpot_dev_distractor_v1.json", rows[1:])
    assert [q.id for q in QaDataset([folder], "train").questions] == [rows[0]["_id"]]
    assert [q.id for q in QaDataset([folder], "dev").questions] == [rows[1]["_id"]]
    with pytest.raises(UserError, match=r"no published file whose name says 'test'; its splits: dev, train"):
        QaDataset([folder], "test")
    write(folder / "hotpot_dev_fullwiki_v1.json", rows[1:])
    message = r"several files of the split 'dev': hotpot_dev_distractor_v1.json, hotpot_dev_fullwiki_v1.json; name the"
    with pytest.raises(UserError, match=message):
        QaDataset([folder], "dev")
    files = [folder / "hotpot_train_v1.1.json", folder / "hotpot_dev_fullwiki_v1.json"]
    assert [len(QaDataset(files, split).questions) for split in ("train", "dev")] == [1, 1]
    with pytest.raises(UserError, match=r"none is of the split 'test'; their splits: dev, train"):
        QaDataset(files, "test")
    with pytest.raises(UserError, match="as a whole and by single files"):
        QaDataset([folder, *files], "dev")


def test_a_question_in_two_splits_stays_in_the_later_one(
    tmp_path: Path, published: Published, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    _, rows = published["hotpotqa"]
    write(tmp_path / "hotpot_train_v1.1.json", [*rows, rows[0] | {"_id": "again"}])
    write(tmp_path / "hotpot_dev_distractor_v1.json", rows[1:])
    with caplog.at_level(logging.WARNING):
        train, dev = QaDataset([tmp_path], "train"), QaDataset([tmp_path], "dev")
    assert [q.id for q in train.questions] == [rows[0]["_id"]]
    assert [q.id for q in dev.questions] == [rows[1]["_id"]]
    assert (train.dropped, dev.dropped) == (2, 0)
    assert "2 train questions are left out: they come twice, or stand in a later split" in caplog.text


def test_a_changed_file_is_read_again(tmp_path: Path, published: Published, write: Write) -> None:
    name, rows = published["hotpotqa"]
    path = write(tmp_path / name, rows)
    before = shared_dataset([tmp_path], "dev")
    assert shared_dataset([str(tmp_path)], "dev") is before
    write(path, rows[:1])
    assert len(shared_dataset([tmp_path], "dev").questions) == 1


# What is refused -----------------------------------------------------------------------------------------------------


def broken(row: dict[str, Any], *path: Any, value: Any = None, drop: bool = False) -> dict[str, Any]:
    """The row, with the field at a path replaced or dropped."""
    *steps, last = path
    place: Any = row
    for step in steps:
        place = place[step]
    if drop:
        del place[last]
    else:
        place[last] = value
    return row


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("hotpotqa", ("answer",), "", "no 'answer'; test questions are published without"),
        ("hotpotqa", ("_id",), 7, "'_id' must be a string"),
        ("hotpotqa", ("question",), " ", "'question' is empty"),
        ("hotpotqa", ("type",), ..., "'type' is missing"),
        ("hotpotqa", ("context",), ..., "'context' is missing"),
        ("hotpotqa", ("supporting_facts",), ..., "'supporting_facts' is missing"),
        ("hotpotqa", ("context", 0), ["T"], "'context' must be a list of pairs"),
        ("hotpotqa", ("context", 0, 1), "words", "'context' must pair a title with a list of sentences"),
        ("hotpotqa", ("context", 0, 1), [1], "'context' must pair a title with a list of sentences"),
        ("hotpotqa", ("supporting_facts",), ["Ed Wood"], "'supporting_facts' must be a list of pairs"),
        ("hotpotqa", ("supporting_facts", 0), [0, "Ed Wood"], "'supporting_facts' must pair a title"),
        ("hub-hotpotqa", ("context", "title"), ["one"], "the columns of 'context' must be lists of one length"),
        ("hub-hotpotqa", ("supporting_facts", "title"), None, "the columns of 'supporting_facts'"),
        ("musique", ("answerable",), False, "a question without an answer"),
        ("musique", ("answer",), ..., "no 'answer'"),
        ("musique", ("answer_aliases",), "x", "'answer_aliases' must be a list"),
        ("musique", ("paragraphs",), {}, "'paragraphs' must be a list of objects"),
        ("musique", ("paragraphs", 0, "is_supporting"), 1, "'is_supporting' of a paragraph must be true or false"),
        ("musique", ("paragraphs", 0, "title"), ..., "'title' is missing"),
        ("musique", ("paragraphs", 0, "paragraph_text"), None, "'paragraph_text' must be a string"),
        ("musique", ("question_decomposition", 0, "paragraph_support_idx"), 0, "paragraph 0, which is not supporting"),
        ("nq-open", ("answer",), "x", "'answer' must be a list of strings"),
        ("nq-open", ("answer",), [], "'answer' is empty"),
        ("dpr", ("answers",), [1], "'answers' must be a list of strings"),
        ("dpr", ("positive_ctxs", 0, "title"), ..., "'title' is missing"),
        ("dpr", ("negative_ctxs",), ["words"], "'negative_ctxs' must be a list of objects"),
        ("flashrag-nq", ("golden_answers",), [], "'golden_answers' is empty"),
        ("flashrag-nq", ("metadata",), "x", "'metadata' must be an object"),
        ("flashrag-hotpotqa", ("metadata", "context", "title"), ["one"], "the columns of 'context'"),
        ("2wikimultihopqa", ("answer",), ["Poland"], "'answer' must be a string, not list"),
    ],
)
def test_a_malformed_record_names_file_record_and_field(
    tmp_path: Path, published: Published, write: Write, name: str, path: tuple[Any, ...], value: Any, message: str
) -> None:
    file, rows = published[name]
    second = json.loads(json.dumps(rows[0]))
    good = json.loads(json.dumps(rows[0])) | {"question": "Another one?"}
    bad = broken(second, *path, value=value, drop=value is ...)
    place = write(tmp_path / file, [good, bad])
    with pytest.raises(UserError, match=message) as error:
        QaDataset([tmp_path], "dev")
    number = ":2: " if ".jsonl" in file else ": record 2: "
    assert str(error.value).startswith(f"{place}{number}")
    assert "\n" not in str(error.value)


def test_an_unknown_format_is_not_guessed(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "dev.jsonl", [{"q": "who?", "a": "me"}])
    with pytest.raises(UserError, match=r"dev.jsonl:1: the fields a, q are those of no known format; known, .*MuSiQue"):
        QaDataset([tmp_path], "dev")


def test_hotpotqa_test_questions_say_that_they_have_no_answer(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "hotpot_test_fullwiki_v1.json", [{"_id": "a", "question": "who?", "context": []}])
    with pytest.raises(UserError, match=r"record 1: there is no 'answer'; test questions are published without"):
        QaDataset([tmp_path], "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", r"the array breaks off after record 0"),
        ('[{"a": 1}', r"record 1: the array goes on without a comma or breaks off"),
        ('[{"a": 1} {"a": 2}]', r"record 1: the array goes on without a comma"),
        ('[{"a": 1},]', r"record 1: a comma before the end"),
        ('[{"a": 1}] x', r"text follows the end of the array"),
        ('[{"a": }]', r"record 1: not valid JSON"),
        ("[3]", r"record 1: a int; each record must be a JSON object"),
        ("[]", r"has no rows"),
        ("", r"has no rows"),
        ("{", r":1: not valid JSON"),
    ],
)
def test_a_damaged_array(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "dev.json").write_text(content)
    if '"a": 1' in content:
        content = content.replace('{"a": 1}', json.dumps({"question": "q?", "answer": ["a"]}))
        (tmp_path / "dev.json").write_text(content)
    with pytest.raises(UserError, match=message):
        QaDataset([tmp_path], "dev")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3\tonly two", r"psgs_w100.tsv:4: 2 fields, the first line names 3: id, text, title"),
        ('3\t"never closed\tT', r"psgs_w100.tsv:4: not a row of tab-separated fields"),
        ("2\ttwice\tT", r"psgs_w100.tsv:4: the id '2' occurs twice"),
        ("3\t\tT", r"psgs_w100.tsv:4: 'text' is empty"),
    ],
)
def test_a_damaged_table(
    tmp_path: Path, published: Published, write: Write, texts: dict[str, str], line: str, message: str
) -> None:
    name, rows = published["dpr"]
    write(tmp_path / name, rows)
    (tmp_path / "psgs_w100.tsv").write_text(texts["psgs"] + line + "\n")
    with pytest.raises(UserError, match=message):
        QaDataset([tmp_path], "dev")


def test_corpora_that_cannot_be_used(tmp_path: Path, published: Published, write: Write) -> None:
    name, rows = published["nq-open"]
    write(tmp_path / name, rows)
    (tmp_path / "wiki-18.jsonl").write_text('{"id": "0", "contents": "\\"A title\\""}\n')
    with pytest.raises(UserError, match=r"wiki-18.jsonl:1: 'contents' has a title and no text"):
        QaDataset([tmp_path], "dev")
    (tmp_path / "psgs_w100.tsv").write_text("id\ttext\ttitle\n1\tx\ty\n")
    with pytest.raises(UserError, match=r"several corpora: psgs_w100.tsv, wiki-18.jsonl"):
        QaDataset([tmp_path], "dev")
    with pytest.raises(UserError, match="a corpus without questions"):
        QaDataset([tmp_path / "psgs_w100.tsv"], "dev")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes.txt is no data file"):
        QaDataset([tmp_path / "notes.txt"], "dev")


def test_own_rows_in_a_file_of_another_name_are_checked_as_strictly(tmp_path: Path, write: Write) -> None:
    row = {"id": "q", "question": "who?", "answers": ["me"], "supporting_ids": ["p9"]}
    write(tmp_path / "my_dev.jsonl", [row])
    write(tmp_path / "corpus.jsonl", [{"id": "p1", "title": "T", "text": "words"}])
    with pytest.raises(UserError, match=r"my_dev.jsonl:1: the supporting passage 'p9' is not in the corpus"):
        QaDataset([tmp_path], "dev")


def test_tasks_of_joined_formats(tmp_path: Path, published: Published, write: Write, texts: dict[str, str]) -> None:
    hotpot, dpr = published["hotpotqa"], published["dpr"]
    folders = [write(tmp_path / "h" / hotpot[0], hotpot[1]).parent, write(tmp_path / "n" / dpr[0], dpr[1]).parent]
    data = QaDataset(folders, "dev")
    assert [question.dataset for question in data.questions] == ["hotpotqa", "hotpotqa", "nq"]
    assert len(data.index) == 5 + 4
    assert len(data.sample(np.random.default_rng(0), 3).goals) == 3
