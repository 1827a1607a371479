from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mempo_env.envs.jsonl import load_corpus, load_questions
from mempo_env.errors import UserError
from mempo_env.records import Passage

GOOD = {"id": "q1", "question": "who?", "answers": ["x", "y"], "type": "bridge", "supporting_ids": ["p1"], "extra": 1}
PASSAGE = {"id": "p1", "title": "T", "text": "words"}


def write(path: Path, *lines: object) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz"])
def test_questions_and_passages_are_read(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, GOOD, "", {"id": "q2", "question": "was für ein 文?", "answers": ["z"]})
    first, second = load_questions(path)
    assert (first.id, first.text, first.answers, first.kind, first.supporting_ids) == (
        "q1",
        "who?",
        ("x", "y"),
        "bridge",
        ("p1",),
    )
    assert second.text == "was für ein 文?"
    assert second.supporting_ids == ()
    assert second.where == f"{path}:3"
    assert load_corpus(write(tmp_path / f"c{name}", PASSAGE)) == (Passage("p1", "T", "words"),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "one JSON object"),
        ("null", "one JSON object"),
        ({}, "'id' is missing"),
        (GOOD | {"id": 3}, "'id' must be a string"),
        (GOOD | {"id": " "}, "'id' is empty"),
        (GOOD, "occurs twice"),
        ({"id": "q", "answers": ["x"]}, "'question' is missing"),
        (GOOD | {"id": "q", "question": ""}, "'question' is empty"),
        (GOOD | {"id": "q", "question": None}, "'question' must be a string, not NoneType"),
        (GOOD | {"id": "q", "answers": []}, "'answers' is empty"),
        (GOOD | {"id": "q", "answers": "x"}, "'answers' must be a list"),
        (GOOD | {"id": "q", "answers": ["x", ""]}, "'answers' must be a list"),
        (GOOD | {"id": "q", "supporting_ids": [1]}, "'supporting_ids' must be a list"),
        (GOOD | {"id": "q", "type": 1}, "'type' must be a string"),
    ],
)
@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz"])
def test_a_bad_question_names_file_and_line(tmp_path: Path, name: str, line: object, message: str) -> None:
    path = write(tmp_path / name, GOOD, "", line)
    with pytest.raises(UserError, match=message) as error:
        load_questions(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "p", "title": "T"}, "'text' is missing; the row has id, title"),
        (PASSAGE | {"id": "p", "text": " "}, "'text' is empty"),
        (PASSAGE | {"id": "p", "title": 1}, "'title' must be a string"),
        (PASSAGE, "occurs twice"),
    ],
)
def test_a_bad_passage_names_file_and_line(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path / "c.jsonl", PASSAGE, line)
    with pytest.raises(UserError, match=message) as error:
        load_corpus(path)
    assert str(error.value).startswith(f"{path}:2: ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_corpus(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        load_corpus(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(UserError, match="no rows"):
        load_corpus(empty)
    with pytest.raises(UserError, match="no rows"):
        load_questions(empty)
    fake = tmp_path / "fake.jsonl.gz"
    fake.write_text("not gzip")
    with pytest.raises(UserError, match="cannot be read"):
        load_corpus(fake)
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(json.dumps(PASSAGE).encode() + b"\n\xff\n")
    with pytest.raises(UserError, match=r"latin.jsonl:2: not UTF-8"):
        load_corpus(latin)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_gzip_file(tmp_path: Path, damage: str) -> None:
    path = write(
        tmp_path / "c.jsonl.gz", *(PASSAGE | {"id": str(at), "text": f"words {at * 7919}"} for at in range(3000))
    )
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 0xFF
        data[-6] ^= 0xFF  # the check sum, in case the flipped byte still inflates to JSON
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"c\.jsonl\.gz"):
        load_corpus(path)
