"""Memory quality Q(m): how probable the gold answers are for the current policy, given only the task and the memory.

    Q(m) = exp( (1/L) sum_l log pi(a_l | task, m, a_<l) )                                (MemPO, arXiv 2603.00680)

The prompt is what the next turn would see (task and memory, no tool result, no budget line), then the assistant prefix
``<answer>``, then the gold tokens. Ids of prefix and gold are concatenated, never tokenised together. This file is the
one place that holds that template.

Invariant: Q depends on task, memory and weights alone: not on the batch, not on how the memory came about, not on the
context strategy. A policy that plays under a strategy other than ``memory`` never sees this very prompt, so its Q says
less; see docs/contexts.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mempo_env.errors import UserError
from mempo_env.records import Episode, Group, Observation, Task, Turn
from mempo_env.tools import escape_tags

from ..agents.base import SlotKey, TurnRequest
from ..agents.contexts import ContextStrategy, HistoryContext, MemoryContext
from ..agents.policy import LoraPolicy
from ..agents.row_batches import TokenRow
from ..agents.scoring import score_rows
from .frozen_reference import FrozenReference
from .processes import ALONE, Processes

Scope = Literal["joint", "per_goal"]
ANSWER_PREFIX, ANSWER_SUFFIX = "<answer>", "</answer>"


class AnswerScorer:
    """Scores answers with a policy's current weights, without gradient.

    Args:
        policy: Whose probability it is.
        instructions: The environment's system message.
        scope: ``joint``: first aliases in one string "a1; a2". ``per_goal``: each goal asked alone, best alias, mean
            over goals.
        max_tokens: Padded tokens per forward pass.
        reference: Plays the frozen reference policy, for whoever asks for ``reference_quality``.
        processes: Those that share the scoring; each then knows all scores.

    Raises:
        UserError: The policy's prompt style has no memory, so that there is nothing to score.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        instructions: str,
        *,
        scope: Scope = "joint",
        max_tokens: int = 16384,
        reference: FrozenReference | None = None,
        processes: Processes = ALONE,
    ) -> None:
        if not policy.wording.style.has_memory:
            raise UserError(f"Q(m) does not apply: prompt style {policy.wording.style.name} has no memory")
        self.policy = policy
        self.instructions = instructions
        self.scope: Scope = scope
        self.max_tokens = max_tokens
        self.reference = reference
        self.processes = processes

    def memory_quality(self, items: Sequence[tuple[Episode, str]]) -> Tensor:
        """Q(m) of each (episode, memory), as float64 (M,)."""
        return self.quality([(episode.task, memory) for episode, memory in items])

    def quality(self, items: Sequence[tuple[Task, str]]) -> Tensor:
        """Q(m) of each (task, memory), as float64 (M,). Equal questions are computed once."""
        return self._aggregate(self._memory_questions(items))

    def token_quality(self, items: Sequence[tuple[Task, str]]) -> tuple[Tensor, list[list[tuple[TokenRow, Tensor]]]]:
        """``quality``, and what it was made of.

        Args:
            items: (task, memory) pairs.

        Returns:
            Q(m) as float64 (M,); and for each pair, per question (one, or one per goal) the row of the best alias with
            the log-probabilities (n_gold,) of its output.
        """
        wanted = self._memory_questions(items)
        scored = self._score_all(wanted)

        def best(aliases: Sequence[TokenRow]) -> TokenRow:
            return max(aliases, key=lambda row: _probability(scored[row]))

        parts = [[(row, scored[row]) for row in map(best, questions)] for questions in wanted]
        return self._mean_of_best(wanted, scored), parts

    def _memory_questions(self, items: Sequence[tuple[Task, str]]) -> list[list[list[TokenRow]]]:
        context = MemoryContext()

        def prompt(task: Task, memory: str) -> Callable[[str], tuple[int, ...]]:
            return lambda text: self._prompt(context, task, _answer_time(text, memory), ())

        return [self._questions(task, prompt(task, memory)) for task, memory in items]

    def history_quality(self, items: Sequence[tuple[Episode, int]]) -> Tensor:
        """P(a | s_<t): the same probability given the whole uncompressed history before the output of turn t.

        Args:
            items: (episode, t) pairs.

        Returns:
            float64 (M,).
        """
        context = HistoryContext()

        def prompt(episode: Episode, t: int) -> Callable[[str], tuple[int, ...]]:
            def with_task(text: str) -> tuple[int, ...]:
                shown = {"task": escape_tags(text)}
                observation = episode.turns[t].observation | shown | {"budget": ""}
                history = [replace(turn, observation=turn.observation | shown) for turn in episode.turns[:t]]
                return self._prompt(context, episode.task, observation, tuple(history))

            return with_task

        return self._aggregate([self._questions(episode.task, prompt(episode, t)) for episode, t in items])

    def reference_quality(self, groups: Sequence[Group], episodes: int) -> list[Tensor]:
        """Q of the memories of the frozen reference's episodes, by the reference's own probability.

        Args:
            groups: Whose tasks are played.
            episodes: Per task.

        Returns:
            Per group float64 (M,).

        Raises:
            ValueError: This scorer was given nobody to play them.
        """
        if self.reference is None:
            raise ValueError("no reference episodes without a FrozenReference; give the scorer one")
        # Not ``self.memory_quality``: a subclass that keeps what it scores must not keep the reference's numbers.
        return self.reference.quality(groups, episodes, lambda items: AnswerScorer.memory_quality(self, items))

    def recall_row(self, task: Task, memory: str, answers: str) -> TokenRow:
        """The scoring prompt as a row to imitate: output ``<answer>`` + answers + ``</answer>``.

        Args:
            task: What was asked.
            memory: What is known.
            answers: What can be answered from it, as an answer block holds it.

        Returns:
            The row.
        """
        context, codec = MemoryContext(), self.policy.codec
        prefix = tuple(codec.encode_text(ANSWER_PREFIX))
        prompt = self._prompt(context, task, _answer_time(task.text, memory), ())
        output = (*prefix, *codec.encode_text(answers), *codec.encode_text(ANSWER_SUFFIX))
        return TokenRow(prompt[: len(prompt) - len(prefix)], output)

    def _questions(self, task: Task, prompt: Callable[[str], tuple[int, ...]]) -> list[list[TokenRow]]:
        """For each question to average over, the rows (aliases) of which the best counts.

        Args:
            task: What was asked.
            prompt: From the text of the task field to the ids before the answer.

        Returns:
            One list of rows per question.
        """
        if self.scope == "joint":
            return [[TokenRow(prompt(task.text), self._gold(joint_answer(task)))]]
        questions = []
        for goal in task.goals:
            ids = prompt(goal.question)
            questions.append([TokenRow(ids, self._gold(answer)) for answer in goal.answers])
        return questions

    def _prompt(
        self, context: ContextStrategy, task: Task, observation: Observation, history: tuple[Turn, ...]
    ) -> tuple[int, ...]:
        request = TurnRequest(SlotKey(0, 0, task.id, 0, len(history)), observation, self.instructions, history, task)
        codec = self.policy.codec
        messages = self.policy.wording.messages(context, request)
        return (*codec.encode_chat(messages), *codec.encode_text(ANSWER_PREFIX))

    def _gold(self, answer: str) -> tuple[int, ...]:
        return tuple(self.policy.codec.encode_text(answer))

    def _aggregate(self, wanted: Sequence[Sequence[Sequence[TokenRow]]]) -> Tensor:
        """Mean over questions of the best alias's exp(mean log-probability)."""
        return self._mean_of_best(wanted, self._score_all(wanted))

    def _score_all(self, wanted: Sequence[Sequence[Sequence[TokenRow]]]) -> dict[TokenRow, Tensor]:
        unique = list(dict.fromkeys(row for questions in wanted for aliases in questions for row in aliases))
        self._refuse_too_long(unique)
        with self.policy.evaluating():
            scored = self.processes.share(unique, self._score)  # per row (n_gold,)
        return dict(zip(unique, scored, strict=True))

    @staticmethod
    def _mean_of_best(wanted: Sequence[Sequence[Sequence[TokenRow]]], scored: dict[TokenRow, Tensor]) -> Tensor:
        probability = {row: _probability(logprobs) for row, logprobs in scored.items()}
        return torch.tensor(
            [
                sum(max(probability[row] for row in aliases) for aliases in questions) / len(questions)
                for questions in wanted
            ],
            dtype=torch.float64,
        )  # (M,)

    def _score(self, rows: Sequence[TokenRow]) -> list[Tensor]:
        return score_rows(self.policy.model, rows, self.policy.codec.pad_id, max_tokens=self.max_tokens)

    def _refuse_too_long(self, rows: Sequence[TokenRow]) -> None:
        limit = getattr(self.policy.model.config, "max_position_embeddings", None)
        longest = max(map(len, rows), default=0)
        if limit is not None and longest > int(limit):
            raise UserError(
                f"scoring answers needs {longest} tokens, but the model has {limit} positions; use a baseline other "
                "than 'history', a smaller budget, fewer goals, or a model with a longer input"
            )


def _probability(logprobs: Tensor) -> float:
    """Exp of the mean (n_gold,)."""
    return math.exp(logprobs.double().mean().item())


def joint_answer(task: Task) -> str:
    """The primary answers in one string, as an answer block holds them."""
    return "; ".join(goal.answers[0] for goal in task.goals)


def _answer_time(task_text: str, memory: str) -> Observation:
    return {"task": escape_tags(task_text), "memory": memory, "tool_result": "", "budget": ""}
