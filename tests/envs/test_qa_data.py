from __future__ import annotations

import gzip
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mempo_env.envs.qa_data import QaDataset, shared_dataset
from mempo_env.envs.qa_evidence import NOTE_WORDS, note_of, reading_order
from mempo_env.errors import UserError
from mempo_env.metrics import normalise_answer
from mempo_env.records import Passage

CORPUS = [
    {"id": "p1", "title": "Old Mill", "text": "The Old Mill is a house. It was built by Ann Lee in 1820."},
    {"id": "p2", "title": "Ann Lee (architect)", "text": "Ann Lee was born in York. She died in Rome."},
    {"id": "p3", "title": "York", "text": "York is a city in England."},
    {"id": "p4", "title": "York", "text": "New York has a mill, too."},
]


def question(name: str, text: str, *answers: str, ids: tuple[str, ...] = ("p1",)) -> dict[str, Any]:
    return {"id": name, "question": text, "answers": list(answers), "supporting_ids": list(ids)}


QUESTIONS = {
    "train": [
        question("q1", "Where was the builder of the Old Mill born?", "York", ids=("p2", "p1")),
        question("q2", "When was the house built?", "1820", "in 1820"),
        question("q3", "Is York a city in England?", "yes", ids=("p3",)),
        question("q4", "Which two?", "a; b"),
        question("q5", "One; or two?", "one"),
    ],
    "dev": [question("q6", "What is the Old Mill?", "a house")],
}


def folder(path: Path, corpus: Any = None, questions: Any = None, gz: bool = False) -> Path:
    path.mkdir(parents=True)
    files = {f"questions.{split}": rows for split, rows in (questions or QUESTIONS).items()}
    for name, rows in {"corpus": corpus or CORPUS, **files}.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if gz:
            (path / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (path / f"{name}.jsonl").write_text(text)
    return path


@pytest.mark.parametrize("gz", [False, True])
def test_goals_with_faithful_evidence(tmp_path: Path, gz: bool) -> None:
    data = QaDataset([folder(tmp_path / "d", gz=gz)])
    goals = {goal.id: goal for goal in data.compose(data.questions).goals}
    first, second = goals["q1"].evidence
    assert (first.passage_id, first.after, first.query) == ("p1", -1, "Old Mill")
    assert (second.passage_id, second.after, second.query) == ("p2", 0, "Ann Lee (architect)")
    assert first.note == "Old Mill: It was built by Ann Lee in 1820."  # the sentence that leads on
    assert second.note == "Ann Lee (architect): Ann Lee was born in York."
    assert goals["q2"].answers == ("1820", "in 1820")
    assert goals["q2"].evidence[0].note == "Old Mill: It was built by Ann Lee in 1820."
    assert goals["q3"].evidence[0].note == "York: York is a city in England."
    assert goals["q3"].kind == "question"


def test_a_query_beyond_the_title_uses_shared_words_only(tmp_path: Path) -> None:
    rows = [question("q", "Which city of that name lies in England?", "York", ids=("p3",)),
            question("r", "What about a mill?", "New York", ids=("p4",))]  # fmt: skip
    data = QaDataset([folder(tmp_path / "d", questions={"train": rows})])
    assert [goal.evidence[0].query for goal in data.compose(data.questions).goals] == ["York", "York mill"]
    assert data.index.search(["York mill"], 1)[0][0].id == "p4"


def test_separators_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = QaDataset([folder(tmp_path / "d")])
    assert [question.id for question in data.questions] == ["q1", "q2", "q3"]
    assert data.skipped == 2
    assert len([record for record in caplog.records if "left out" in record.message]) == 1


def test_tasks_are_drawn_without_repeats(tmp_path: Path) -> None:
    data = QaDataset([folder(tmp_path / "d")])
    orders = set()
    for seed in range(40):
        task = data.sample(np.random.default_rng(seed), 3)
        assert task == data.sample(np.random.default_rng(seed), 3)
        assert {goal.id for goal in task.goals} == {"q1", "q2", "q3"}
        orders.add(task.id)
    assert len(orders) == 6
    with pytest.raises(UserError, match="4 goals from 3 train questions"):
        data.sample(np.random.default_rng(0), 4)


def test_folders_are_joined(tmp_path: Path) -> None:
    other = folder(
        tmp_path / "e",
        [{"id": "x1", "title": "Sea", "text": "The sea is wet."}],
        {"train": [question("q1", "How is the sea?", "wet", ids=("x1",))]},
    )
    data = QaDataset([folder(tmp_path / "d"), other])
    assert len(data.questions) == 4
    assert len(data.index) == 5
    assert data.passage("x1").title == "Sea"


def bad(path: Path, **changes: Any) -> list[Path]:
    return [folder(path, **changes)]


def test_what_cannot_be_used_is_a_user_error(tmp_path: Path) -> None:
    both = {"train": QUESTIONS["train"], "dev": [question("z", "WHEN was the house built", "1820")]}
    twice = {"train": [question("a", "Same?", "x"), question("b", "same", "x")]}
    lost = {"train": [question("a", "Same?", "x", ids=("p9",))]}
    for at, (folders, split, message) in enumerate(
        [
            ([tmp_path / "none"], "train", "does not exist"),
            ([], "train", "no data folder"),
            (bad(tmp_path / "a"), "test", r"no questions.test.jsonl.*its splits: dev, train"),
            (bad(tmp_path / "b", questions=both), "train", r"questions.dev.jsonl:1: .*split 'train' too"),
            (bad(tmp_path / "c", questions=both), "dev", r"questions.train.jsonl:2: .*split 'dev' too"),
            (bad(tmp_path / "f", questions=twice), "train", r"questions.train.jsonl:2: the same question"),
            (bad(tmp_path / "g", questions=lost), "train", r"questions.train.jsonl:1: .*'p9' is not in the corpus"),
            ([*bad(tmp_path / "h"), *bad(tmp_path / "i")], "train", "same passage id"),
        ]
    ):
        with pytest.raises(UserError, match=message):
            QaDataset(folders, split)
        assert at < 8
    (tmp_path / "a" / "corpus.jsonl").unlink()
    with pytest.raises(UserError, match=r"no corpus.jsonl"):
        QaDataset([tmp_path / "a"])


def test_environments_share_a_dataset_until_its_files_change(tmp_path: Path) -> None:
    path = folder(tmp_path / "d")
    data = shared_dataset([path])
    assert shared_dataset([str(path)]) is data
    assert shared_dataset([path], "dev") is not data
    assert pickle.loads(pickle.dumps(data)) is data
    with (path / "questions.train.jsonl").open("a") as file:
        file.write(json.dumps(question("q9", "New?", "1820")) + "\n")
    assert len(shared_dataset([path]).questions) == 4


def testreading_order() -> None:
    passages = {row["id"]: Passage(**row) for row in CORPUS}
    ann, mill, york = passages["p2"], passages["p1"], passages["p3"]

    def order(text: str, *gold: Passage) -> list[tuple[str, int]]:
        return [(passage.id, after) for passage, after in reading_order(text, gold)]

    assert order("the Old Mill?", ann, mill) == [("p1", -1), ("p2", 0)]
    assert order("the Old Mill?", york, ann, mill) == [("p1", -1), ("p2", 0), ("p3", 1)]  # a chain of three
    assert order("Old Mill or York?", mill, york) == [("p1", -1), ("p3", -1)]
    assert order("which?", york, ann) == [("p2", -1), ("p3", 0)]  # entered where it begins
    assert order("which?", york) == [("p3", -1)]
    assert order("which?") == []


@pytest.mark.parametrize(
    ("text", "answers", "note"),
    [
        ("First one. Second has 42 in it. Third.", ("42",), "T: Second has 42 in it."),
        ("First one. Second has 142 in it.", ("42",), "T: First one."),
        ("First one. Yes is here.", ("yes",), "T: First one."),
        ("He met Dr. Who in 1900. Then left.", ("1900",), "T: He met Dr. Who in 1900."),
        (
            " ".join(f"w{at}" for at in range(60)),
            ("w50",),
            "T: " + " ".join(f"w{at}" for at in range(38, 62) if at < 60),
        ),
        (" ".join(f"w{at}" for at in range(60)), ("w3",), "T: " + " ".join(f"w{at}" for at in range(24))),
    ],
)
def test_notes_are_extracts_around_the_answer(text: str, answers: tuple[str, ...], note: str) -> None:
    assert note_of(Passage("p", "T", text), answers, ()) == note


@pytest.mark.parametrize("name", ["hotpotqa", "nq", "musique", "2wikimultihopqa"])
def test_real_data_has_evidence_that_can_be_found(shared_data: Path, name: str) -> None:
    data = QaDataset([shared_data / name], "dev")
    held = found = total = answerable = 0
    for goal in (data.compose([question]).goals[0] for question in data.questions[:200]):
        assert goal.evidence
        for evidence in goal.evidence:
            passage = data.passage(evidence.passage_id)
            title, _, extract = evidence.note.partition(": ") if ": " not in passage.title else (
                passage.title, "", evidence.note.removeprefix(f"{passage.title}: "))  # fmt: skip
            assert title == " ".join(passage.title.split())
            assert extract in " ".join(passage.text.split())
            assert len(evidence.note.split()) <= max(NOTE_WORDS, len(title.split()) + 8) + 8
            total += 1
            found += passage in data.index.search([evidence.query], k=3)[0]
        if normalise_answer(goal.answers[0]) not in ("yes", "no"):
            answerable += 1
            notes = normalise_answer(" ".join(evidence.note for evidence in goal.evidence))
            held += any(normalise_answer(answer) in notes for answer in goal.answers)
    assert found / total > 0.9
    assert held / answerable > 0.97


def test_real_splits_and_folders(shared_data: Path) -> None:
    folders = [shared_data / name for name in ("hotpotqa", "nq", "musique", "2wikimultihopqa")]
    train, dev = QaDataset(folders, "train"), QaDataset(folders, "dev")
    assert not {question.text for question in train.questions} & {question.text for question in dev.questions}
    task = train.sample(np.random.default_rng(0), 16)
    assert len({goal.question for goal in task.goals}) == 16
