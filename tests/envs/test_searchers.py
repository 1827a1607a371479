"""The contract of ``envs/searcher.py``, held by every kind of searcher."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mempo_env.envs.retrieval import Bm25Index
from mempo_env.envs.searcher import Searcher
from mempo_env.records import Passage

KINDS = ("bm25", "bm25-built", "dense-flat", "dense-hnsw", "dense-ivf", "http", "http-dense")
QUERIES = ("fox", "a lazy dog", "same words", "über X", "zzz", "\ud800 fox", "<answer>fox</answer>\n\x00", "w " * 300)


@pytest.fixture(params=KINDS)
def searcher(
    request: pytest.FixtureRequest,
    passages: tuple[Passage, ...],
    search_server: Callable[..., Any],
    tmp_path: Path,
) -> Searcher:
    kind, _, rest = request.param.partition("-")
    if kind == "bm25":
        return Bm25Index.build(passages, tmp_path) if rest else Bm25Index.in_memory(passages)
    if kind == "dense":
        from mempo_env.envs.dense import DenseIndex, DenseSettings

        settings = DenseSettings(request.getfixturevalue("tiny_encoder"), index=rest)
        return DenseIndex.build(passages, settings, tmp_path)
    pytest.importorskip("tenacity", reason="the extra 'search' is not installed")
    from mempo_env.envs.search_client import HttpSearcher, SearchClientSettings

    index: Searcher = Bm25Index.in_memory(passages)
    if rest:
        from mempo_env.envs.dense import DenseIndex, DenseSettings

        index = DenseIndex.in_memory(passages, DenseSettings(request.getfixturevalue("tiny_encoder")))
    return HttpSearcher(SearchClientSettings(search_server(lambda: index).url))


def answers(searcher: Searcher, topk: int = 3) -> list[list[tuple[str, str, float]]]:
    return [
        [(hit.passage.id, hit.passage.text, hit.score) for hit in hits] for hits in searcher.retrieve(QUERIES, topk)
    ]


def test_it_is_a_searcher(searcher: Searcher) -> None:
    assert isinstance(searcher, Searcher)


def test_lists_by_falling_score_without_repeats(searcher: Searcher, passages: tuple[Passage, ...]) -> None:
    known = {(passage.id, passage.text): passage for passage in passages}
    for topk in (1, 3, len(passages), 50):
        found = searcher.retrieve(QUERIES, topk)
        assert len(found) == len(QUERIES)
        for hits in found:
            assert len(hits) <= min(topk, len(passages))
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            assert len({hit.passage.id for hit in hits}) == len(hits)
            for hit in hits:
                assert known[hit.passage.id, hit.passage.text].title == hit.passage.title
                assert type(hit.score) is float
    assert any(found), "nothing was found at all"


def test_equal_passages_keep_their_order(searcher: Searcher) -> None:
    (hits,) = searcher.retrieve(["same words here"], 7)
    twins = [hit for hit in hits if hit.passage.title == "Twin"]
    assert [hit.passage.id for hit in twins] == ["3", "4"]
    assert twins[0].score == pytest.approx(twins[1].score)


def test_nothing_to_look_for_finds_nothing(searcher: Searcher) -> None:
    assert searcher.retrieve([], 3) == []
    assert searcher.retrieve(["", " \n"], 3) == [[], []]
    assert searcher.retrieve(["fox"], 0) == [[]]
    mixed = searcher.retrieve(["", "fox", " "], 1)
    assert [len(hits) for hits in mixed] == [0, 1, 0]


def test_threads_and_copies_get_the_same_answers(searcher: Searcher) -> None:
    expected = answers(searcher)
    with ThreadPoolExecutor(16) as pool:
        assert all(found == expected for found in pool.map(lambda _: answers(searcher), range(32)))
    assert answers(pickle.loads(pickle.dumps(searcher))) == expected


def test_over_http_the_answers_are_the_embedded_ones(
    passages: tuple[Passage, ...], search_server: Callable[..., Any]
) -> None:
    pytest.importorskip("tenacity", reason="the extra 'search' is not installed")
    from mempo_env.envs.search_client import HttpSearcher, SearchClientSettings

    index = Bm25Index.in_memory(passages)
    client = HttpSearcher(SearchClientSettings(search_server(lambda: index).url))
    for topk in (1, 4, 10):
        assert client.retrieve(QUERIES, topk) == index.retrieve(QUERIES, topk)
    assert index.search(QUERIES, 4) == [[hit.passage for hit in hits] for hits in index.retrieve(QUERIES, 4)]
