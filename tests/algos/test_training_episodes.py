"""Kept training episodes: the numbers are the learner's own, and keeping them changes nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mempo_env.agents.episodes_io import load_episodes
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.memory_reward import AnswerScorer, joint_answer
from mempo_env.algos.mempo import MemPO
from mempo_env.algos.noting_scorer import NotingScorer, goals_of_tokens
from mempo_env.algos.training_episodes import EpisodeKeeper, token_texts
from mempo_env.records import Group

INSTRUCTIONS = "Answer all."
ANSWERS = st.text(st.characters(exclude_characters=";", exclude_categories=["Cs"]), min_size=1, max_size=6)


@pytest.mark.parametrize("scope", ["joint", "per_goal"])
def test_goal_quality_makes_up_the_quality(make_policy: Any, shared_groups: tuple[Group, ...], scope: Any) -> None:
    policy, episode = make_policy(), shared_groups[0][0]
    scorer = NotingScorer(policy, INSTRUCTIONS, scope=scope)
    items = [(episode, turn.memory) for turn in episode.turns if turn.memory_written]
    quality = scorer.memory_quality(items)
    assert torch.equal(quality, AnswerScorer(policy, INSTRUCTIONS, scope=scope).memory_quality(items))
    (noted,) = scorer.annotated([episode])
    written = [turn for turn in noted.turns if turn.memory_written]
    assert [turn.info["quality"] for turn in written] == quality.tolist()
    codec, goals = policy.codec, episode.task.goals
    joint = codec.encode_text(joint_answer(episode.task))
    owners = goals_of_tokens(codec.token_bytes(joint), [goal.answers[0] for goal in goals])
    for turn in written:
        parts: Any = turn.info["goal_quality"]
        assert len(parts) == len(goals)
        if scope == "joint":
            logs = [owners.count(k) * math.log(part) for k, part in enumerate(parts)]
            assert math.exp(sum(logs) / len(owners)) == pytest.approx(turn.info["quality"])
        else:
            assert sum(parts) / len(parts) == pytest.approx(turn.info["quality"])
    scorer.forget()
    assert scorer.annotated([episode]) == (episode,)


@given(st.lists(ANSWERS, min_size=1, max_size=4), st.data())
def test_every_token_has_a_goal_however_the_answer_is_cut(answers: list[str], data: st.DataObject) -> None:
    text = "; ".join(answers).encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=6))) if len(text) > 1 else []
    tokens = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    owners = goals_of_tokens(tokens, answers)
    assert len(owners) == len(tokens)
    assert owners == sorted(owners)
    assert owners[0] == 0
    assert max(owners) < len(answers)
    by_byte = goals_of_tokens([text[i : i + 1] for i in range(len(text))], answers)
    assert owners == [by_byte[start] for start in [0, *cuts]]


def test_tokens_that_spell_something_else_have_no_goal() -> None:
    assert goals_of_tokens([b" red", b"; ant"], ["red", "ant"]) == [0, 0]  # a space in front is a tokenizer's own
    assert goals_of_tokens([b"RED", b"; ant"], ["red", "ant"]) == []


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.integers(1, 3))
def test_token_texts_join_to_the_output(text: str, width: int) -> None:
    data = text.encode()
    texts = token_texts([data[i : i + width] for i in range(0, len(data), width)])
    assert "".join(texts) == text


@pytest.mark.parametrize("algorithm", [MemPO, GRPO])
def test_kept_episodes_hold_what_the_learner_computed(
    make_policy: Any, shared_groups: tuple[Group, ...], tmp_path: Path, algorithm: Any
) -> None:
    policy = make_policy()
    scorer = NotingScorer(policy, INSTRUCTIONS)
    keeper = EpisodeKeeper(tmp_path / "training", count=5, every=10, steps=25, scorer=scorer)
    assert [step for step in range(25) if keeper.due(step)] == [0, 9, 19, 24]
    groups = [shared_groups[0], (shared_groups[1][0].replace(error="lost"), *shared_groups[1][1:])]
    advantages = algorithm().advantages(groups, scorer)
    keeper.keep(1, groups, advantages)
    assert not (tmp_path / "training").exists()
    advantages = algorithm().advantages(groups, scorer)
    keeper.keep(9, groups, advantages)
    assert [path.name for path in (tmp_path / "training").iterdir()] == ["step-000010.episodes.jsonl.gz"]
    kept = load_episodes(tmp_path / "training" / "step-000010.episodes.jsonl.gz")
    assert [(e.group_id, e.rollout_id) for e in kept] == [(e.group_id, e.rollout_id) for g in groups for e in g][:5]
    plain = AnswerScorer(policy, INSTRUCTIONS)
    for n, episode in enumerate(kept):
        if episode.error is not None:
            assert all("advantages" not in turn.info for turn in episode.turns)
            continue
        for t, turn in enumerate(episode.turns):
            info: Any = turn.info
            assert "".join(info["tokens"]) == turn.text
            assert len(info["tokens"]) == len(info["advantages"]) == turn.n_output
            wanted = advantages.tokens[n // 4, n % 4, t]
            torch.testing.assert_close(torch.tensor(info["advantages"]), wanted, rtol=1e-5, atol=0)
            if turn.memory_written:
                assert info["quality"] == pytest.approx(plain.memory_quality([(episode, turn.memory)]).item())


def test_references_are_not_noted(make_policy: Any, shared_groups: tuple[Group, ...]) -> None:
    class Reference:
        def quality(self, groups: Any, episodes: int, score: Any) -> list[torch.Tensor]:
            return [score([(groups[0][0], groups[0][0].turns[-1].memory)])]

    scorer = NotingScorer(make_policy(), INSTRUCTIONS, reference=Reference())  # type: ignore[arg-type]
    scorer.reference_quality(list(shared_groups), 1)
    assert not scorer.knows(shared_groups[0][0], shared_groups[0][0].turns[-1].memory)
