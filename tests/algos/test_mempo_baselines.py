"""Each baseline of MemPO by hand, the pairs that cancel, and the frozen reference against its definition."""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.rollout import EnvPool, EpisodeSpec, rollout
from mempo_env.algos.advantages import standardised_memory_advantages
from mempo_env.algos.algorithm_config import Baseline, MemoryCredit, MemPOConfig, Normalisation
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.frozen_reference import FrozenReference
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.memory_baselines import GroupMemories, MemoryScores, comparable_memories, score_memories
from mempo_env.algos.memory_reward import AnswerScorer
from mempo_env.algos.mempo import MemPO
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.update import Updater
from mempo_env.errors import UserError
from mempo_env.records import Group

INSTRUCTIONS = "Answer all."
QUALITY = {"a": 0.2, "b": 0.4, "c": 0.8, "d": 0.1, "e": 0.3, "": 0.05}
HISTORY = {(0, 0): 0.1, (0, 1): 0.5, (1, 0): 0.2, (2, 0): 0.3, (2, 1): 0.1}


@pytest.fixture
def hand_group(small_turn: Any, small_episode: Any) -> Group:
    """Episode 0 writes a, then b and succeeds; 1 writes c; 2 writes d, then e. Qualities: see QUALITY."""
    return (
        small_episode(0, [small_turn("a"), small_turn("b", 1.0, before="a")]),
        small_episode(1, [small_turn("c", 0.0)]),
        small_episode(2, [small_turn("d"), small_turn("e", 0.0, before="d")]),
    )


def scores(baseline: Any, groups: list[Group], scorer: Any) -> list[MemoryScores]:
    return score_memories(comparable_memories(groups), MemPOConfig(baseline=baseline), scorer)


BY_HAND = {
    # the others' mean: (.8+.1+.3)/3 twice, (.2+.4+.1+.3)/4, (.2+.4+.8)/3 twice
    "reference": [0.4, 0.4, 0.25, 1.4 / 3, 1.4 / 3],
    # the sum of all five is 1.8; each leaves itself out
    "leave_one_out": [1.6 / 4, 1.4 / 4, 1.0 / 4, 1.7 / 4, 1.5 / 4],
    # turn 0 has a, c and d, turn 1 has b and e
    "same_turn": [0.9 / 2, 0.3, 0.3 / 2, 1.0 / 2, 0.4],
    "frozen_reference": [0.375] * 5,
    "history": [0.1, 0.5, 0.2, 0.3, 0.1],
    "old_memory": [0.05, 0.2, 0.05, 0.05, 0.1],
    "empty_memory": [0.05] * 5,
}


@pytest.mark.parametrize("baseline", typing.get_args(Baseline))
def test_baseline_by_hand(baseline: Any, hand_group: Group, fake_scorer: Any) -> None:
    (found,) = scores(baseline, [hand_group], fake_scorer(QUALITY, HISTORY))
    assert found.quality.tolist() == [QUALITY[memory] for memory in "abcde"]
    assert found.baseline.tolist() == pytest.approx(BY_HAND[baseline], abs=1e-12)
    assert found.has_baseline.all()


def test_each_rollout_and_turn_counts_once(shared_groups: Any) -> None:
    """Of valid episodes with a memory; an error leaves its group, and the group if nothing is left to compare."""
    broken = (shared_groups[0][0], *(episode.replace(error="down") for episode in shared_groups[0][1:]))
    partly = (*shared_groups[1][:2], shared_groups[1][2].replace(error="down"), *shared_groups[1][3:])
    found = comparable_memories([broken, partly, shared_groups[2]])
    assert [group.index for group in found] == [1, 2]
    for group in found:
        written = [
            (i, t)
            for i, episode in enumerate(group.group)
            for t, turn in enumerate(episode.turns)
            if turn.memory_written and episode.error is None
        ]
        assert list(group.where) == written
        assert len(set(written)) == len(written) > 4


@pytest.mark.parametrize("baseline", typing.get_args(Baseline))
def test_groups_do_not_mix(baseline: Any, shared_groups: Any, fake_scorer: Any) -> None:
    together = scores(baseline, list(shared_groups), fake_scorer())
    for group, found in zip(shared_groups, together, strict=True):
        (alone,) = scores(baseline, [group], fake_scorer())
        assert torch.equal(found.baseline, alone.baseline)
        assert torch.equal(found.quality, alone.quality)


@pytest.mark.parametrize("baseline", ["reference", "leave_one_out", "frozen_reference", "same_turn"])
def test_equal_qualities_leave_exactly_nothing(baseline: Any, hand_group: Group, fake_scorer: Any) -> None:
    """A mean of three or of four times 0.1 is not 0.1 in floating point."""
    scorer = fake_scorer(dict.fromkeys(QUALITY, 0.1))
    scorer.references = [0.1] * 3
    (found,) = scores(baseline, [hand_group], scorer)
    assert torch.equal(found.quality, found.baseline)
    assert sum([0.1] * 3) / 3 != 0.1


def test_a_group_without_reference_memories_has_no_baseline(hand_group: Group, fake_scorer: Any) -> None:
    scorer = fake_scorer(QUALITY)
    scorer.references = []
    algorithm = MemPO(MemPOConfig(baseline="frozen_reference"))
    metrics = algorithm.advantages([hand_group], scorer).metrics
    assert metrics["memory/without_baseline"] == 5
    assert metrics["memory/advantage_abs"] == metrics["memory/credited"] == 0
    assert "memory/baseline" not in metrics


def test_a_turn_that_no_other_episode_had_earns_nothing(small_turn: Any, small_episode: Any, fake_scorer: Any) -> None:
    long = small_episode(0, [small_turn("a"), small_turn("b", 1.0, before="a")])
    group = (long, small_episode(1, [small_turn("c", 0.0)]))
    (found,) = scores("same_turn", [group], fake_scorer(QUALITY))
    assert found.has_baseline.tolist() == [True, False, True]
    (memories,) = comparable_memories([group])
    credit = MemPO(MemPOConfig(baseline="same_turn")).memory_advantages(memories, found)
    assert credit.tolist() == pytest.approx([0.2 - 0.8, 0.0, 0.8 - 0.2])


def test_same_turn_does_not_credit_being_late(small_turn: Any, small_episode: Any, fake_scorer: Any) -> None:
    """Where later memories are better and equally good at each turn, ``reference`` credits the turn, this nothing."""
    group = tuple(small_episode(i, [small_turn("a"), small_turn("b", 1.0, before="a")]) for i in range(3))
    (memories,) = comparable_memories([group])
    credit = {}
    for baseline in ("reference", "same_turn"):
        config = MemPOConfig(baseline=baseline)
        (found,) = score_memories([memories], config, fake_scorer(QUALITY))
        credit[baseline] = MemPO(config).memory_advantages(memories, found).tolist()
    assert credit["reference"] == pytest.approx([-0.1, 0.1] * 3)
    assert credit["same_turn"] == pytest.approx([0.0] * 6)


def test_what_the_guard_touched_is_counted(hand_group: Group, fake_scorer: Any) -> None:
    failed = tuple(episode.replace(outcome=0.0) for episode in hand_group)
    metrics = MemPO().advantages([hand_group, failed, failed], fake_scorer(QUALITY)).metrics
    assert metrics["memory/groups_guarded"] == pytest.approx(2 / 3)
    assert metrics["memory/scored"] == 15
    guarded = MemPO().advantages([failed], fake_scorer(QUALITY)).metrics
    assert guarded["memory/credited"] == 1 / 5, "only c is above its baseline"
    unguarded = MemPO(MemPOConfig(credit="all", baseline="old_memory")).advantages([failed], fake_scorer(QUALITY))
    assert unguarded.metrics["memory/groups_guarded"] == 0
    assert unguarded.metrics["memory/credited"] == 1


def test_the_guard_looks_at_the_outcome_not_at_other_rewards(
    small_turn: Any, small_episode: Any, fake_scorer: Any
) -> None:
    """Where all failed and format penalties differ, A^T is not 0: it stays, and A^M is guarded beside it."""
    turns = {0: small_turn("a", -0.1), 1: small_turn("c"), 2: small_turn("d", -0.2)}
    group = tuple(small_episode(i, [turn]).replace(outcome=0.0) for i, turn in turns.items())
    advantages = MemPO().advantages([group], fake_scorer(QUALITY))
    plain = GRPO().advantages([group], fake_scorer(QUALITY)).tokens
    assert [value[2].item() for value in plain.values()] == pytest.approx([0.0, 1.0, -1.0], abs=1e-4)
    credit = [(value[0] - plain[key][0]).item() for key, value in advantages.tokens.items()]
    assert credit == pytest.approx([0.0, 0.8 - (0.2 + 0.1) / 2, 0.0], abs=1e-6)
    assert advantages.metrics["memory/groups_guarded"] == 1


# What is added, and what is told of it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class MedianConfig(MemPOConfig):
    """A name of a baseline without its case."""

    baseline: Literal["median"] = "median"  # type: ignore[assignment]


def test_a_name_without_its_case_is_refused_before_anything_is_scored(hand_group: Group, fake_scorer: Any) -> None:
    scorer = fake_scorer(QUALITY)
    with pytest.raises(UserError, match="baseline='median' has no case in score_memories"):
        MemPO(MedianConfig()).advantages([hand_group], scorer)
    assert not scorer.memories


@dataclass(frozen=True)
class BlendConfig(MemPOConfig):
    """A name of its own, under which no baseline of MemPO's can be asked for."""

    baseline: Literal["blend"] = "blend"  # type: ignore[assignment]


class Blend(MemPO):
    """b is half the old memory's Q and half the mean of the other memories, as docs/algorithms.md says to ask."""

    name, config_class, source = "blend", BlendConfig, "a test"

    def memory_scores(self, memories: Sequence[GroupMemories], scorer: Any) -> list[MemoryScores]:
        old = score_memories(memories, MemPOConfig(baseline="old_memory"), scorer)
        others = score_memories(memories, MemPOConfig(baseline="reference"), scorer)
        return [
            replace(one, baseline=(one.baseline + other.baseline) / 2)  # (M,)
            for one, other in zip(old, others, strict=True)
        ]


def test_baselines_of_mempo_are_blended_under_a_name_of_its_own(hand_group: Group, fake_scorer: Any) -> None:
    algorithm, scorer = Blend(BlendConfig()), fake_scorer(QUALITY)
    blended = [(one + two) / 2 for one, two in zip(BY_HAND["old_memory"], BY_HAND["reference"], strict=True)]
    (memories,) = comparable_memories([hand_group])
    (found,) = algorithm.memory_scores([memories], scorer)
    assert found.baseline.tolist() == pytest.approx(blended, abs=1e-12)
    credit = algorithm.memory_advantages(memories, found).tolist()
    assert credit == pytest.approx([QUALITY[m] - b for m, b in zip("abcde", blended, strict=True)])
    assert algorithm.advantages([hand_group], scorer).metrics["memory/baseline"] == pytest.approx(sum(blended) / 5)
    with pytest.raises(UserError, match=r"unknown BlendConfig\.baseline 'old_memory'"):
        replace(algorithm.config, baseline="old_memory")


def test_scores_of_other_lengths_than_the_memories_are_refused() -> None:
    three, have = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.bool)
    MemoryScores(three, three, have)
    for scores in ((three, three.mean(), have), (three, three, have[:1]), (three[None], three[None], have[None])):
        with pytest.raises(ValueError, match="give each memory its own"):
            MemoryScores(*scores)


def test_the_documents_count_what_there_is() -> None:
    root = Path(__file__).resolve().parents[2]
    words = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    baselines, normalisations, credits = (
        words[len(typing.get_args(choices))] for choices in (Baseline, Normalisation, MemoryCredit)
    )
    readme = " ".join((root / "README.md").read_text().split())
    assert f"{baselines.capitalize()} baselines, {normalisations} normalisations and {credits} ways of credit" in readme
    table = re.findall(r"^\| `(\w+)` \|", (root / "docs" / "algorithms.md").read_text(), re.MULTILINE)
    assert sorted(set(table) & set(typing.get_args(Baseline))) == sorted(typing.get_args(Baseline))


# Pairs that cancel ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("reference", "subtracted twice"),
        ("frozen_reference", "constant over a group and cancels"),
        ("empty_memory", "constant over a group and cancels"),
        ("leave_one_out", "cancels, but for a factor that eps sees"),
        ("same_turn", "subtracted twice"),
    ],
)
@pytest.mark.parametrize("normalisation", ["pooled", "per_turn"])
def test_pairs_that_cancel_are_refused(baseline: Any, message: str, normalisation: Any) -> None:
    with pytest.raises(UserError, match=message):
        MemPOConfig(baseline=baseline, normalisation=normalisation)
    MemPOConfig(baseline=baseline)


@pytest.mark.parametrize("normalisation", ["pooled", "per_turn"])
def test_why_they_are_refused(normalisation: Any, shared_groups: Any, fake_scorer: Any) -> None:
    """What each baseline changes of z-scored credit: constant ones 1e-15, leaving one out 1e-5, the rest something."""
    changed: dict[str, float] = {}
    for baseline in typing.get_args(Baseline):
        largest = 0.0
        for group in comparable_memories(shared_groups):
            (found,) = scores(baseline, [group.group], fake_scorer())
            with_b = standardised_memory_advantages(found.quality - found.baseline, group.turns, normalisation)
            without = standardised_memory_advantages(found.quality, group.turns, normalisation)
            assert float(without.abs().max()) > 0.5
            largest = max(largest, float((with_b - without).abs().max()))
        changed[baseline] = largest
    assert changed["empty_memory"] < 1e-14
    assert changed["frozen_reference"] < 1e-14
    assert changed["leave_one_out"] < 1e-5
    assert min(changed["history"], changed["old_memory"]) > 0.1
    if normalisation == "per_turn":
        assert changed["same_turn"] < 1e-4
    else:
        assert changed["same_turn"] > 1e-3, "as reference"
    assert changed["reference"] > 1e-3, "it does not cancel: it is refused because a mean is subtracted already"


# The frozen reference ---------------------------------------------------------------------------------------------


def moved(policy: LoraPolicy) -> LoraPolicy:
    """The policy after its adapter has gone somewhere else."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return policy


def reference_scorer(policy: LoraPolicy, envs: EnvPool, seed: int = 0) -> AnswerScorer:
    return AnswerScorer(policy, INSTRUCTIONS, reference=FrozenReference(policy, envs, seed))


@pytest.fixture
def played(make_imitated: Any, env_factory: Any) -> Any:
    """A policy, a pool of its environments, and two groups that it played."""
    policy = make_imitated()
    with EnvPool(env_factory(policy, goals=1)) as envs:
        specs = [EpisodeSpec(f"0/{index}", i, 40 + index) for index in range(2) for i in range(2)]
        episodes = rollout(policy, envs, specs, seed=0, step=0)
        yield policy, envs, [tuple(episodes[:2]), tuple(episodes[2:])]


def test_it_is_the_reference_that_plays_and_scores(played: Any) -> None:
    policy, envs, groups = played
    before = reference_scorer(policy, envs).reference_quality(groups, 3)  # the fresh adapter is the reference
    assert all(len(quality) and float(quality.min()) > 0 for quality in before)
    after = reference_scorer(moved(policy), envs).reference_quality(groups, 3)
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert policy.model.active_adapter == "policy"
    memory = groups[0][0].turns[0].memory
    own = AnswerScorer(policy, INSTRUCTIONS)
    with policy.use_adapter(None):
        by_reference = own.memory_quality([(groups[0][0], memory)])
    assert not torch.allclose(own.memory_quality([(groups[0][0], memory)]), by_reference), "the adapter must matter"


def test_it_is_by_hand_the_mean_over_its_own_episodes(played: Any) -> None:
    """Played under the reference adapter, on the group's task, and scored there."""
    policy, envs, groups = played
    moved(policy)
    policy.add_frozen_copy()  # the reference is what the policy is now
    moved(policy)
    (found, _) = reference_scorer(policy, envs).reference_quality(groups, 2)
    names: list[str] = []
    real = policy.act
    policy.act = lambda requests: names.extend(r.key.group_id for r in requests) or real(requests)  # type: ignore[func-returns-value]
    again = reference_scorer(policy, envs).reference_quality(groups[:1], 2)[0]
    assert torch.equal(found, again), "it depends on no other group of the batch"
    with policy.use_adapter("reference"):
        specs = [EpisodeSpec(names[0], k, groups[0][0].seed, groups[0][0].task) for k in range(2)]
        episodes = rollout(policy, envs, specs, seed=0, step=0)
        written = [(episode, turn.memory) for episode in episodes for turn in episode.turns if turn.memory_written]
        expected = AnswerScorer(policy, INSTRUCTIONS).memory_quality(written)
    assert torch.equal(found, expected)
    assert all(episode.task == groups[0][0].task for episode in episodes)


def test_a_task_is_played_once(played: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, envs, groups = played
    scorer = reference_scorer(policy, envs)
    first = scorer.reference_quality(groups, 2)
    calls: list[Any] = []
    monkeypatch.setattr(policy, "act", calls.append)
    assert all(torch.equal(a, b) for a, b in zip(first, scorer.reference_quality(groups, 2), strict=True))
    assert not calls
    other_seed = tuple(episode.replace(seed=41) for episode in groups[0])
    with pytest.raises(TypeError):
        scorer.reference_quality([other_seed], 2)  # not known: it would be played, by what plays no more
    assert len(calls) == 1


def test_nobody_to_play_and_no_adapter_are_refused(played: Any, make_policy: Any) -> None:
    policy, envs, groups = played
    with pytest.raises(ValueError, match="give the scorer one"):
        AnswerScorer(policy, INSTRUCTIONS).reference_quality(groups, 2)
    plain = make_policy(adapter=False)
    with pytest.raises(ValueError, match="its own reference"):
        reference_scorer(plain, envs).reference_quality(groups, 2)


def test_an_update_with_it_moves_the_policy_and_not_the_baseline(played: Any) -> None:
    policy, envs, groups = played
    algorithm = MemPO(MemPOConfig(baseline="frozen_reference", credit="all", reference_episodes=2))
    scorer = reference_scorer(policy, envs)
    advantages = algorithm.advantages(groups, scorer)
    before = scorer.reference_quality(groups, 2)
    assert advantages.metrics["memory/credited"] > 0
    assert advantages.metrics["memory/without_baseline"] == 0
    Updater(policy, algorithm, Optimizer(trainable(policy.model), OptimConfig(lr=1e-2), 1)).update(groups, advantages)
    fresh = reference_scorer(policy, envs).reference_quality(groups, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, fresh, strict=True))
    again = algorithm.advantages(groups, scorer)
    assert again.metrics["memory/quality"] != advantages.metrics["memory/quality"]
    assert again.metrics["memory/baseline"] == advantages.metrics["memory/baseline"]
