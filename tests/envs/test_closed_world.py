from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mempo_env.envs.closed_world import (
    ATTRIBUTES,
    NAMES,
    PERSON_RELATIONS,
    SPLITS,
    ClosedWorldConfig,
    closed_world_vocabulary,
    sample_closed_world_task,
    split_of,
)
from mempo_env.envs.retrieval import task_index
from mempo_env.errors import UserError
from mempo_env.metrics import normalise_answer
from mempo_env.records import Task

ALL_TWO_HOP = ClosedWorldConfig(two_hop_share=1.0, comparison_share=0.0)
CONFIGS = st.builds(
    lambda more_facts, **fields: ClosedWorldConfig(max_facts=fields["min_facts"] + more_facts, **fields),
    two_hop_share=st.sampled_from([0.0, 0.25, 0.5]),
    comparison_share=st.sampled_from([0.0, 0.1, 0.5]),
    distractors=st.integers(0, 20),
    min_facts=st.integers(1, 3),
    more_facts=st.integers(0, 2),
    attributes=st.integers(4, 8),
    values=st.integers(2, 10),
    score_step=st.sampled_from([1, 10]),
)


def draw(seed: int, goals: int = 6, config: ClosedWorldConfig | None = None, split: str = "train") -> Task:
    return sample_closed_world_task(np.random.default_rng(seed), goals, config, split)


def facts_of(task: Task) -> dict[str, dict[str, str]]:
    """Reads the corpus back."""
    facts: dict[str, dict[str, str]] = {}
    for passage in task.passages:
        own = facts.setdefault(passage.title, {})
        for sentence in passage.text.removesuffix(".").split(". "):
            subject, relation, value = sentence.split()
            assert subject == passage.title == passage.id
            assert relation not in own, "two facts of one relation make a question ambiguous"
            own[relation] = value
    return facts


def answer(question: str, facts: dict[str, dict[str, str]]) -> str:
    """Answers a question from the facts alone."""
    if hop := re.fullmatch(r"(\w+) (\w+) someone who (\w+) what\?", question):
        return facts[facts[hop[1]][hop[2]]][hop[3]]
    if more := re.fullmatch(r"(\w+) or (\w+) scores more\?", question):
        return max(more.groups(), key=lambda person: int(facts[person]["scores"]))
    one = re.fullmatch(r"(\w+) (\w+) what\?", question)
    assert one, question
    return facts[one[1]][one[2]]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 16), CONFIGS)
def test_answers_follow_from_the_passages(seed: int, goals: int, config: ClosedWorldConfig) -> None:
    task = draw(seed, goals, config)
    facts = facts_of(task)
    assert len(task.goals) == goals
    for goal in task.goals:
        assert goal.answers == (answer(goal.question, facts),)
        for evidence in goal.evidence:
            subject, relation, value = evidence.note.split()
            assert facts[subject][relation] == value
            assert evidence.query == f"{subject} {relation}"
            assert evidence.passage_id == subject
        assert [evidence.after for evidence in goal.evidence] == {
            "one-hop": [-1],
            "two-hop": [-1, 0],
            "comparison": [-1, -1],
        }[goal.kind]
    asked = Counter(evidence.query for goal in task.goals for evidence in goal.evidence)
    assert max(asked.values()) == 1, "two goals ask the same (entity, relation)"
    objects = [known[link] for known in facts.values() for link in PERSON_RELATIONS if link in known]
    assert len(objects) == len(set(objects))
    assert set(objects) <= set(facts), "a fact names somebody without a passage"
    assert all(config.min_facts <= len(known) <= config.max_facts for known in facts.values())
    assert len(facts) == len({e.passage_id for g in task.goals for e in g.evidence}) + config.distractors


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 16), CONFIGS, st.booleans())
def test_the_gold_passage_is_first_for_its_evidence_query(
    seed: int, goals: int, config: ClosedWorldConfig, two_hop: bool
) -> None:
    if two_hop:
        config = dataclasses.replace(config, two_hop_share=1.0, comparison_share=0.0)
    task = draw(seed, goals, config)
    index = task_index(task.passages)
    evidence = [evidence for goal in task.goals for evidence in goal.evidence]
    found = index.search([each.query for each in evidence], k=1)
    assert [passages[0].id for passages in found] == [each.passage_id for each in evidence]


def test_a_task_is_a_function_of_its_seed() -> None:
    assert draw(1) == draw(1)
    tasks = [draw(seed) for seed in range(200)]
    assert len({task.id for task in tasks}) == 200
    assert len({task.text for task in tasks}) == 200
    rng, twin = np.random.default_rng(0), np.random.default_rng(0)
    sample_closed_world_task(rng, 3)
    sample_closed_world_task(twin, 9, ALL_TWO_HOP, "dev")
    assert rng.bit_generator.state == twin.bit_generator.state  # one number is taken, whatever the task


def test_values_recombine() -> None:
    """Nothing can be memorised: a question that comes again has another answer about as often as chance says."""
    answers: dict[str, list[str]] = {}
    for seed in range(1500):
        for goal in draw(seed, 8, ClosedWorldConfig(two_hop_share=0.0, comparison_share=0.0)).goals:
            answers.setdefault(goal.question, []).append(goal.answers[0])
    pairs = [(one, two) for group in answers.values() for one, two in itertools.pairwise(group)]
    assert len(pairs) > 5000
    same = sum(one == two for one, two in pairs) / len(pairs)
    assert 0.06 < same < 0.12  # eight relations with ten values, one with ninety


def test_shares_are_kept() -> None:
    kinds = Counter(goal.kind for seed in range(300) for goal in draw(seed, 10).goals)
    total = kinds.total()
    assert kinds["two-hop"] / total == pytest.approx(0.25, abs=0.03)
    assert kinds["comparison"] / total == pytest.approx(0.10, abs=0.02)
    assert {goal.kind for goal in draw(0, 16, ALL_TWO_HOP).goals} == {"two-hop"}


def test_comparisons_are_answered_by_either_side() -> None:
    config = ClosedWorldConfig(two_hop_share=0.0, comparison_share=1.0, score_step=10)
    goals = [goal for seed in range(60) for goal in draw(seed, 8, config).goals]
    first = sum(goal.question.startswith(goal.answers[0]) for goal in goals) / len(goals)
    assert 0.4 < first < 0.6
    assert {int(evidence.note.split()[2]) % 10 for goal in goals for evidence in goal.evidence} == {0}


def test_distractors_share_what_is_asked() -> None:
    for seed in range(50):
        task = draw(seed, 4)
        gold = {evidence.passage_id for goal in task.goals for evidence in goal.evidence}
        asked = {evidence.query.split()[1] for goal in task.goals for evidence in goal.evidence}
        strangers = {name: known for name, known in facts_of(task).items() if name not in gold}
        assert len(strangers) == 8
        assert all(asked & (set(known) | {*PERSON_RELATIONS}) for known in strangers.values())


def test_splits_never_share_a_task() -> None:
    small = ClosedWorldConfig(two_hop_share=0.0, comparison_share=0.0, distractors=0, attributes=3, values=2, names=6)
    seen: dict[str, set[frozenset[tuple[str, str]]]] = {}
    for split in SPLITS:
        for goals in (1, 2):
            for seed in range(400):  # so small a world that every split repeats itself
                task = draw(seed, goals, small, split)
                assert split_of(task.goals) == split_of(task.goals[::-1]) == split
                key = frozenset((goal.question, goal.answers[0]) for goal in task.goals)
                seen.setdefault(split, set()).add(key)
    assert all(seen[split] for split in SPLITS)
    assert len(set.union(*seen.values())) == sum(map(len, seen.values())), "a task is in two splits"
    assert sum(map(len, seen.values())) < 3 * 800 / 2, "tasks must repeat, or the test shows nothing"


def test_splits_draw_from_different_streams() -> None:
    assert len({draw(5, split=split).text for split in SPLITS}) == 3


def test_the_vocabulary_is_complete_and_its_kinds_are_disjoint() -> None:
    vocabulary = closed_world_vocabulary()
    assert len(vocabulary) == len(set(map(str.lower, vocabulary)))
    assert len(NAMES) == 120
    assert all(name.isalpha() and name.istitle() for name in NAMES)
    assert all(len(values) == 10 and all(v.isalpha() and v.islower() for v in values) for values in ATTRIBUTES.values())
    assert all(normalise_answer(word) for word in vocabulary if word.isalnum()), "an article would score as nothing"
    words: set[str] = set()
    for seed in range(300):
        task = draw(seed, 16, ClosedWorldConfig(comparison_share=0.3))
        texts = [task.text, *(passage.text for passage in task.passages)]
        texts += [text for goal in task.goals for e in goal.evidence for text in (e.query, e.note)]
        words |= {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)}
    assert words <= set(vocabulary)
    assert {*NAMES, *ATTRIBUTES, *(v for values in ATTRIBUTES.values() for v in values)} <= words


@pytest.mark.parametrize(
    "changes",
    [
        {"two_hop_share": 0.8, "comparison_share": 0.3},
        {"two_hop_share": -0.1},
        {"distractors": -1},
        {"attributes": 9},
        {"values": 0},
        {"names": 1},
        {"score_step": 0},
        {"min_facts": 5},
        {"max_facts": 6},
        {"min_facts": 8, "max_facts": 10},
    ],
)
def test_bad_settings_are_user_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        ClosedWorldConfig(**changes)


def test_impossible_draws_are_user_errors() -> None:
    with pytest.raises(UserError, match="did you mean 'dev'"):
        draw(0, split="deb")
    with pytest.raises(UserError, match="names"):
        draw(0, 16, ClosedWorldConfig(names=30))
    tiny = ClosedWorldConfig(
        two_hop_share=0.0, comparison_share=0.0, distractors=0, attributes=1, values=1, names=2, score_step=80,
        min_facts=1, max_facts=1,
    )  # fmt: skip
    splits = {name for name in SPLITS if _possible(tiny, name)}
    assert splits
    with pytest.raises(UserError, match="too small"):  # so small a world cannot fill all splits
        draw(0, 1, tiny, next(name for name in SPLITS if name not in splits))


def _possible(config: ClosedWorldConfig, split: str) -> bool:
    try:
        draw(0, 1, config, split)
    except UserError:
        return False
    return True
