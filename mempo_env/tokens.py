"""How the environment counts and cuts tokens.

Invariant: ``count(truncate(text, n)) <= n``, and a text that fits is returned unchanged. The counter's name is part of
the environment's arguments, so that a replay counts alike.
"""

from __future__ import annotations

import itertools
import re
from typing import Protocol, runtime_checkable


@runtime_checkable
class TokenCounter(Protocol):
    """Counts tokens; a policy's tokenizer stands behind it through an adapter in ``mempo_env.agents``."""

    name: str

    def count(self, text: str) -> int:
        """Number of tokens of ``text``."""
        ...

    def truncate(self, text: str, n: int) -> str:
        """The longest prefix of ``text`` that has at most ``n`` tokens."""
        ...


class RegexTokenCounter:
    """Latin words, numbers by the digit triple, single letters of other scripts, single other signs, long white space.

    For English close to what a byte-pair tokenizer counts, for other scripts an upper estimate.

    >>> RegexTokenCounter().count("Mira plays chess; 12345")
    6
    >>> RegexTokenCounter().truncate("Mira plays chess", 2)
    'Mira plays'
    """

    name = "regex"
    _TOKEN = re.compile(r"[A-Za-z\u00c0-\u024f]{1,12}|\d{1,3}|[^\W\d_]|[^\w\s]|_|[^\S ]| {2,16}")

    def count(self, text: str) -> int:
        """Number of tokens of ``text``."""
        return len(self._TOKEN.findall(text))

    def truncate(self, text: str, n: int) -> str:
        """The longest prefix of ``text`` that has at most ``n`` tokens."""
        if len(text) <= n:  # a token has one character at least
            return text
        # The last token that fits and the first that does not; the others are skipped without a loop in Python.
        ends = [match.end() for match in itertools.islice(self._TOKEN.finditer(text), max(n - 1, 0), n + 1)]
        fits = len(ends) <= (1 if n else 0)
        return text if fits else text[: ends[0] if n else 0]
