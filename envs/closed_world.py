"""The closed world: people and relations drawn afresh for every task, so that nothing about them can be memorised.

A fact is three words that stand together, ``Mira plays chess.``; a passage is one person's facts; a task brings its own
corpus of passages. Asked people have further facts of their own, and strangers have facts with the asked relations.

Invariants:
    * a task is a function of the generator it is drawn from, the number of goals and the config alone;
    * every person has at most one fact per relation, so every question has exactly one answer;
    * nobody is asked about in two goals of a task, so no two goals ask the same (entity, relation);
    * each person is the object of at most one fact, and passages differ by two facts at most: so a name is never more
      common than a relation that two passages share, and under BM25 the passage about a person comes first for every
      query of that person and one of the person's relations;
    * the splits are disjoint (see ``split_of``): no set of (question, answer) pairs appears in two of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mempo_env.errors import UserError, unknown_name
from mempo_env.records import Evidence, Goal, Passage, Task

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# One word each, and none of them a word of the relations, values or questions.
NAMES: tuple[str, ...] = _split(
    """
    Ada Akira Alba Aldo Alma Amir Anders Anika Anton Arlo Astrid Basil Beata Benno Bianca Boris Bruno Calla
    Carmen Cedric Chloe Clara Conrad Cyrus Dagny Damian Daria Delia Dmitri Dora Edgar Edith Eliza Elmer Emil
    Enzo Erika Esther Ezra Fabio Farah Felix Fiona Flora Freya Gemma Gilda Gordon Greta Gustav Hanna Harold
    Heidi Helga Hiro Hugo Ida Igor Ines Ingrid Irina Isaac Ivan Jasper Joanna Jonas Judith Kamal Karin Kenji
    Kira Klaus Lara Leila Leon Linus Lorenz Lotte Lucia Ludwig Magnus Maren Marta Mateo Milan Mira Mona Nadia
    Nils Nora Oleg Olga Oscar Otto Pablo Petra Priya Quentin Ralf Ramona Rashid Renata Rita Roman Rufus Sanna
    Selma Sergei Silas Sonja Stella Tamar Tariq Thea Tomas Ulrich Ursula Vera Viktor Wanda
    """
)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "plays": _split("chess tennis golf rugby poker darts hockey squash cricket checkers"),
    "owns": _split("fox cat dog parrot pony goat rabbit turtle hamster falcon"),
    "drinks": _split("tea coffee milk juice cola cider cocoa water lemonade soda"),
    "likes": _split("teal red blue green yellow pink purple white black grey"),
    "studies": _split("botany physics history law music algebra geology optics logic anatomy"),
    "speaks": _split("latin greek danish hindi welsh turkish arabic czech korean dutch"),
    "visits": _split("oslo rome cairo lima paris tokyo delhi quito dublin athens"),
    "eats": _split("rice bread soup pasta salad cheese beans fish apples stew"),
}
PERSON_RELATIONS = ("trusts", "knows", "admires")
NUMBER_RELATION = "scores"
LOWEST_SCORE, HIGHEST_SCORE = 10, 99
QUESTION_WORDS = ("what", "someone", "who", "or", "more")
RESULT_WORDS = ("nothing", "found")
PUNCTUATION = ("?", ".", ";", ":", "|")

_HELD_OUT_BUCKETS: dict[int, Split] = {0: "dev", 1: "test"}  # of ten; the other eight are train
_MAX_DRAWS = 10_000

Facts = dict[str, dict[str, str]]
"""Person to relation to value."""


@dataclass(frozen=True)
class ClosedWorldConfig:
    """How worlds and goals are drawn.

    Attributes:
        two_hop_share: Probability that a goal is two-hop.
        comparison_share: Probability that a goal is a comparison; the rest is one-hop.
        distractors: People in the corpus nobody asks about; their facts share the asked relations.
        min_facts: Fewest facts of a person (an asked fact always counts).
        max_facts: Most facts of a person; at most ``min_facts + 2``.
        attributes: How many of the eight attribute relations are in use.
        values: How many of each attribute relation's ten values are in use.
        names: How many of the 120 names are in use.
        score_step: Distance between possible scores: 1 allows 10, 11, .., 99; 10 allows 10, 20, .., 90.

    Raises:
        UserError: A value is out of its range.
    """

    two_hop_share: float = 0.25
    comparison_share: float = 0.1
    distractors: int = 8
    min_facts: int = 3
    max_facts: int = 4
    attributes: int = len(ATTRIBUTES)
    values: int = 10
    names: int = len(NAMES)
    score_step: int = 1

    def __post_init__(self) -> None:
        shares = (self.two_hop_share, self.comparison_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise UserError(f"two_hop_share and comparison_share must be 0 or more and sum to 1 at most, not {shares}")
        for field, low, high in (
            ("distractors", 0, len(NAMES) - 2),
            ("attributes", 1, len(ATTRIBUTES)),
            ("values", 1, 10),
            ("names", 2, len(NAMES)),
            ("score_step", 1, HIGHEST_SCORE - LOWEST_SCORE),
            ("min_facts", 1, self.max_facts),
            # Attributes and the score alone can always fill a passage; the distance to min_facts: see the module.
            ("max_facts", 1, min(self.attributes + 1, self.min_facts + 2)),
        ):
            if not low <= getattr(self, field) <= high:
                raise UserError(f"closed world: {field} must be from {low} to {high}, not {getattr(self, field)}")

    @property
    def scores(self) -> range:
        """The possible scores."""
        return range(LOWEST_SCORE, HIGHEST_SCORE + 1, self.score_step)

    @property
    def value_relations(self) -> tuple[str, ...]:
        """The relations a question can end in: the attributes in use and the score."""
        return (*list(ATTRIBUTES)[: self.attributes], NUMBER_RELATION)


def closed_world_vocabulary() -> list[str]:
    """Every word and sign that tasks, passages, evidence and search results of the closed world are made of.

    Returns:
        Names, relations, values, numbers, question and result words, punctuation; no entry twice.
    """
    values = [value for group in ATTRIBUTES.values() for value in group]
    numbers = [str(score) for score in range(LOWEST_SCORE, HIGHEST_SCORE + 1)]
    relations = [*ATTRIBUTES, *PERSON_RELATIONS, NUMBER_RELATION]
    return [*NAMES, *relations, *values, *numbers, *QUESTION_WORDS, *RESULT_WORDS, *PUNCTUATION]


def split_of(goals: Sequence[Goal]) -> Split:
    """The split a set of goals belongs to, whatever their order and whatever world they are asked in.

    A hash of the (question, answer) pairs decides: two tenths of all sets are held out, one for dev and one for test.

    Args:
        goals: The goals of a task.

    Returns:
        The only split that may hold such a task.
    """
    pairs = sorted(f"{goal.question}\t{goal.answers[0]}" for goal in goals)
    bucket = int.from_bytes(hashlib.sha256("\n".join(pairs).encode()).digest()[:8], "big") % 10
    return _HELD_OUT_BUCKETS.get(bucket, "train")


def sample_closed_world_task(
    rng: np.random.Generator, goals: int, config: ClosedWorldConfig | None = None, split: str = "train"
) -> Task:
    """Draws a world and what is asked about it.

    The draw has a stream of its own, seeded by the split and one number from ``rng``; goals that belong to another
    split by ``split_of`` are drawn again from that stream.

    Args:
        rng: Source of the task's seed; exactly one number is taken from it.
        goals: Number of goals.
        config: How to draw; by default ``ClosedWorldConfig()``.
        split: ``train``, ``dev`` or ``test``.

    Returns:
        A task whose ``passages`` are its corpus.

    Raises:
        UserError: The split is unknown, the world has too few names, or it is too small for the split to exist.
    """
    config = config or ClosedWorldConfig()
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if (most := 2 * goals + config.distractors) > config.names:
        raise UserError(
            f"{goals} goals and {config.distractors} distractors may need {most} names, but names={config.names}; "
            "ask fewer goals, or change distractors or names"
        )
    stream = np.random.default_rng([SPLITS.index(split), int(rng.integers(2**63))])
    for _ in range(_MAX_DRAWS):
        people = iter([NAMES[int(index)] for index in stream.permutation(config.names)])
        facts: Facts = {}
        drawn = tuple(draw_goal(stream, people, facts, config) for _ in range(goals))
        if split_of(drawn) == split:
            break
    else:
        raise UserError(f"no {split} task in {_MAX_DRAWS} draws; the world is too small: raise names or values")
    strangers = [next(people) for _ in range(config.distractors)]
    _fill(stream, facts, strangers, config)
    passages = tuple(_write_passage(stream, person, facts[person]) for person in _shuffled(stream, list(facts)))
    digest = hashlib.sha256(repr((drawn, passages)).encode()).hexdigest()[:16]
    return Task(goals=drawn, id=f"cw-{digest}", passages=passages)


def draw_goal(stream: np.random.Generator, people: Iterator[str], facts: Facts, config: ClosedWorldConfig) -> Goal:
    """Draws one goal about people nobody asked about yet, and records the facts it rests on.

    Args:
        stream: Source of every draw.
        people: Names that stand in no fact yet; one or two are taken.
        facts: Is given the one or two facts of the goal.
        config: Shares of the kinds, and how values are drawn.

    Returns:
        The goal, with its evidence.
    """
    kind = float(stream.random())
    subject = next(people)
    if kind < config.two_hop_share:
        link = PERSON_RELATIONS[int(stream.integers(len(PERSON_RELATIONS)))]
        bridge, (relation, value) = next(people), draw_fact(stream, config)
        facts[subject], facts[bridge] = {link: bridge}, {relation: value}
        return Goal(
            question=f"{subject} {link} someone who {relation} what?",
            answers=(value,),
            kind="two-hop",
            evidence=(_evidence(subject, link, bridge), _evidence(bridge, relation, value, after=0)),
            id=f"{subject}/{link}/{relation}",
        )
    if kind < config.two_hop_share + config.comparison_share:
        other = next(people)
        first, second = (str(score) for score in stream.choice(config.scores, size=2, replace=False))
        facts[subject], facts[other] = {NUMBER_RELATION: first}, {NUMBER_RELATION: second}
        return Goal(
            question=f"{subject} or {other} {NUMBER_RELATION} more?",
            answers=(subject if int(first) > int(second) else other,),
            kind="comparison",
            evidence=(_evidence(subject, NUMBER_RELATION, first), _evidence(other, NUMBER_RELATION, second)),
            id=f"{subject}/{other}/{NUMBER_RELATION}",
        )
    relation, value = draw_fact(stream, config)
    facts[subject] = {relation: value}
    return Goal(
        question=f"{subject} {relation} what?",
        answers=(value,),
        kind="one-hop",
        evidence=(_evidence(subject, relation, value),),
        id=f"{subject}/{relation}",
    )


def _evidence(subject: str, relation: str, value: str, after: int = -1) -> Evidence:
    return Evidence(
        query=f"{subject} {relation}", note=f"{subject} {relation} {value}", passage_id=subject, after=after
    )


def draw_fact(stream: np.random.Generator, config: ClosedWorldConfig, relation: str | None = None) -> tuple[str, str]:
    """Draws a relation (unless given) that ends in a value, and the value."""
    if relation is None:
        relation = config.value_relations[int(stream.integers(len(config.value_relations)))]
    if relation == NUMBER_RELATION:
        return relation, str(config.scores[int(stream.integers(len(config.scores)))])
    return relation, ATTRIBUTES[relation][int(stream.integers(config.values))]


def _fill(stream: np.random.Generator, facts: Facts, strangers: Sequence[str], config: ClosedWorldConfig) -> None:
    """Adds strangers with the asked relations, then fills everyone up to their number of facts."""
    asked = [relation for known in facts.values() for relation in known]
    people = [*facts, *strangers]
    taken = {known[link] for known in facts.values() for link in PERSON_RELATIONS if link in known}

    def add(person: str, relation: str) -> None:
        known = facts.setdefault(person, {})
        if relation not in PERSON_RELATIONS:
            known[relation] = draw_fact(stream, config, relation)[1]
            return
        free = [other for other in people if other != person and other not in taken]
        if free:  # else everyone is somebody's already, and the person gets another relation
            known[relation] = free[int(stream.integers(len(free)))]
            taken.add(known[relation])

    for stranger in strangers:
        add(stranger, asked[int(stream.integers(len(asked)))])
    for person in people:
        wanted = int(stream.integers(config.min_facts, config.max_facts + 1))
        for relation in _shuffled(stream, [*config.value_relations, *PERSON_RELATIONS]):
            known = facts.setdefault(person, {})
            if len(known) >= wanted:
                break
            if relation not in known:
                add(person, relation)


def _write_passage(stream: np.random.Generator, person: str, known: dict[str, str]) -> Passage:
    sentences = [f"{person} {relation} {value}." for relation, value in known.items()]
    return Passage(id=person, title=person, text=" ".join(_shuffled(stream, sentences)))


def _shuffled(stream: np.random.Generator, items: Sequence[str]) -> list[str]:
    return [items[int(index)] for index in stream.permutation(len(items))]
