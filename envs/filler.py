"""Sentences that say nothing anybody asks about: the hay in which the facts of a document or a ledger lie.

Invariant: no word of a filler sentence is a name, a relation, a value or a ledger's word, so that no fact can be read
from one; a sentence is a function of the generator alone and has ``SENTENCE_TOKENS`` tokens of the regex counter.
"""

from __future__ import annotations

import numpy as np

ADJECTIVES = ("old", "quiet", "narrow", "broken", "distant", "heavy", "empty", "gentle", "wooden", "rusty")
NOUNS = (
    "road",
    "mill",
    "harbour",
    "garden",
    "tower",
    "bridge",
    "market",
    "field",
    "forest",
    "valley",
    "cellar",
    "barn",
)
VERBS = ("stands", "leans", "waits", "rests", "hangs", "sinks")
PLACES = ("near", "behind", "above", "below", "beside", "beyond")
ARTICLE = "the"
SENTENCE_TOKENS = 8
_WORDS = (ADJECTIVES, NOUNS, VERBS, PLACES, NOUNS)


def filler_vocabulary() -> list[str]:
    """Every word of the sentences, none twice."""
    return [ARTICLE, *ADJECTIVES, *NOUNS, *VERBS, *PLACES]


def filler_sentences(rng: np.random.Generator, count: int) -> list[str]:
    """Draws sentences.

    Args:
        rng: Decides them.
        count: How many.

    Returns:
        The sentences, full stop included.

    >>> filler_sentences(np.random.default_rng(0), 1)
    ['the wooden field rests behind the garden.']
    """
    drawn = rng.integers([len(words) for words in _WORDS], size=(count, len(_WORDS)))
    sentences = []
    for row in drawn:
        adjective, noun, verb, place, other = (words[int(at)] for words, at in zip(_WORDS, row, strict=True))
        sentences.append(f"{ARTICLE} {adjective} {noun} {verb} {place} {ARTICLE} {other}.")
    return sentences
