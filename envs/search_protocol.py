r"""The wire format of search over HTTP, as Search-R1 published it (Jin et al., arXiv 2503.09516).

``POST /retrieve`` with ``{"queries": [..], "topk": 3, "return_scores": true}`` answers
``{"result": [[{"document": {"id": "7", "contents": "\"Title\"\nText"}, "score": 1.5}, ..], ..]}``, one list per query;
without scores the inner entries are the documents themselves. ``topk`` may be missing or null: the server's default.

Invariant: what ``write_contents`` writes, ``read_contents`` reads back, up to white space in the title.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mempo_env.errors import InfrastructureError, UserError
from mempo_env.records import Passage

from .searcher import ScoredPassage


class BadRequestError(Exception):
    """A request the server refuses; ``status`` is the HTTP status, the message one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class MalformedResponseError(InfrastructureError):
    """A server answered with something that is not the protocol."""


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for.

    Attributes:
        max_queries: Most queries; Search-R1 sends a whole training batch in one request.
        max_query_characters: Longest query.
        max_topk: Most passages per query.
        default_topk: Passages per query where the request does not say; 3 as in Search-R1.
        max_body_bytes: Largest body.
    """

    max_queries: int = 512
    max_query_characters: int = 2_000
    max_topk: int = 100
    default_topk: int = 3
    max_body_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if self.default_topk > self.max_topk:
            raise UserError(f"default_topk={self.default_topk} cannot exceed max_topk={self.max_topk}")


@dataclass(frozen=True)
class SearchRequest:
    """A request that was understood."""

    queries: tuple[str, ...]
    topk: int
    return_scores: bool


def read_request(body: bytes, limits: RequestLimits) -> SearchRequest:
    """Understands a request's body.

    Args:
        body: JSON.
        limits: What is let through.

    Returns:
        The request.

    Raises:
        BadRequestError: 400 for what is no JSON object, 422 for fields that are wrong or out of range.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequestError(400, "the body is not valid JSON") from None
    if not isinstance(data, dict):
        raise BadRequestError(400, 'the body must be a JSON object, {"queries": [..], "topk": 3}')
    if unknown := sorted(set(data) - {"queries", "topk", "return_scores"}):
        raise BadRequestError(422, f"unknown field {_shown(unknown[0])}; known: queries, topk, return_scores")
    queries = data.get("queries")
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise BadRequestError(422, "'queries' must be a list of strings")
    if not queries:
        raise BadRequestError(422, "'queries' is empty")
    if len(queries) > limits.max_queries:
        raise BadRequestError(422, f"{len(queries)} queries; at most {limits.max_queries} a request")
    if (longest := max(map(len, queries))) > limits.max_query_characters:
        raise BadRequestError(422, f"a query of {longest} characters; at most {limits.max_query_characters}")
    topk = data.get("topk")
    if topk is None:
        topk = limits.default_topk
    if isinstance(topk, bool) or not isinstance(topk, int):
        raise BadRequestError(422, "'topk' must be a whole number")
    if not 1 <= topk <= limits.max_topk:
        raise BadRequestError(422, f"'topk' must lie between 1 and {limits.max_topk}")
    return_scores = data.get("return_scores", False)
    if not isinstance(return_scores, bool):
        raise BadRequestError(422, "'return_scores' must be true or false")
    return SearchRequest(tuple(queries), topk, return_scores)


def write_response(found: Sequence[Sequence[ScoredPassage]], *, return_scores: bool) -> bytes:
    """The answer to a request, as JSON in ASCII: a passage may hold lone surrogates, which UTF-8 cannot."""

    def entry(hit: ScoredPassage) -> dict[str, Any]:
        document = {"id": hit.passage.id, "contents": write_contents(hit.passage)}
        return {"document": document, "score": hit.score} if return_scores else document

    return json.dumps({"result": [[entry(hit) for hit in hits] for hits in found]}).encode("ascii")


def read_response(body: bytes, n_queries: int, topk: int) -> list[list[ScoredPassage]]:
    """Understands a server's answer with scores.

    Args:
        body: JSON.
        n_queries: How many queries were asked.
        topk: How many passages each of them may have.

    Returns:
        Per query its passages. An id that is missing, as from Search-R1's own BM25 server, is empty; a number is its
        digits.

    Raises:
        MalformedResponseError: The body is not that.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedResponseError("the search server's answer is not valid JSON") from None
    result = data.get("result") if isinstance(data, dict) else None
    if not isinstance(result, list) or not all(isinstance(hits, list) for hits in result):
        raise MalformedResponseError("the search server's answer has no 'result' with a list per query")
    if len(result) != n_queries:
        raise MalformedResponseError(f"the search server answered {len(result)} queries of {n_queries}")
    if any(len(hits) > topk for hits in result):
        raise MalformedResponseError(f"the search server gave more than topk={topk} passages for a query")
    return [[_hit(hit) for hit in hits] for hits in result]


def write_contents(passage: Passage) -> str:
    """Title and text as one string; the title takes one line."""
    return f'"{" ".join(passage.title.split())}"\n{passage.text}'


def read_contents(contents: str) -> tuple[str, str]:
    r"""Title and text of one string; where there is only one line and it is not in quotes, it is text.

    >>> read_contents('"The \"Title\""\nfirst\nsecond'), read_contents("only text"), read_contents("Title\ntext")
    (('The "Title"', 'first\nsecond'), ('', 'only text'), ('Title', 'text'))
    """
    first, newline, rest = contents.partition("\n")
    if len(first) >= 2 and first[0] == first[-1] == '"':
        return first[1:-1], rest
    return (first, rest) if newline else ("", first)


def _hit(hit: object) -> ScoredPassage:
    document, score = (hit.get("document"), hit.get("score")) if isinstance(hit, dict) else (None, None)
    if not isinstance(document, dict):
        raise MalformedResponseError("a passage of the search server's answer has no 'document'")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise MalformedResponseError("a passage of the search server's answer has no 'score' that is a number")
    name, contents = document.get("id", ""), document.get("contents")
    if isinstance(name, bool) or not isinstance(name, str | int) or not isinstance(contents, str):
        raise MalformedResponseError("a document of the search server's answer has no 'id' and 'contents'")
    title, text = read_contents(contents)
    return ScoredPassage(Passage(str(name), title, text), float(score))


def _shown(name: str) -> str:
    """A name for a message: short, on one line, in ASCII."""
    return ascii(name if len(name) <= 40 else f"{name[:40]}..")
