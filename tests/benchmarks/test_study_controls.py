"""The controls and the probe, on qualities that memories spell: what they shuffle, and what they keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_study.control import ShortMemPO, ShortnessScorer, ShuffledMemPO, ShuffledScorer, TurnShuffledMemPO
from memory_study.probe import RememberingScorer

from mempo_env.actions import Segment
from mempo_env.algos.algorithm_config import MemPOConfig
from mempo_env.algos.memory_baselines import MemoryScores, comparable_memories, mean_of_others, score_memories
from mempo_env.algos.mempo import MemPO
from mempo_env.errors import UserError
from mempo_env.records import Episode, Turn

from .two_goals import CALL, TASK, episode, turn


class FixedScorer:
    """Gives each memory the number that it spells."""

    def __init__(self) -> None:
        self.asked = 0

    def memory_quality(self, items: Any) -> torch.Tensor:
        self.asked += len(items)
        return torch.tensor([float(memory) for _, memory in items], dtype=torch.float64)

    def history_quality(self, items: Any) -> torch.Tensor:
        raise AssertionError("not asked")

    def reference_quality(self, groups: Any, episodes: int) -> list[torch.Tensor]:
        raise AssertionError("not asked")


def scored_group(name: str, seed: int, start: float, size: int = 4) -> tuple[Episode, ...]:
    """Episodes of two memory turns each; memory k of the group spells start + k/100."""

    def one(k: int) -> Turn:
        made = turn("", f"{start + k / 100:.4f}", CALL)
        ids: dict[str, Any] = {"prompt_ids": (1,), "output_ids": (2, 3), "logprobs": (0.0, 0.0)}
        return replace(made, **ids, n_output=2, segments=(int(Segment.MEMORY), int(Segment.ANSWER)))

    return tuple(
        Episode((one(2 * i), one(2 * i + 1)), TASK, name, i, seed, float(i % 2), True, False) for i in range(size)
    )


def test_shuffling_keeps_the_qualities_of_a_group_and_changes_who_has_them() -> None:
    groups = [scored_group("0/0", 11, 0.1), scored_group("0/1", 12, 0.6)]
    items = [(e, t.memory) for group in groups for e in group for t in e.turns]
    plain = FixedScorer().memory_quality(items).tolist()
    shuffled = ShuffledScorer(FixedScorer()).memory_quality(items).tolist()
    for half in (slice(0, 8), slice(8, 16)):
        assert sorted(shuffled[half]) == sorted(plain[half])
        assert shuffled[half] != plain[half]
    again = ShuffledScorer(FixedScorer()).memory_quality(items[8:]).tolist()
    assert again == shuffled[8:]  # it depends on the group alone, not on what else is scored
    moved = [(e.replace(seed=13), m) for e, m in items[8:]]
    assert ShuffledScorer(FixedScorer()).memory_quality(moved).tolist() != again  # another task, another order


def test_the_control_learns_from_permuted_advantages_on_memory_tokens_only() -> None:
    groups = [scored_group("0/0", 11, 0.1)]
    true = MemPO().advantages(groups, FixedScorer()).tokens
    control = ShuffledMemPO().advantages(groups, FixedScorer()).tokens
    keys = sorted(true)
    assert [true[key][0].item() for key in keys] != [control[key][0].item() for key in keys]
    assert [true[key][1].item() for key in keys] == [control[key][1].item() for key in keys]  # answers: A^T alone
    # The sum of Q - b over a group of equal episodes is 0, whoever has which quality.
    memory = sum(control[key][0].item() - control[key][1].item() for key in keys)
    assert memory == pytest.approx(0.0, abs=1e-6)


def test_within_a_turn_qualities_change_hands_and_being_late_keeps_its_credit() -> None:
    groups = [scored_group("0/0", 11, 0.1)]  # 4 episodes of 2 turns
    (memories,) = comparable_memories(groups)
    (scores,) = score_memories([memories], MemPOConfig(), FixedScorer())
    algorithm = TurnShuffledMemPO()
    true, control = (a.memory_advantages(memories, scores) for a in (MemPO(), algorithm))
    assert not torch.equal(true, control)
    assert torch.equal(control, algorithm.memory_advantages(memories, scores))  # the same again
    # Of equally long episodes, the sum over a turn of Q - b depends on who has which Q in no way.
    for turn_number in (0, 1):
        at = memories.turns == turn_number
        assert control[at].sum().item() == pytest.approx(true[at].sum().item(), abs=1e-12)
    alike = MemoryScores(scores.quality * 0 + memories.turns, scores.baseline, scores.has_baseline)
    # Where a turn's memories are all as good, there is nothing to deal out.
    plain = MemoryScores(alike.quality, *mean_of_others(alike.quality, memories, MemPOConfig()))
    assert torch.equal(algorithm.memory_advantages(memories, alike), MemPO().memory_advantages(memories, plain))


@pytest.mark.parametrize("control", [ShuffledMemPO, TurnShuffledMemPO])
def test_the_controls_refuse_baselines_that_score_other_texts(control: Any) -> None:
    with pytest.raises(UserError, match="old_memory"):
        control(MemPOConfig(baseline="old_memory"))


def test_a_remembering_scorer_asks_once() -> None:
    inner = FixedScorer()
    scorer = RememberingScorer(inner)
    one = episode(turn("", "", CALL))
    assert scorer.memory_quality([(one, "0.5"), (one, "0.25"), (one, "0.5")]).tolist() == [0.5, 0.25, 0.5]
    assert scorer.memory_quality([(one, "0.25")]).tolist() == [0.25]
    assert inner.asked == 2


class Words:
    """Counts words."""

    name = "words"

    def count(self, text: str) -> int:
        return len(text.split())

    def truncate(self, text: str, n: int) -> str:
        return " ".join(text.split()[:n])


def test_the_short_control_looks_at_length_alone() -> None:
    groups = [scored_group("0/0", 11, 0.1)]
    one = groups[0][0]
    scorer = ShortnessScorer(FixedScorer(), Words())
    assert scorer.memory_quality([(one, "a b"), (one, ""), (one, "c d")]).tolist() == [254 / 256, 1.0, 254 / 256]
    control = ShortMemPO()
    control.counter = Words()
    # All memories of the group have one word: A^M is 0, whatever their quality.
    found = control.advantages(groups, FixedScorer()).tokens
    assert all(values[0].item() == values[1].item() for values in found.values())
