"""What an episode costs in tokens by goals, turns and context strategy, and what a group of them is to the learner.

An ``EpisodeShape`` says how long each part of an episode is; the tokens of its turns follow. An ``EpisodeLaw`` holds
the shapes of two numbers of goals, measured, and gives those of others.

Invariant: pure functions of numbers; which prefixes are shared is asked of the code that shares them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from cost_formulas import Work, prefix, row

from mempo_env.agents.shared_prefix import WORTHWHILE, clusters, saved_tokens
from mempo_env.budgets import Budget

Context = Literal["memory", "history"]


@dataclass(frozen=True)
class EpisodeShape:
    """Lengths in tokens; those of an average episode of one number of goals.

    Attributes:
        goals: Goals of the task.
        turns: Calls of the policy; the last one answers.
        queries: Queries of the whole episode.
        frame: Prompt beside task, memory and result: instructions, template, labels, budget.
        task: The task.
        note: Memory that a query adds.
        memory_cap: Longest memory.
        result: Result of a query.
        call: Output of a call beside memory and queries.
        query: A query in a call.
        answer: Output of the last turn beside the memory.
        gold: Gold answers as Q(m) scores them.
        thought: What a policy thinks in a turn; the scripted expert does not.
    """

    goals: float
    turns: float
    queries: float
    frame: float
    task: float
    note: float
    memory_cap: float
    result: float
    call: float
    query: float
    answer: float
    gold: float
    thought: float = 0.0

    @property
    def n_turns(self) -> int:
        """Turns as a whole number, at least two."""
        return max(2, round(self.turns))

    @property
    def per_call(self) -> float:
        """Queries of a call."""
        return self.queries / (self.n_turns - 1)

    def memory(self, turn: int) -> float:
        """Memory written at a turn, the first being 0: it holds what earlier calls found."""
        return min(self.memory_cap, self.note * self.per_call * turn)

    def outputs(self) -> list[float]:
        """Output tokens by turn."""
        acts = [self.call + self.query * self.per_call] * (self.n_turns - 1) + [self.answer]
        return [self.memory(turn) + self.thought + act for turn, act in enumerate(acts)]

    def prompts(self, context: Context) -> list[float]:
        """Prompt tokens by turn."""
        found = self.result * self.per_call
        first = self.frame + self.task
        if context == "memory":
            return [first, *(first + self.memory(turn - 1) + found for turn in range(1, self.n_turns))]
        return [first + past + turn * found for turn, past in enumerate(self._past())]

    def total(self, context: Context) -> float:
        """TT: all prompts and outputs; between whole numbers of turns on a line."""
        return self._between(lambda shape: sum(shape.prompts(context)) + sum(shape.outputs()))

    def peak(self, context: Context) -> float:
        """PT: the longest prompt with its output."""
        return self._between(lambda s: max(a + b for a, b in zip(s.prompts(context), s.outputs(), strict=True)))

    def _between(self, value: Callable[[EpisodeShape], float]) -> float:
        whole = max(2, math.floor(self.turns))
        part = max(0.0, self.turns - whole)
        few, more = (value(replace(self, turns=turns)) for turns in (whole, whole + 1))
        return (1 - part) * few + part * more

    def _past(self) -> list[float]:
        return list(itertools.accumulate(self.outputs()[:-1], initial=0.0))


@dataclass(frozen=True)
class EpisodeLaw:
    """Two measured shapes, and what they say of other numbers of goals.

    Queries are proportional to goals until the budget's calls are used up, notes fill the memory until it is full; both
    rates are those of the fewer goals, where neither limit acts, and the longest memory is that of the more goals. With
    one query a call turns follow from queries. All other lengths lie on a line through the two.
    """

    low: EpisodeShape
    high: EpisodeShape

    def at(self, goals: float, budget: Budget, thought: float = 0.0) -> EpisodeShape:
        """The shape for a number of goals.

        Args:
            goals: How many.
            budget: Its calls, turns and queries a call.
            thought: Tokens of a thought.
        """
        share = (goals - self.low.goals) / (self.high.goals - self.low.goals)
        low, high = asdict(self.low), asdict(self.high)
        line = {name: low[name] + share * (high[name] - low[name]) for name in low}
        calls = min(budget.max_tool_calls, budget.max_turns - 1)
        queries = min(self.low.queries / self.low.goals * goals, calls * budget.queries_per_call)
        turns = queries + 1 if budget.queries_per_call == 1 else min(line["turns"], calls + 1)
        kept = {"note": self.low.note, "memory_cap": self.high.memory_cap}
        return EpisodeShape(**line | kept | {"queries": queries, "turns": turns, "thought": thought})


def group_prompts(shape: EpisodeShape, context: Context, episodes: int) -> list[tuple[int, ...]]:
    """Prompts of a group's turns as made-up ids that are equal exactly where real ones would be.

    All begin with instructions and task; under full history a turn's prompt begins with the one before it. A first turn
    has no more than the shared beginning.
    """
    lengths = [round(length) for length in shape.prompts(context)]
    common = tuple(range(lengths[0]))
    fresh = itertools.count(lengths[0])
    found = []
    for _ in range(episodes):
        so_far = common
        for length in lengths:
            start = so_far if context == "history" else common
            so_far = start + tuple(itertools.islice(fresh, max(0, length - len(start))))
            found.append(so_far)
    return found


def rows_work(prompts: Sequence[tuple[int, ...]], outputs: Sequence[float], *, share: bool) -> Work:
    """What one forward pass over rows has to do, all of them in one batch.

    Args:
        prompts: Ids.
        outputs: Output tokens of each.
        share: Whether what prompts have in common is computed once, where that saves enough.
    """
    total, found = Work(), clusters(prompts)
    worthwhile = saved_tokens(found) >= WORTHWHILE * (sum(map(len, prompts)) + sum(outputs))
    for cluster in found:
        shared = cluster.shared if share and worthwhile else 0
        total += prefix(shared)
        for index in cluster.rows:
            total += row(len(prompts[index]) - shared, outputs[index], shared)
    return total


def group_work(shape: EpisodeShape, context: Context, episodes: int, *, share: bool = True) -> Work:
    """What one forward pass over all turns of a group has to do."""
    prompts = group_prompts(shape, context, episodes)
    return rows_work(prompts, shape.outputs() * episodes, share=share)


def scoring_work(shape: EpisodeShape, episodes: int, scope: Literal["joint", "per_goal"] = "joint") -> Work:
    """What Q(m) of every memory of a group has to do: task and memory, then the gold answers.

    ``joint`` reads a memory once, and what precedes it once per group. ``per_goal`` asks each goal alone, with a prompt
    that differs from its second line on, so that only the instructions are common.
    """
    total = prefix(shape.frame + (shape.task if scope == "joint" else 0))
    for turn in range(shape.n_turns):
        if scope == "joint":
            rows, ids, gold = 1.0, shape.memory(turn), shape.gold
        else:
            rows, ids, gold = shape.goals, shape.task / shape.goals + shape.memory(turn), shape.gold / shape.goals
        one = row(ids, gold, total.prefix)
        total += Work(*(episodes * rows * getattr(one, name) for name in ("tokens", "pairs", "outputs")))
    return total


def episode_bytes(shape: EpisodeShape, context: Context) -> float:
    """Bytes of a pickled episode, which each process hands to all others.

    Per token an id of 3 bytes, per output token a log-probability of 9 and a segment of 2; and the texts, 4 bytes a
    token: each output, and each turn's task, memory and result.
    """
    outputs, seen = sum(shape.outputs()), sum(shape.prompts("memory")) - shape.frame * shape.n_turns
    return 3 * (sum(shape.prompts(context)) + outputs) + 11 * outputs + 4 * (outputs + seen)
