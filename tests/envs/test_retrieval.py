from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempo_env.envs import retrieval
from mempo_env.envs.closed_world import sample_closed_world_task
from mempo_env.envs.jsonl import load_corpus
from mempo_env.envs.retrieval import Bm25Index, default_cache_dir, task_index, words
from mempo_env.errors import UserError
from mempo_env.records import Passage

PASSAGES = (
    Passage("1", "Fox", "The red fox runs. Who is a fox?"),
    Passage("2", "Dog", "A lazy dog sleeps."),
    Passage("3", "Twin", "same words here"),
    Passage("4", "Twin", "same words here"),
    Passage("5", "Été 文", "Ein Satz über X und Y."),
)


def ids(index: Bm25Index, query: str, k: int = 5) -> list[str]:
    return [passage.id for passage in index.search([query], k)[0]]


def test_search_by_hand() -> None:
    index = Bm25Index.in_memory(PASSAGES)
    assert len(index) == 5
    assert ids(index, "fox") == ["1"]
    assert sorted(ids(index, "dog fox")) == ["1", "2"]
    assert [len(found) for found in index.search(["fox", "nothing at all matches zzz", ""], 3)] == [1, 0, 0]
    assert ids(index, "fox", k=0) == []


def test_no_word_is_lost() -> None:
    index = Bm25Index.in_memory(PASSAGES)
    assert words("Who is A? été 文 don't") == ["who", "is", "a", "été", "文", "don", "t"]
    for query, gold in (("who", "1"), ("x", "5"), ("Y", "5"), ("the", "1"), ("ÉTÉ", "5"), ("文", "5"), ("is", "1")):
        assert ids(index, query)[0] == gold
    assert ids(index, "run") == []  # no stemming


def test_ties_keep_the_passages_order_whatever_k() -> None:
    many = tuple(Passage(str(at), "t", "alpha beta" if at % 3 else "alpha gamma") for at in range(300))
    index = Bm25Index.in_memory(many)
    everything = ids(index, "alpha beta", k=300)
    scores = index._bm25.get_scores(words("alpha beta"))
    expected = sorted(range(300), key=lambda at: (-scores[at], at))
    assert everything == [str(at) for at in expected]
    for k in (1, 2, 7, 150, 299):
        assert ids(index, "alpha beta", k=k) == everything[:k]
    assert ids(index, "same words here") == []


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 1e-45]), min_size=1, max_size=60),
    st.integers(1, 70),
    st.integers(1, 9),
)
def test_the_best_are_those_of_a_full_sort(values: list[float], k: int, block: int) -> None:
    """Whatever the size of the blocks by which most scores are passed over; 1e-45 is the smallest float32 above 0."""
    index = Bm25Index.in_memory(PASSAGES)
    scores = np.array(values, dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_BLOCK", block)
        patch.setattr(index._bm25, "get_scores_from_ids", lambda _: scores)
        found, of_them = index._top("fox", k)
    expected = [at for at in sorted(range(len(values)), key=lambda at: (-scores[at], at)) if scores[at] > 0][:k]
    assert found.tolist() == expected
    assert of_them.tolist() == scores[expected].tolist()


def test_scores_are_bm25() -> None:
    """Against the formula: Lucene's BM25, k1 = 1.5, b = 0.75, the title counted twice."""
    index = Bm25Index.in_memory(PASSAGES)
    documents = [words(p.title) * 2 + words(p.text) for p in PASSAGES]
    mean = sum(map(len, documents)) / len(documents)
    query = "a red fox sleeps"
    for at, document in enumerate(documents):
        score = 0.0
        for word in words(query):
            df, tf = sum(word in d for d in documents), document.count(word)
            idf = np.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
        assert index._bm25.get_scores(words(query))[at] == pytest.approx(score, rel=1e-5)


def test_a_built_index_is_cached_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Bm25Index.build(PASSAGES, tmp_path)
    folders = list((tmp_path / "bm25").iterdir())
    assert len(folders) == 1
    assert not folders[0].name.startswith("."), "something was left beside the index"
    monkeypatch.setattr(retrieval, "_index", lambda _: pytest.fail("built again"))
    second = Bm25Index.build(list(PASSAGES), tmp_path)
    for query in ("fox", "same words", "a", "über"):
        assert ids(first, query) == ids(second, query) == ids(Bm25Index.build(PASSAGES, tmp_path), query)
    assert isinstance(second._bm25.scores["data"].base, np.memmap)
    assert pickle.loads(pickle.dumps(second)).search(["fox"], 1) == second.search(["fox"], 1)
    assert len(pickle.dumps(second)) < 4000


def test_the_cache_tells_contents_apart(tmp_path: Path) -> None:
    Bm25Index.build(PASSAGES, tmp_path)
    Bm25Index.build(PASSAGES[::-1], tmp_path)
    changed = (*PASSAGES[:-1], Passage("5", "Été 文", "Ein Satz über X und Z."))
    assert ids(Bm25Index.build(changed, tmp_path), "z") == ["5"]
    assert len(list((tmp_path / "bm25").iterdir())) == 3
    shifted = (Passage("1", "ab", "c"),), (Passage("1", "a", "bc"),)
    assert retrieval._content_hash(shifted[0]) != retrieval._content_hash(shifted[1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "data.csc.index.npy").write_bytes(b""),
        lambda folder: (folder / "indices.csc.index.npy").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "vocab.index.json").write_text('{"a": 0}'),
        lambda folder: _replace_consistently(folder),
    ],
)
def test_a_damaged_cache_is_rebuilt_with_a_warning(
    damage: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ids(Bm25Index.build(PASSAGES, tmp_path), "same words")
    (folder,) = (tmp_path / "bm25").iterdir()
    assert callable(damage)
    damage(folder)
    with caplog.at_level(logging.WARNING):
        assert ids(Bm25Index.build(PASSAGES, tmp_path), "same words") == expected
    assert "damaged" in caplog.text
    caplog.clear()
    Bm25Index.build(PASSAGES, tmp_path)
    assert "damaged" not in caplog.text


def _replace_consistently(folder: Path) -> None:
    """Sizes as written down, contents of another corpus."""
    params = json.loads((folder / "params.index.json").read_text())
    text = json.dumps(params | {"num_docs": 4}, indent=4)
    (folder / "params.index.json").write_text(text)


def test_a_folder_that_cannot_be_written_to_means_memory_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        index = Bm25Index.build(PASSAGES, blocked)
    assert ids(index, "fox") == ["1"]
    assert "MEMPO_CACHE" in caplog.text


def test_processes_that_build_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: ids(Bm25Index.build(PASSAGES, tmp_path), "same words"), range(16)))
    assert found == [["3", "4"]] * 16
    assert len(list((tmp_path / "bm25").iterdir())) == 1


def test_the_cache_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEMPO_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("MEMPO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_cache_dir() == tmp_path / "xdg" / "mempo-env"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_cache_dir() == Path.home() / "Library" / "Caches" / "mempo-env"


def test_passages_without_words_are_user_errors() -> None:
    with pytest.raises(UserError, match="no passages"):
        Bm25Index.in_memory([])
    with pytest.raises(UserError, match="no words"):
        Bm25Index.in_memory([Passage("1", "", "...")])


def test_task_indexes_are_shared() -> None:
    task = sample_closed_world_task(np.random.default_rng(0), 8)
    twin = sample_closed_world_task(np.random.default_rng(0), 8)
    assert task.passages is not twin.passages
    assert task_index(task.passages) is task_index(twin.passages)


def test_results_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    code = (
        "from mempo_env.envs.retrieval import Bm25Index; from mempo_env.records import Passage\n"
        "ps = [Passage(str(i), 't', f'w{i % 7} w{i % 5} x') for i in range(200)]\n"
        "print([p.id for p in Bm25Index.in_memory(ps).search(['w1 w2 x t'], 50)[0]])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_a_real_corpus(shared_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    passages = load_corpus(shared_data / "nq" / "corpus.jsonl.gz")
    index = Bm25Index.build(passages)
    found = index.search([passage.title for passage in passages[:200]], k=5)
    first = sum(results[0].title == passage.title for results, passage in zip(found, passages, strict=False))
    assert first / 200 > 0.8  # a title is the best query for its passage, but many passages share one
    assert capfd.readouterr() == ("", "")  # no progress bars
