"""The search tool: a call carries several queries, the result has one line for each.

Invariant: a line begins with its query, since an agent without history has to read from the result alone what it asked;
line breaks inside queries and passages become spaces, so that lines and queries correspond one to one.
"""

from __future__ import annotations

from typing import Any

from mempo_env.actions import encode_text
from mempo_env.errors import InfrastructureError
from mempo_env.records import Passage
from mempo_env.tokens import TokenCounter
from mempo_env.tools import ToolArgumentError, ToolSpec

from .searcher import Searcher

MAX_QUERY_CHARACTERS = 400
NOTHING_FOUND = "nothing found"
MAX_ECHO_TOKENS = 12
"""Most tokens of a query that its result repeats. An agent without history must be told what it asked, but whatever a
result repeats of a call is carried over beside the memory: five long queries would hold more than the memory may."""


class SearchTool:
    """Finds passages with whatever searcher the environment set.

    Args:
        queries_per_call: Most queries one call may carry.
        topk: Passages shown per query.
        max_passage_tokens: Longest text shown of a passage.
        token_counter: Counts and cuts the passage text.
        titles: Whether to show ``[title]`` before a passage; the closed world's passages name their subject themselves.
    """

    def __init__(
        self, *, queries_per_call: int, topk: int, max_passage_tokens: int, token_counter: TokenCounter, titles: bool
    ) -> None:
        self.index: Searcher | None = None
        self._queries_per_call = queries_per_call
        self._topk = topk
        self._max_passage_tokens = max_passage_tokens
        self._counter = token_counter
        self._titles = titles
        self.spec = ToolSpec(
            name="search",
            description=f"Looks passages up by keywords; shows the best {topk} per query.",
            parameters={
                "type": "object",
                "properties": {
                    "queries": {
                        "type": "array",
                        "items": {"type": "string", "minLength": 1, "maxLength": MAX_QUERY_CHARACTERS},
                        "minItems": 1,
                        "maxItems": queries_per_call,
                    }
                },
                "required": ["queries"],
            },
        )

    def call(self, arguments: dict[str, Any]) -> str:
        """Searches.

        Args:
            arguments: ``{"queries": [..]}``.

        Returns:
            A line ``query: passage | passage`` per query, ``query: nothing found`` where there is none.

        Raises:
            ToolArgumentError: The queries are missing, of a wrong type, empty, too long or too many.
            InfrastructureError: No corpus was set, or the searcher failed for good.
        """
        queries = self._read(arguments)
        if self.index is None:
            raise InfrastructureError("the search tool has no corpus; reset the environment first")
        found = self.index.retrieve(queries, self._topk)
        return "\n".join(
            f"{self._counter.truncate(query, MAX_ECHO_TOKENS)}: "
            + (" | ".join(self._show(hit.passage) for hit in hits) or NOTHING_FOUND)
            for query, hits in zip(queries, found, strict=True)
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"index": None}  # the environment finds its corpus again; no copy of it travels

    def _read(self, arguments: dict[str, Any]) -> list[str]:
        if set(arguments) - {"queries"}:  # their names are not repeated: they would be carried over beside the memory
            raise ToolArgumentError("search takes queries and nothing else.")
        queries = arguments.get("queries")
        if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
            raise ToolArgumentError('search takes {"queries": ["..", ".."]}, a list of strings.')
        cleaned = [" ".join(encode_text(query).decode().split()) for query in queries]
        if not cleaned or not all(cleaned):
            raise ToolArgumentError("search needs at least one query, and none may be empty.")
        if len(cleaned) > self._queries_per_call:
            raise ToolArgumentError(f"search takes at most {self._queries_per_call} queries a call.")
        if max(map(len, cleaned)) > MAX_QUERY_CHARACTERS:
            raise ToolArgumentError(f"a query may have at most {MAX_QUERY_CHARACTERS} characters.")
        return cleaned

    def _show(self, passage: Passage) -> str:
        text = " ".join(passage.text.split())
        shown = self._counter.truncate(text, self._max_passage_tokens)
        if shown != text:
            shown += " ..."
        return f"[{' '.join(passage.title.split())}] {shown}" if self._titles else shown
