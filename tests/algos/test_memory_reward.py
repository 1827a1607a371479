"""Memory quality against a hand-written softmax over the model's full logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from mempo_env.agents.contexts import get_context
from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.scoring import score_rows
from mempo_env.agents.wording import Wording
from mempo_env.algos import memory_reward
from mempo_env.algos.memory_reward import AnswerScorer, joint_answer
from mempo_env.errors import UserError
from mempo_env.prompt_styles import MEM1, SEARCH_R1
from mempo_env.records import Episode, Goal, Task
from mempo_env.tools import escape_tags

INSTRUCTIONS = "Answer all."
TASK = Task((Goal("Mira plays what?", ("chess", "violin and piano")), Goal("Igor eats what?", ("rice",))), id="t")


def hand_quality(policy: LoraPolicy, prompt: Sequence[int], gold: Sequence[int]) -> float:
    """exp(mean log p), by exponentials and sums in float64 from the logits of the whole sequence."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([[*prompt, *gold]])).logits[0].double().tolist()
    total = 0.0
    for n, token in enumerate(gold):
        row = logits[len(prompt) - 1 + n]
        top = max(row)
        total += row[token] - top - math.log(sum(math.exp(value - top) for value in row))
    return math.exp(total / len(gold))


def hand_prompt(policy: LoraPolicy, question: str, memory: str) -> list[int]:
    user = f"Task: {question}" + (f"\nMemory: {memory}" if memory else "")
    chat = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": user}]
    return policy.codec.encode_chat(chat) + policy.codec.encode_text("<answer>")


@pytest.fixture
def policy(make_imitated: Any) -> LoraPolicy:
    found: LoraPolicy = make_imitated()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in found.trainable_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return found


@pytest.mark.parametrize("memory", ["", "Mira plays chess.; Igor eats rice", "Igor <x> <|im_end|> eats"])
def test_joint_scope_by_hand(policy: LoraPolicy, memory: str) -> None:
    quality = AnswerScorer(policy, INSTRUCTIONS).quality([(TASK, memory)])
    expected = hand_quality(policy, hand_prompt(policy, TASK.text, memory), policy.codec.encode_text("chess; rice"))
    assert quality.dtype == torch.float64
    assert quality.item() == pytest.approx(expected, rel=1e-5)
    assert 0 < expected < 1


@pytest.mark.parametrize("context", ["window-2", "mem1", "retrieved", "history"])
def test_the_context_strategy_does_not_move_it(policy: LoraPolicy, context: str) -> None:
    expected = AnswerScorer(policy, INSTRUCTIONS).quality([(TASK, "Mira plays chess")])
    policy.context = get_context(context)
    assert torch.equal(AnswerScorer(policy, INSTRUCTIONS).quality([(TASK, "Mira plays chess")]), expected)


def test_under_another_prompt_style_it_is_asked_in_that_style(policy: LoraPolicy) -> None:
    policy.wording = Wording(MEM1, "Sum up.")
    quality = AnswerScorer(policy, INSTRUCTIONS).quality([(TASK, "Mira plays chess")])
    user = f"Sum up.\n\nQuestions: {TASK.text}\n<think>Mira plays chess</think>"
    prompt = policy.codec.encode_chat([{"role": "user", "content": user}]) + policy.codec.encode_text("<answer>")
    gold = policy.codec.encode_text("chess; rice")
    assert quality.item() == pytest.approx(hand_quality(policy, prompt, gold), rel=1e-5)
    policy.wording = Wording(SEARCH_R1, "Search.")
    with pytest.raises(UserError, match="does not apply: prompt style search-r1 has no memory"):
        AnswerScorer(policy, INSTRUCTIONS)


def test_per_goal_scope_by_hand(policy: LoraPolicy) -> None:
    """Each goal asked alone; the best of its aliases; mean over goals."""
    memory = "Mira plays chess"
    scores = []
    for goal in TASK.goals:
        prompt = hand_prompt(policy, goal.question, memory)
        scores.append([hand_quality(policy, prompt, policy.codec.encode_text(answer)) for answer in goal.answers])
    scorer = AnswerScorer(policy, INSTRUCTIONS, scope="per_goal")
    assert scorer.quality([(TASK, memory)]).item() == pytest.approx((max(scores[0]) + scores[1][0]) / 2, rel=1e-5)
    swapped = Task((Goal(TASK.goals[0].question, TASK.goals[0].answers[::-1]), TASK.goals[1]), id="t")
    assert scorer.quality([(swapped, memory)]).item() == scorer.quality([(TASK, memory)]).item()
    assert scores[0][0] != pytest.approx(scores[0][1], rel=1e-3), "the aliases must differ, or max shows nothing"


def scored_rows(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects the rows that are scored."""
    rows: list[Any] = []
    real = score_rows

    def spy(model: Any, given: Any, *rest: Any, **settings: Any) -> Any:
        assert not torch.is_inference_mode_enabled()
        rows.extend(given)
        return real(model, given, *rest, **settings)

    monkeypatch.setattr(memory_reward, "score_rows", spy)
    return rows


@pytest.mark.parametrize("scope", ["joint", "per_goal"])
def test_ids_of_prompt_prefix_and_gold_are_concatenated(
    policy: LoraPolicy, scope: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = scored_rows(monkeypatch)
    AnswerScorer(policy, INSTRUCTIONS, scope=scope).quality([(TASK, "Mira plays chess")])
    codec = policy.codec
    if scope == "joint":
        expected = [(TASK.text, "chess; rice")]
    else:
        expected = [(goal.question, answer) for goal in TASK.goals for answer in goal.answers]
    assert [(list(row.prompt_ids), list(row.output_ids)) for row in rows] == [
        (hand_prompt(policy, question, "Mira plays chess"), codec.encode_text(gold)) for question, gold in expected
    ]


def test_rows_to_imitate_have_the_ids_that_are_scored(policy: LoraPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model built in place learns the scoring prompt by these; one token apart and it learns another prompt."""
    rows = scored_rows(monkeypatch)
    scorer = AnswerScorer(policy, INSTRUCTIONS)
    scorer.quality([(TASK, "Mira plays chess")])
    row = scorer.recall_row(TASK, "Mira plays chess", joint_answer(TASK))
    scored = (*rows[0].prompt_ids, *rows[0].output_ids)
    assert (*row.prompt_ids, *row.output_ids)[: len(scored)] == scored
    assert policy.codec.decode(row.output_ids) == "<answer> chess; rice</answer>"


def test_prefix_and_gold_are_never_tokenised_together(make_imitated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tokenizer that merges ``>`` with what follows, together would give other ids."""
    policy = make_imitated()
    real: Callable[[str], list[int]] = policy.codec.encode_text
    asked: list[str] = []

    def spy(text: str) -> list[int]:
        asked.append(text)
        return real(text)

    monkeypatch.setattr(policy.codec, "encode_text", spy)
    AnswerScorer(policy, INSTRUCTIONS).quality([(TASK, "x")])
    assert asked == ["<answer>", joint_answer(TASK)]


def test_what_the_policy_is_asked_is_its_next_prompt(policy: LoraPolicy, shared_groups: Any) -> None:
    """Task and memory as the next turn's observation shows them; tags in a question are escaped there too."""
    task = Task((Goal("what is <mem>?", ("x",)),), id="t")
    scorer = AnswerScorer(policy, INSTRUCTIONS)
    escaped = escape_tags("what is <mem>?")
    assert "<mem>" not in escaped
    expected = hand_quality(policy, hand_prompt(policy, escaped, "m"), policy.codec.encode_text("x"))
    assert scorer.quality([(task, "m")]).item() == pytest.approx(expected, rel=1e-5)


def test_no_score_depends_on_the_batch(policy: LoraPolicy, shared_groups: Any) -> None:
    items = [(episode, turn.memory) for group in shared_groups for episode in group for turn in episode.turns]
    together = AnswerScorer(policy, INSTRUCTIONS).memory_quality(items)
    alone = torch.cat([AnswerScorer(policy, INSTRUCTIONS).memory_quality([item]) for item in items])
    small = AnswerScorer(policy, INSTRUCTIONS, max_tokens=100).memory_quality(items)
    assert torch.allclose(together, alone, rtol=1e-5)
    assert torch.allclose(together, small, rtol=1e-5)
    assert together.std() > 0
    backwards = AnswerScorer(policy, INSTRUCTIONS).memory_quality(items[::-1])
    assert torch.allclose(backwards.flip(0), together, rtol=1e-5)


def test_equal_questions_are_computed_once(policy: LoraPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = scored_rows(monkeypatch)
    quality = AnswerScorer(policy, INSTRUCTIONS).quality([(TASK, "a"), (TASK, "b"), (TASK, "a"), (TASK, "a")])
    assert len(rows) == 2
    assert quality[0] == quality[2] == quality[3] != quality[1]


def test_no_gradient_and_no_change_of_mode(policy: LoraPolicy) -> None:
    policy.train_mode()
    quality = AnswerScorer(policy, INSTRUCTIONS).quality([(TASK, "a")])
    assert not quality.requires_grad
    assert policy.model.training
    assert all(parameter.grad is None for parameter in policy.model.parameters())


def test_it_follows_the_current_policy(policy: LoraPolicy) -> None:
    scorer = AnswerScorer(policy, INSTRUCTIONS)
    before = scorer.quality([(TASK, "a")]).item()
    with policy.use_adapter(None):
        assert scorer.quality([(TASK, "a")]).item() != pytest.approx(before, rel=1e-4)
    assert scorer.quality([(TASK, "a")]).item() == before


# The history baseline ---------------------------------------------------------------------------------------------


def hand_history(policy: LoraPolicy, episode: Episode, t: int, question: str) -> list[int]:
    """The whole chat up to the output of turn t: earlier observations without memory and all earlier outputs."""
    chat = [{"role": "system", "content": INSTRUCTIONS}]
    for index, turn in enumerate(episode.turns[: t + 1]):
        lines = [f"Task: {question}"] if index == 0 else []
        lines += [f"Result: {turn.observation['tool_result']}"] if turn.observation["tool_result"] else []
        lines += [f"Budget: {turn.observation['budget']}"] if index < t else []
        chat.append({"role": "user", "content": "\n".join(lines)})
        if index < t:
            chat.append({"role": "assistant", "content": turn.text})
    return policy.codec.encode_chat(chat) + policy.codec.encode_text("<answer>")


@pytest.mark.parametrize("scope", ["joint", "per_goal"])
def test_history_baseline_by_hand(policy: LoraPolicy, shared_groups: Any, scope: Any) -> None:
    episode = max((episode for group in shared_groups for episode in group), key=lambda e: len(e.turns))
    last = len(episode.turns) - 1
    assert last >= 2
    found = AnswerScorer(policy, INSTRUCTIONS, scope=scope).history_quality([(episode, 0), (episode, last)])
    for t, value in zip((0, last), found.tolist(), strict=True):
        task = episode.task
        if scope == "joint":
            gold = policy.codec.encode_text("; ".join(goal.answers[0] for goal in task.goals))
            expected = hand_quality(policy, hand_history(policy, episode, t, task.text), gold)
        else:
            per_goal = [
                max(
                    hand_quality(policy, hand_history(policy, episode, t, goal.question), policy.codec.encode_text(a))
                    for a in goal.answers
                )
                for goal in task.goals
            ]
            expected = sum(per_goal) / len(per_goal)
        assert value == pytest.approx(expected, rel=1e-5)


def test_history_and_empty_memory_agree_before_anything_was_seen(policy: LoraPolicy, shared_groups: Any) -> None:
    """At turn 0 both show the task and nothing else."""
    scorer, episode = AnswerScorer(policy, INSTRUCTIONS), shared_groups[0][0]
    history, empty = scorer.history_quality([(episode, 0)]), scorer.memory_quality([(episode, "")])
    assert history.item() == pytest.approx(empty.item(), rel=1e-6)


def test_a_history_beyond_the_models_positions_is_refused(policy: LoraPolicy, shared_groups: Any) -> None:
    config: Any = policy.model.config
    config.max_position_embeddings = 40
    with pytest.raises(UserError, match="the model has 40 positions"):
        AnswerScorer(policy, INSTRUCTIONS).history_quality([(shared_groups[0][0], 1)])
