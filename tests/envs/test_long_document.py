"""Documents: the last statement counts, nothing is longer than stated, splits share no task; files stay as given."""

from __future__ import annotations

import gzip
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mempo_env.envs.closed_world import split_of
from mempo_env.envs.document_files import cut, load_documents
from mempo_env.envs.document_world import DocumentConfig, sample_document_task
from mempo_env.envs.filler import filler_sentences, filler_vocabulary
from mempo_env.envs.long_document import LongDocumentEnv
from mempo_env.errors import UserError
from mempo_env.records import Task
from mempo_env.tokens import RegexTokenCounter

COUNTER = RegexTokenCounter()
SENTENCE = re.compile(r"([A-Z]\w+) (\w+) (\w+)\.")  # written apart from the code's own: a capital letter begins a fact


def draw(seed: int, goals: int = 4, split: str = "train", **config: Any) -> Task:
    return sample_document_task(np.random.default_rng(seed), goals, DocumentConfig(**config), split)


def told(task: Task) -> list[tuple[str, str, str]]:
    return [fact for passage in task.passages for fact in SENTENCE.findall(passage.text)]


configs = st.builds(
    lambda chunks, tokens, facts, updates: {
        "chunks": (chunks, chunks + 3), "chunk_tokens": tokens, "facts": facts, "updates": updates,
    },
    st.integers(4, 12), st.integers(40, 90), st.integers(8, 20), st.floats(0, 1),
)  # fmt: skip


@settings(max_examples=60)
@given(st.integers(0, 2**40), st.integers(1, 4), configs, st.sampled_from(["train", "dev", "test"]))
def test_what_every_document_keeps(seed: int, goals: int, config: dict[str, Any], split: str) -> None:
    task = draw(seed, goals, split, **config)
    assert task == draw(seed, goals, split, **config)
    assert config["chunks"][0] <= len(task.passages) <= config["chunks"][1]
    assert all(0 < COUNTER.count(passage.text) <= config["chunk_tokens"] for passage in task.passages)
    facts = told(task)
    last = {(person, relation): value for person, relation, value in facts}
    assert len(last) == config["facts"]
    assert len(set(facts)) == len(facts) <= 2 * len(last)
    assert split_of(task.goals) == split
    for goal in task.goals:
        for evidence in goal.evidence:
            person, relation, value = evidence.note.split(" ")
            assert last[person, relation] == value
            (chunk,) = (passage for passage in task.passages if passage.id == evidence.passage_id)
            assert f"{evidence.note}." in chunk.text


def test_answers_follow_from_the_last_statements() -> None:
    kinds = set()
    for seed in range(200):
        task = draw(seed, 6, updates=0.5, two_hop_share=0.4, comparison_share=0.3)
        last = {(person, relation): value for person, relation, value in told(task)}
        for goal in task.goals:
            words = goal.question.rstrip("?").split(" ")
            if goal.kind == "one-hop":
                assert goal.answers == (last[words[0], words[1]],)
            elif goal.kind == "two-hop":
                assert goal.answers == (last[last[words[0], words[1]], words[4]],)
            else:
                scores = int(last[words[0], "scores"]), int(last[words[2], "scores"])
                assert goal.answers == (words[0] if scores[0] > scores[1] else words[2],)
            kinds.add(goal.kind)
    assert kinds == {"one-hop", "two-hop", "comparison"}


def test_the_shares_are_kept() -> None:
    tasks = [draw(seed, 1, facts=20, updates=0.3) for seed in range(300)]
    stale = sum(len(told(task)) - 20 for task in tasks) / (300 * 20)
    assert stale == pytest.approx(0.3, abs=0.03)  # standard error 0.006
    assert not any(len(told(draw(seed, updates=0.0))) > 32 for seed in range(20))


def test_facts_are_spread_over_the_whole_document() -> None:
    asked = [
        int(evidence.passage_id.removeprefix("chunk-"))
        for seed in range(200)
        for goal in draw(seed, 1, chunks=(10, 10)).goals
        for evidence in goal.evidence
    ]
    counts = np.bincount(asked, minlength=11)[1:]
    assert counts.min() > len(asked) / 10 * 0.5
    assert counts.max() < len(asked) / 10 * 1.6  # updates put what counts a little later than evenly


def test_splits_hold_different_tasks() -> None:
    for goals in (1, 4):
        asked = [
            {
                tuple(sorted((goal.question, goal.answers) for goal in draw(seed, goals, split).goals))
                for seed in range(60)
            }
            for split in ("train", "dev", "test")
        ]
        assert not asked[0] & asked[1]
        assert not asked[0] & asked[2]
        assert not asked[1] & asked[2]
    with pytest.raises(UserError, match="split"):
        draw(0, split="validation")


def test_filler_says_nothing() -> None:
    rng = np.random.default_rng(0)
    sentences = filler_sentences(rng, 500)
    assert not SENTENCE.search(" ".join(sentences))
    assert {COUNTER.count(sentence) for sentence in sentences} == {8}
    assert {word for sentence in sentences for word in sentence.rstrip(".").split(" ")} == set(filler_vocabulary())
    assert filler_sentences(rng, 0) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunks": 3}, "chunks must be a whole number from 4 to 400"),
        ({"chunks": [4, 401]}, "chunks must be"),
        ({"chunk_tokens": 7}, "chunk_tokens must be"),
        ({"facts": 61}, "facts must be a whole number from 2 to 60"),
        ({"facts": 7}, "facts=7 is too few for 4 goals, which may rest on two facts each; choose facts=8 or more"),
        ({"updates": 1.5}, r"updates=1\.5 is a probability"),
        ({"two_hop_share": 0.8, "comparison_share": 0.4}, "sum to 1"),
        ({"chunks": 4, "chunk_tokens": 16}, "32 facts need room for 64 sentences, but 4 chunks of 16 tokens hold 16"),
        ({"facts": 40, "budget": {"memory_tokens": 100}}, "may take 159 tokens .regex., but the memory holds 100"),
        ({"facts": [8, 9]}, "facts must be a whole number from 2 to 60"),
        ({"facts": 8.5}, "facts must be"),
        ({"updates": "often"}, "updates='often' is a probability"),
        ({"two_hop_share": None}, "two_hop_share=None is a probability"),
        ({"score_step": 0}, "score_step must be"),
        ({"colour": "red"}, "unexpected keyword"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, TypeError), match=message):
        LongDocumentEnv(**arguments)


def test_the_most_facts_fit_into_the_memory() -> None:
    env = LongDocumentEnv(facts=60, chunks=400, goals=16)
    assert COUNTER.count(env.config.longest_notes) == 239 <= env.budget.memory_tokens


# Files ----------------------------------------------------------------------------------------------------------------

TEXT = (
    "Otto Koch built the Old Bridge. It stands in Ulm. Nobody knows when, but it was long ago. Ulm lies on the Danube."
)
ROW = {"id": "bridge", "text": TEXT, "questions": [{"question": "Who built it?", "answers": ["Otto Koch", "Koch"]}]}


def write(folder: Path, split: str, *rows: object) -> Path:
    (folder / f"documents.{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_documents_from_files_are_played(tmp_path: Path) -> None:
    other = {"chunks": ["One.", "Two </mem>.", "Three."], "questions": [
        {"question": "First?", "answers": ["One"]}, {"question": "Last?", "answers": ["Three"]},
    ]}  # fmt: skip
    write(tmp_path, "train", ROW, other)
    with gzip.open(tmp_path / "documents.dev.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({**ROW, "text": "Something else. Otto Koch."}))
    env = LongDocumentEnv(goals=1, documents=tmp_path, chunk_tokens=15)
    assert env.budget.name == "brief+3"
    seen = set()
    for seed in range(30):
        _, info = env.reset(seed=seed)
        seen.add((info["task"].id, info["task"].goals[0].question, tuple(p.text for p in info["task"].passages)))
    cuts = ("Otto Koch built the Old Bridge. It stands in Ulm.", "Nobody knows when, but it was long ago.",
            "Ulm lies on the Danube.")  # fmt: skip
    assert seen == {
        ("doc-bridge", "Who built it?", cuts),
        ("doc-2", "First?", ("One.", "Two </mem>.", "Three.")),
        ("doc-2", "Last?", ("One.", "Two </mem>.", "Three.")),
    }
    assert pickle.loads(pickle.dumps(env)).files is env.files  # read once in a process, however many environments
    two = LongDocumentEnv(goals=2, documents=str(tmp_path), chunk_tokens=15)
    assert {two.reset(seed=seed)[1]["task"].id for seed in range(10)} == {"doc-2"}
    assert LongDocumentEnv(goals=1, documents=tmp_path, split="dev").reset(seed=0)[1]["task"].passages[0].text == (
        "Something else. Otto Koch."
    )
    with pytest.raises(UserError, match=r"3 goals, but the train documents of .* have 2 questions at most"):
        LongDocumentEnv(goals=3, documents=tmp_path).reset(seed=0)


def test_evidence_is_found_where_an_answer_stands(tmp_path: Path) -> None:
    questions = [{"question": f"{n}?", "answers": a} for n, a in enumerate((["danube"], ["yes"], ["Nowhere", "Ulm"]))]
    write(tmp_path, "train", {**ROW, "questions": questions})
    (document,) = load_documents(tmp_path, "train", 15).documents
    notes = [[(e.note, e.passage_id) for e in goal.evidence] for goal in document.goals]
    assert notes == [
        [("Ulm lies on the Danube.", "chunk-3")],
        [],
        [("Otto Koch built the Old Bridge. It stands in Ulm.", "chunk-1")],
    ]


@settings(max_examples=200)
@given(st.text(alphabet="ab .!\n文é_-9", min_size=1).filter(str.strip), st.integers(8, 20))
def test_cutting_loses_nothing(text: str, tokens: int) -> None:
    chunks = cut(text, tokens)
    assert all(chunk.strip() and COUNTER.count(chunk) <= tokens for chunk in chunks)
    assert "".join("".join(chunks).split()) == "".join(text.split())


def test_a_long_word_is_cut() -> None:
    assert cut("x" * 30, 2) == ["x" * 24, "x" * 6]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"questions": []}, "as 'text' or as 'chunks', one of the two"),
        ({"text": "a", "chunks": ["a"], "questions": [{}]}, "one of the two"),
        ({"text": " ", "questions": [{}]}, "'text' is empty"),
        ({"chunks": [], "questions": [{"question": "?", "answers": ["a"]}]}, "'chunks' is empty"),
        ({"chunks": ["a", 1], "questions": [{}]}, "'chunks' must be a list of strings"),
        ({"text": "a"}, "'questions' must be a list of objects"),
        ({"text": "a", "questions": ["?"]}, "'questions' must be a list of objects"),
        ({"text": "a", "questions": [{"question": "?", "answers": []}]}, "question 1: 'answers' is empty"),
        ({"text": "a", "questions": [{"question": "a; b?", "answers": ["a"]}]}, "';' separates"),
        ({"text": "a", "questions": [{"question": "b?", "answers": ["a;b", "c"]}]}, "';' separates"),
        ({"chunks": ["a"] * 401, "questions": [{"question": "?", "answers": ["a"]}]}, "401 chunks, more than 400"),
    ],
)
def test_a_bad_row_is_refused_by_file_and_line(tmp_path: Path, row: object, message: str) -> None:
    write(tmp_path, "train", ROW, row)
    with pytest.raises(UserError, match=message) as refused:
        LongDocumentEnv(documents=tmp_path)
    assert "documents.train.jsonl:2" in str(refused.value)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no documents\.train\.jsonl or \.jsonl\.gz; its splits: none"):
        LongDocumentEnv(documents=tmp_path / "nowhere")
    write(write(tmp_path, "train", ROW), "dev", {**ROW, "text": TEXT.replace(" ", "  ")})
    with pytest.raises(UserError, match=r"dev\.jsonl:1: this document is in the split 'train' too"):
        LongDocumentEnv(documents=tmp_path)
    with pytest.raises(UserError, match="its splits: dev, train"):
        LongDocumentEnv(documents=tmp_path, split="test")
    write(tmp_path, "other", ROW, ROW)
    with pytest.raises(UserError, match=r"other\.jsonl:2: the id 'bridge' occurs twice"):
        LongDocumentEnv(documents=tmp_path, split="other")
    (tmp_path / "documents.empty.jsonl").write_text("")
    with pytest.raises(UserError, match="has no rows"):
        LongDocumentEnv(documents=tmp_path, split="empty")
