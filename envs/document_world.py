"""Documents drawn afresh: facts of the closed world, each in a sentence of its own, spread over chunks of filler.

A fact is three words that stand together, ``Mira plays chess.``. Some facts change: an earlier sentence gives another
value, and the later one counts. Every fact may be asked about; how many there are is a setting, so that all of them fit
into a memory.

Invariants:
    * a document is a function of the generator it is drawn from, the number of goals, the config and the split;
    * it holds exactly ``facts`` (person, relation) pairs, and the last sentence about a pair states its value;
    * a chunk is no longer than ``chunk_tokens`` by the regex counter;
    * the splits are disjoint, by the same rule as the closed world's (``split_of``).
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mempo_env.errors import UserError, unknown_name
from mempo_env.records import Passage, Task

from .closed_world import (
    ATTRIBUTES,
    HIGHEST_SCORE,
    LOWEST_SCORE,
    NAMES,
    NUMBER_RELATION,
    PERSON_RELATIONS,
    SPLITS,
    ClosedWorldConfig,
    Facts,
    draw_fact,
    draw_goal,
    split_of,
)
from .filler import SENTENCE_TOKENS, filler_sentences
from .reading import NOTE_SEPARATOR, check_probability, check_whole, size_range

MIN_CHUNKS, MAX_CHUNKS = 4, 400
MAX_FACTS = 60
"""Most facts of a document: sixty notes of three words and a separator are 239 tokens of the regex counter."""
FACT_TOKENS = 4
MAX_CHUNK_TOKENS = 8192
RELATIONS = (*ATTRIBUTES, NUMBER_RELATION, *PERSON_RELATIONS)
FACT = re.compile(rf"(?<!\w)({'|'.join(NAMES)}) ({'|'.join(RELATIONS)}) (\w+)(?!\w)")
"""A fact as a sentence states it: person, relation, value."""
_MAX_DRAWS = 10_000


@dataclass(frozen=True)
class DocumentConfig:
    """How documents are drawn.

    Attributes:
        chunks: Fewest and most chunks, 4 to 400.
        chunk_tokens: Longest chunk, by the regex counter.
        facts: (person, relation) pairs of a document, 2 to 60.
        updates: Probability that a fact has an earlier sentence with another value.
        two_hop_share: Probability that a goal is two-hop.
        comparison_share: Probability that a goal is a comparison; the rest is one-hop.
        score_step: Distance between possible scores.

    Raises:
        UserError: A value is out of its range, or the facts have no room in the shortest document.
    """

    chunks: tuple[int, int] = (8, 8)
    chunk_tokens: int = 64
    facts: int = 32
    updates: float = 0.25
    two_hop_share: float = 0.25
    comparison_share: float = 0.1
    score_step: int = 1

    def __post_init__(self) -> None:
        size_range("chunks", self.chunks, MIN_CHUNKS, MAX_CHUNKS)
        check_whole("chunk_tokens", self.chunk_tokens, SENTENCE_TOKENS, MAX_CHUNK_TOKENS)
        check_whole("facts", self.facts, 2, MAX_FACTS)
        check_whole("score_step", self.score_step, 1, HIGHEST_SCORE - LOWEST_SCORE)
        for name in ("updates", "two_hop_share", "comparison_share"):
            check_probability(name, getattr(self, name))
        room = self.chunks[0] * self.chunk_capacity
        statements = self.facts * (2 if self.updates else 1)
        if statements > room:
            raise UserError(
                f"{self.facts} facts need room for {statements} sentences, but {self.chunks[0]} chunks of "
                f"{self.chunk_tokens} tokens hold {room}; raise chunks or chunk_tokens, or lower facts"
            )
        _ = self.world  # checks that the shares leave room for each other

    @property
    def chunk_capacity(self) -> int:
        """Sentences with a fact that a chunk has room for."""
        return self.chunk_tokens // FACT_TOKENS

    @functools.cached_property
    def world(self) -> ClosedWorldConfig:
        """How goals and values are drawn."""
        return ClosedWorldConfig(
            two_hop_share=self.two_hop_share, comparison_share=self.comparison_share, score_step=self.score_step
        )

    def check_goals(self, goals: int) -> None:
        """Refuses more goals than the facts can bear.

        Raises:
            UserError: They cannot.
        """
        if 2 * goals > self.facts:
            raise UserError(
                f"facts={self.facts} is too few for {goals} goals, which may rest on two facts each; choose "
                f"facts={2 * goals} or more, or fewer goals"
            )

    @property
    def longest_notes(self) -> str:
        """A memory of all facts, written with long words."""
        values = (*NAMES, *(value for values in ATTRIBUTES.values() for value in values))
        note = " ".join(max(words, key=len) for words in (NAMES, RELATIONS, values))
        return NOTE_SEPARATOR.join([note] * self.facts)


def sample_document_task(rng: np.random.Generator, goals: int, config: DocumentConfig, split: str = "train") -> Task:
    """Draws a document and what is asked about it.

    Args:
        rng: Source of the task's seed; exactly one number is taken from it.
        goals: Number of goals.
        config: How to draw.
        split: ``train``, ``dev`` or ``test``.

    Returns:
        A task whose ``passages`` are the chunks in order.

    Raises:
        UserError: The split is unknown, or there are too few facts for the goals.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    config.check_goals(goals)
    stream = np.random.default_rng([SPLITS.index(split), int(rng.integers(2**63))])
    for _ in range(_MAX_DRAWS):
        names = [NAMES[int(index)] for index in stream.permutation(len(NAMES))]
        facts: Facts = {}
        people = iter(names)
        drawn = [draw_goal(stream, people, facts, config.world) for _ in range(goals)]
        if split_of(drawn) == split:
            break
    else:
        raise UserError(f"no {split} task in {_MAX_DRAWS} draws; raise the number of goals")
    _add_facts(stream, facts, names, config)
    chunks = int(stream.integers(config.chunks[0], config.chunks[1] + 1))
    statements = _statements(stream, facts, config)
    placed = _place(stream, len(statements), chunks, config.chunk_capacity)
    texts = _write(stream, [[statements[at] for at in chunk] for chunk in placed], config)
    passages = tuple(Passage(f"chunk-{number}", "", text) for number, text in enumerate(texts, start=1))
    # The last sentence of a pair is the one that counts: later chunks overwrite earlier ones.
    chunk_of = {statements[at]: f"chunk-{number}" for number, chunk in enumerate(placed, start=1) for at in chunk}
    asked = tuple(
        replace(goal, evidence=tuple(replace(each, passage_id=chunk_of[f"{each.note}."]) for each in goal.evidence))
        for goal in drawn
    )
    digest = hashlib.sha256(repr((asked, passages)).encode()).hexdigest()[:16]
    return Task(goals=asked, id=f"doc-{digest}", passages=passages)


def _add_facts(stream: np.random.Generator, facts: Facts, names: Sequence[str], config: DocumentConfig) -> None:
    """Adds facts of asked people and of strangers until there are as many as wanted."""
    pool = names[: min(len(names), len(facts) + max(2, config.facts // 2))]
    relations = (*config.world.value_relations, *PERSON_RELATIONS)
    missing = config.facts - sum(map(len, facts.values()))
    while missing:
        person, relation = pool[int(stream.integers(len(pool)))], relations[int(stream.integers(len(relations)))]
        if relation not in facts.get(person, {}):
            facts.setdefault(person, {})[relation] = _value(stream, person, relation, names, config)
            missing -= 1


def _value(
    stream: np.random.Generator, person: str, relation: str, names: Sequence[str], config: DocumentConfig
) -> str:
    if relation not in PERSON_RELATIONS:
        return draw_fact(stream, config.world, relation)[1]
    others = [name for name in names if name != person]
    return others[int(stream.integers(len(others)))]


def _statements(stream: np.random.Generator, facts: Facts, config: DocumentConfig) -> list[str]:
    """The document's sentences with facts, in order; an overtaken one stands before the one that counts."""
    versions: list[list[str]] = []
    for person, known in facts.items():
        for relation, value in known.items():
            versions.append([f"{person} {relation} {value}."])
            if stream.random() < config.updates:
                old = value
                while old == value:
                    old = _value(stream, person, relation, NAMES, config)
                versions[-1].insert(0, f"{person} {relation} {old}.")
    order = [pair for pair, sentences in enumerate(versions) for _ in sentences]
    return [versions[order[int(at)]].pop(0) for at in stream.permutation(len(order))]


def _place(stream: np.random.Generator, statements: int, chunks: int, capacity: int) -> list[list[int]]:
    """Which sentences stand in which chunk: spread evenly at random, in order, none too full."""
    slots = np.sort(stream.choice(chunks * capacity, size=statements, replace=False)) // capacity
    placed: list[list[int]] = [[] for _ in range(chunks)]
    for at, chunk in enumerate(slots):
        placed[int(chunk)].append(at)
    return placed


def _write(stream: np.random.Generator, chunks: Sequence[Sequence[str]], config: DocumentConfig) -> list[str]:
    """Fills chunks up with filler, between which the facts keep their order."""
    counts = [(config.chunk_tokens - FACT_TOKENS * len(facts)) // SENTENCE_TOKENS for facts in chunks]
    filler = iter(filler_sentences(stream, sum(counts)))
    texts = []
    for facts, count in zip(chunks, counts, strict=True):
        told = iter(facts)
        is_fact = np.zeros(len(facts) + count, dtype=bool)
        is_fact[stream.choice(len(is_fact), size=len(facts), replace=False)] = True
        texts.append(" ".join(next(told) if fact else next(filler) for fact in is_fact))
    return texts
