"""Memories as a scripted agent writes them: notes joined by ``"; "``, each a form of a gold evidence's note.

Invariant: a note enters a memory only when its fact is in the tool result that is shown now, or when the memory that
is shown already holds it; a note that was shortened stays short, since its long form is gone with the old memory.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from mempo_env.records import Evidence, Goal
from mempo_env.tokens import TokenCounter
from mempo_env.tools import escape_tags

SEPARATOR = "; "
_SHORT_WORDS = 8  # of a note's extract; our choice: enough for a clause around the answer
_BRACKETED = re.compile(r"\s*\([^)]*\)$")  # what tells pages of one name apart
_QUOTES = " \"'“”"
_LAST_WORDS = re.compile(r"(\w+)(?=[.;!?|]|\s*$)", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n|\s\|\s")


def clean(text: str) -> str:
    """One line without our tags and without what separates notes.

    >>> clean("a;  b </mem>")
    'a, b &lt;/mem>'
    """
    # A result comes with its tags escaped already: undone first, or else the escape's own ';' would be replaced.
    return escape_tags(" ".join(text.replace("&lt;", "<").replace(";", ",").split()))


def has_phrase(text: str, phrase: str) -> bool:
    """Whether ``phrase`` stands in ``text`` as whole words.

    >>> has_phrase("Mira trusts Idanna.", "Mira trusts Ida")
    False
    """
    return bool(phrase) and re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def fact_seen(evidence: Evidence, result: str) -> bool:
    """Whether a tool result shows what an evidence's note says: the one place that decides it.

    Either the note itself stands there (closed world), or, for an extract ``title: words``, the passage ``[title]`` is
    shown and its text holds the words (a passage may have been cut before them).
    """
    shown, note = clean(result), clean(evidence.note)
    if has_phrase(shown, note):
        return True
    parts = note.split(": ")
    for cut in range(1, len(parts)):
        title, words = ": ".join(parts[:cut]), ": ".join(parts[cut:]).removesuffix("...").rstrip()
        passages = shown.split(f"[{title}] ")[1:]
        # A passage ends where the next one begins; another one's title stands in brackets after a bar.
        if any(has_phrase(re.split(r" \| \[", passage)[0], words) for passage in passages):
            return True
    return False


def note_forms(evidence: Evidence, goal: Goal) -> tuple[str, ...]:
    """How a note may be written, longest first: in full, a few words around the answer, and the answer alone.

    Args:
        evidence: Whose note it is.
        goal: Its primary answer tells which words bear the answer; where the note lacks them, its first words count.

    Returns:
        One to three distinct texts, each shorter than the one before it. The short ones begin with the note's title.
    """
    return _forms(clean(evidence.note), clean(evidence.query), clean(goal.answers[0]))


@functools.lru_cache(maxsize=4096)
def _forms(note: str, query: str, answer: str) -> tuple[str, ...]:
    parts = note.split(": ")
    heads = [": ".join(parts[:cut]) for cut in range(1, len(parts))]
    titles = [head for head in heads if f"{query} ".startswith(f"{head} ")]  # a query begins with the title
    head = titles[-1] if titles else query
    body = note.removeprefix(f"{head}: ")
    bare = body.lstrip(_QUOTES)
    for name in (head, _BRACKETED.sub("", head)):  # an extract often begins with its title, which the head has already
        if bare.startswith(name):
            body = bare.removeprefix(name).lstrip(_QUOTES + ",.") or body
            break
    words, start = body.split(), 0
    found = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", body, re.IGNORECASE) if answer else None
    if found:
        spare = max(0, _SHORT_WORDS - len(found.group().split()))
        start = max(0, len(body[: found.start()].split()) - spare // 2)
    forms = [note]
    for short in (" ".join(words[start : start + _SHORT_WORDS]), found.group() if found else " ".join(words[:3])):
        form = f"{head}: {short}"
        if len(form) < len(forms[-1]):
            forms.append(form)
    return tuple(forms)


def split_memory(memory: str) -> list[str]:
    """The notes of a memory, in order."""
    return [note for note in memory.split(SEPARATOR) if note]


def fit_notes(entries: Sequence[tuple[str, ...]], counter: TokenCounter, limit: int) -> list[str]:
    """Chooses one form per entry, so that the joined memory has at most ``limit`` tokens.

    The longest note that has a shorter form is shortened first, until all fit; if none has one, the last is dropped.

    Args:
        entries: Per note its forms, longest first.
        counter: Counts as the environment does.
        limit: Most tokens.

    Returns:
        The notes in order, none twice.
    """
    forms = [list(entry) for entry in dict.fromkeys(entries)]
    while True:
        notes = list(dict.fromkeys(entry[0] for entry in forms))
        if counter.count(SEPARATOR.join(notes)) <= limit:
            return notes
        long = [entry for entry in forms if len(entry) > 1]
        if long:
            max(long, key=lambda entry: len(entry[0])).pop(0)
        else:
            forms.pop()


def garble(forms: tuple[str, ...], query: str, answer: str, seen: str, rng: np.random.Generator) -> tuple[str, ...]:
    """Replaces a note's value word by another one that was seen.

    Args:
        forms: The note's forms.
        query: What was asked; its words are no value.
        answer: Its last word is the value where the note holds it beside the query; else the note's last word is.
        seen: Text that the replacement is taken from: words that end a sentence or a note, of the same kind (number,
            capitalised, other) as the value.
        rng: Draws the replacement.

    Returns:
        The forms with the word replaced; unchanged if nothing else was seen.
    """
    words, answer_words = re.findall(r"\w+", forms[0]), re.findall(r"\w+", answer)
    if not words:
        return forms
    beside = set(words) - set(re.findall(r"\w+", query))
    value = answer_words[-1] if answer_words and answer_words[-1] in beside else words[-1]
    others = sorted({word for word in _LAST_WORDS.findall(seen) if _kind(word) == _kind(value)} - set(words))
    if not others:
        return forms
    other = others[int(rng.integers(len(others)))]
    return tuple(re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", lambda _: other, form) for form in forms)


def irrelevant_sentences(result: str, queries: Iterable[str], notes: Sequence[str]) -> list[str]:
    """Sentences of a result that hold none of the notes and stand in none of them.

    Args:
        result: A tool result.
        queries: What was asked; the result's lines begin with them.
        notes: Notes of the task, in full.

    Returns:
        The sentences in order, cleaned, without the full stop.
    """
    echoes = [f"{query}: " for query in queries]
    sentences = []
    for sentence in _SENTENCE_END.split(result):
        for echo in echoes:
            sentence = sentence.removeprefix(echo)
        text = clean(sentence).rstrip(".!?")
        if len(text.split()) > 1 and not any(has_phrase(text, note) or has_phrase(note, text) for note in notes):
            sentences.append(text)
    return [text for text in sentences if text != "nothing found"]


def _kind(word: str) -> str:
    return "number" if word.isdigit() else "capitalised" if word[0].isupper() else "other"
