"""How the environment counts and cuts tokens.

Invariant: ``count(truncate(text, n)) <= n``, and a text that fits is returned unchanged. The counter's name is part of
the environment's arguments, so that a replay counts alike.
"""

from __future__ import annotations

import functools
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
    # The classes are disjoint, so their order is free: what is frequent in English comes first.
    _KINDS = r"[A-Za-z\u00c0-\u024f]{1,12}|[^\w\s]|\d{1,3}|[^\W\d_]|_|[^\S ]| {2,16}"
    _TOKEN = re.compile(_KINDS)

    def count(self, text: str) -> int:
        """Number of tokens of ``text``."""
        return len(self._TOKEN.findall(text))

    def truncate(self, text: str, n: int) -> str:
        """The longest prefix of ``text`` that has at most ``n`` tokens."""
        if len(text) <= n:  # a token has one character at least
            return text
        start = _first_tokens(self._KINDS, n).match(text)
        end = start.end() if start else 0
        return text if self._TOKEN.search(text, end) is None else text[:end]


@functools.lru_cache(maxsize=64)
def _first_tokens(kinds: str, n: int) -> re.Pattern[str]:
    """Matches as many tokens as there are, at most ``n``: one call instead of a loop, since every step cuts texts.

    A single space between two tokens is none itself. Nothing is ever taken back (``+``): no other cut is possible.
    """
    return re.compile(rf"(?:(?: (?! ))?+(?:{kinds})){{0,{n}}}+")
