from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempo_env.envs.search_protocol import (
    BadRequestError,
    MalformedResponseError,
    RequestLimits,
    SearchRequest,
    read_contents,
    read_request,
    read_response,
    write_contents,
    write_response,
)
from mempo_env.envs.searcher import ScoredPassage
from mempo_env.errors import InfrastructureError, UserError
from mempo_env.records import Passage

LIMITS = RequestLimits(max_queries=3, max_query_characters=10, max_topk=5, default_topk=2)
TEXT = st.text(st.characters(), max_size=30)  # lone surrogates included


@given(st.builds(Passage, TEXT, TEXT, TEXT))
def test_contents_are_read_back(passage: Passage) -> None:
    title, text = read_contents(write_contents(passage))
    assert (title, text) == (" ".join(passage.title.split()), passage.text)


@given(st.lists(st.lists(st.builds(ScoredPassage, st.builds(Passage, TEXT, TEXT, TEXT), st.floats(0, 9)), max_size=3)))
def test_answers_are_read_back(found: list[list[ScoredPassage]]) -> None:
    body = write_response(found, return_scores=True)
    for ours, theirs in zip(read_response(body, len(found), 3), found, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine.score, mine.passage.id, mine.passage.text) == (
                other.score,
                other.passage.id,
                other.passage.text,
            )
            assert mine.passage.title == " ".join(other.passage.title.split())


def test_the_published_shape() -> None:
    """By hand, after Search-R1's server: a hit with its score, or the document alone."""
    found = [[ScoredPassage(Passage("7", "Title", "Text"), 1.5)], []]
    document = {"id": "7", "contents": '"Title"\nText'}
    assert json.loads(write_response(found, return_scores=True)) == {
        "result": [[{"document": document, "score": 1.5}], []]
    }
    assert json.loads(write_response(found, return_scores=False)) == {"result": [[document], []]}


def test_answers_of_other_servers() -> None:
    """Search-R1's BM25 server gives no id and fields of its own; others give numbers."""
    documents = [
        {"title": "T", "text": "x", "contents": '"T"\nx'},
        {"id": 12, "contents": "T\nx", "url": "http://x"},
        {"id": "a", "contents": "no title"},
    ]
    body = json.dumps({"result": [[{"document": document, "score": 1} for document in documents]], "took": 3}).encode()
    (hits,) = read_response(body, 1, 3)
    assert [hit.passage for hit in hits] == [
        Passage("", "T", "x"),
        Passage("12", "T", "x"),
        Passage("a", "", "no title"),
    ]


GOOD: dict[str, Any] = {"document": {"id": "1", "contents": "x"}, "score": 1.0}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>502</html>",
        b'{"result": [[',
        b"[" * 100_000,
        b"9" * 5000,
        b"\xff\xfe",
        [],
        None,
        {},
        {"result": None},
        {"result": {}},
        {"result": [None]},
        {"result": []},
        {"result": [[], []]},
        {"result": [[GOOD, GOOD]]},
        {"result": [["x"]]},
        {"result": [[{"id": "1", "contents": "x"}]]},
        {"result": [[GOOD | {"document": "x"}]]},
        {"result": [[GOOD | {"score": "1"}]]},
        {"result": [[GOOD | {"score": True}]]},
        {"result": [[GOOD | {"score": None}]]},
        b'{"result": [[{"document": {"id": "1", "contents": "x"}, "score": NaN}]]}',
        {"result": [[GOOD | {"document": {"id": "1"}}]]},
        {"result": [[GOOD | {"document": {"id": None, "contents": "x"}}]]},
        {"result": [[GOOD | {"document": {"id": True, "contents": "x"}}]]},
        {"result": [[GOOD | {"document": {"id": "1", "contents": ["x"]}}]]},
    ],
)
def test_what_is_not_the_protocol_is_a_typed_fault(answer: object) -> None:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    with pytest.raises(MalformedResponseError) as caught:
        read_response(body, 1, 1)
    assert isinstance(caught.value, InfrastructureError)
    assert "\n" not in str(caught.value)


def test_requests_by_hand() -> None:
    assert read_request(b'{"queries": ["a", ""], "topk": 5, "return_scores": true}', LIMITS) == SearchRequest(
        ("a", ""), 5, True
    )
    assert read_request(b'{"queries": ["a"]}', LIMITS) == SearchRequest(("a",), 2, False)
    assert read_request(b'{"queries": ["a"], "topk": null}', LIMITS).topk == 2


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"\xff", 400, "JSON"),
        (b"[" * 100_000, 400, "JSON"),
        (b"9" * 5000, 400, "JSON"),
        (b'["a"]', 400, "object"),
        (b"null", 400, "object"),
        (b"{}", 422, "queries"),
        (b'{"queries": "a"}', 422, "list of strings"),
        (b'{"queries": ["a", 1]}', 422, "list of strings"),
        (b'{"queries": []}', 422, "empty"),
        (b'{"queries": ["a", "a", "a", "a"]}', 422, "at most 3"),
        (b'{"queries": ["aaaaaaaaaaa"]}', 422, "at most 10"),
        (b'{"queries": ["a"], "topk": 0}', 422, "between 1 and 5"),
        (b'{"queries": ["a"], "topk": 6}', 422, "between 1 and 5"),
        (b'{"queries": ["a"], "topk": true}', 422, "whole number"),
        (b'{"queries": ["a"], "topk": 1.0}', 422, "whole number"),
        (b'{"queries": ["a"], "topk": "3"}', 422, "whole number"),
        (b'{"queries": ["a"], "return_scores": 1}', 422, "true or false"),
        (b'{"queries": ["a"], "top_k": 3}', 422, "unknown field 'top_k'"),
        (b'{"queries": ["a"], "' + b"x" * 999 + b'": 3}', 422, "unknown field"),
        (b'{"queries": ["a"], "\\ud800\\n": 3}', 422, "unknown field"),
    ],
)
def test_bad_requests_have_a_status_and_a_line(body: bytes, status: int, said: str) -> None:
    with pytest.raises(BadRequestError, match=said) as caught:
        read_request(body, LIMITS)
    assert caught.value.status == status
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 120


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_body_is_a_request_or_refused(body: bytes) -> None:
    try:
        assert read_request(body, LIMITS).queries
    except BadRequestError:
        return


def test_limits_are_checked() -> None:
    with pytest.raises(UserError, match="max_topk=0"):
        RequestLimits(max_topk=0)
    with pytest.raises(UserError, match="default_topk=3"):
        RequestLimits(max_topk=2)
