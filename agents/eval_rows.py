"""From episodes to a row of a table: every metric of one agent, context, budget and number of goals.

What only a tokenizer or a model can say (the length of a memory, what full history would have cost, Q(m)) is noted in
the turns' ``info`` when an episode is played, so that a row can be made again from the file alone.

Invariants:
    * a row is a function of its episodes, and of the counter only where they carry no notes;
    * every episode that was played counts in scores and costs, truncated ones with 0; only those with an infrastructure
      ``error`` are left out, and they are counted beside.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mempo_env.metrics import bootstrap_interval, bootstrap_ratio_interval, token_costs
from mempo_env.records import Episode
from mempo_env.tokens import RegexTokenCounter, TokenCounter

from .base import Agent
from .overflow import OVERFLOW

MEMORY_TOKENS, TASK_TOKENS, NEW_TOKENS, HISTORY_TOKENS, QUALITY = (
    "memory_tokens",
    "task_tokens",
    "new_tokens",
    "history_tokens",
    "quality",
)
"""Notes in ``Turn.info``: length of the memory that was written; length of the task as it is shown; tokens of this call
that the call before did not hold; input and output had every earlier turn stayed in the chat; Q(m) of the memory."""

PER_EPISODE = (
    *("f1", "em", "f1_sum", "em_sum", "success", "truncated", "overflowed"),
    *("total_tokens", "total_tokens_unique", "peak_tokens", "peak_tokens_less_task"),
    *("turns", "tool_calls", "format_errors"),
)
"""Metrics that every episode has a number of."""
PER_MEMORY = ("memory_tokens", "quality")
"""Metrics that every memory has a number of: their means are over memories, their intervals over episodes."""


@dataclass(frozen=True, order=True)
class RowKey:
    """What a row is about.

    Attributes:
        agent: Who played.
        context: Its context strategy; empty if it has none.
        budget: Name of the budget.
        goals: Goals per task.
    """

    agent: str
    context: str
    budget: str
    goals: int


@dataclass(frozen=True)
class EvaluationRow:
    """One agent at one number of goals. Scores are percentages; the intervals cover the mean with 95 % (bootstrap).

    Attributes:
        agent: Its name.
        context: Its context strategy; empty if it has none.
        goals: Goals per task.
        budget: Name of the budget.
        episodes: Episodes played without a fault: what the means are over.
        errors: Episodes that ended on an infrastructure fault.
        f1: Mean token F1.
        f1_interval: Its interval.
        em: Mean share of goals answered exactly.
        em_interval: Its interval.
        success: Share of episodes with every goal right.
        truncated: Share of episodes that ended without an answer.
        total_tokens: TT, mean over episodes.
        total_tokens_unique: TT with each token counted once.
        peak_tokens: PT, mean over episodes.
        turns: Mean turns.
        tool_calls: Mean tool calls.
        format_errors: Mean format errors.
        memory_tokens: Mean length of the memories that were written.
        f1_sum: F1 summed over the goals, each 0 to 1, as MEM1 (arXiv 2506.15841) prints it.
        em_sum: The same of EM.
        peak_tokens_less_task: PT less the tokens of the task's text.
        overflowed: Share of episodes in which a prompt was longer than the model takes, so that the turn was lost.
        quality: Mean Q(m) of the memories that were written, where a policy could score them.
        intervals: Intervals of the other means, by name.
    """

    agent: str
    context: str
    goals: int
    budget: str
    episodes: int
    errors: int
    f1: float
    f1_interval: tuple[float, float]
    em: float
    em_interval: tuple[float, float]
    success: float
    truncated: float
    total_tokens: float
    total_tokens_unique: float
    peak_tokens: float
    turns: float
    tool_calls: float
    format_errors: float
    memory_tokens: float
    f1_sum: float = math.nan
    em_sum: float = math.nan
    peak_tokens_less_task: float = math.nan
    overflowed: float = math.nan
    quality: float = math.nan
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def key(self) -> RowKey:
        """What the row is about."""
        return RowKey(self.agent, self.context, self.budget, self.goals)

    def interval(self, name: str) -> tuple[float, float]:
        """The interval of a metric; ``(nan, nan)`` where the row was stored without it."""
        own = {"f1": self.f1_interval, "em": self.em_interval}
        return own[name] if name in own else self.intervals.get(name, (math.nan, math.nan))

    def flat(self) -> dict[str, Any]:
        """All values by name, each interval as ``<metric>_interval``; a mean over nothing is None."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        intervals = values.pop("intervals")
        values |= {f"{name}_interval": list(interval) for name, interval in intervals.items()}
        return {name: finite(value) for name, value in values.items()}


def episode_metrics(episode: Episode) -> dict[str, float]:
    """The metrics of ``PER_EPISODE`` of an episode that ended without a fault; NaN for what was not noted.

    Raises:
        ValueError: It has no turn.
    """
    if not episode.turns:
        raise ValueError(f"episode {episode.group_id!r} has no turn")
    goals, scores, cost = len(episode.task.goals), episode.scores, token_costs(episode)
    new = [_note(turn.info, NEW_TOKENS) for turn in episode.turns]
    return {
        "f1": 100 * scores["f1"],
        "em": 100 * scores["em"],
        "f1_sum": goals * scores["f1"],
        "em_sum": goals * scores["em"],
        "success": 100 * scores["success"],
        "truncated": 100 * float(episode.truncated),
        "overflowed": 100 * float(any(turn.info.get("stop_reason") == OVERFLOW for turn in episode.turns)),
        "total_tokens": cost.total,
        "total_tokens_unique": cost.total_unique if math.isnan(sum(new)) else sum(new),
        "peak_tokens": cost.peak,
        "peak_tokens_less_task": cost.peak - _note(episode.turns[0].info, TASK_TOKENS),
        "turns": len(episode.turns),
        "tool_calls": int(str(episode.turns[-1].info["tool_calls"])),
        "format_errors": sum(turn.format_error is not None for turn in episode.turns),
    }


def memory_metric(episode: Episode, name: str, counter: TokenCounter | None = None) -> list[float]:
    """A metric of ``PER_MEMORY`` for each memory of an episode that has one.

    Args:
        episode: The episode.
        name: ``memory_tokens`` or ``quality``.
        counter: Counts memories whose length was not noted.
    """
    values = []
    for turn in episode.turns:
        if turn.memory_written:
            value = _note(turn.info, name)
            if math.isnan(value) and name == MEMORY_TOKENS and counter is not None:
                value = counter.count(turn.memory)
            if not math.isnan(value):
                values.append(value)
    return values


def evaluation_row(
    agent: Agent, goals: int, budget: str, episodes: Sequence[Episode], counter: TokenCounter
) -> EvaluationRow:
    """Sums an agent's episodes up; see ``row_of``."""
    context = getattr(getattr(agent, "context", None), "name", "")
    return row_of(RowKey(agent.name, context, budget, goals), episodes, counter)


def row_of(key: RowKey, episodes: Sequence[Episode], counter: TokenCounter | None = None) -> EvaluationRow:
    """Sums episodes up.

    Args:
        key: What they have in common.
        episodes: All of them, errors included.
        counter: Counts the memories whose length was not noted (regex counter by default).

    Returns:
        The row; its means are nan if no episode ended without a fault.
    """
    counter = counter if counter is not None else RegexTokenCounter()
    valid = [episode for episode in episodes if episode.error is None]
    measured = [episode_metrics(episode) for episode in valid]
    means: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name in PER_EPISODE:
        values = [metrics[name] for metrics in measured]
        means[name], intervals[name] = _mean(values), _known(bootstrap_interval(values))
    for name in PER_MEMORY:
        memories = [memory_metric(episode, name, counter) for episode in valid]
        means[name] = _mean([value for some in memories for value in some])
        sums, sizes = [sum(some) for some in memories], [len(some) for some in memories]
        intervals[name] = _known(bootstrap_ratio_interval(sums, sizes))
    known: dict[str, Any] = dataclasses.asdict(key) | means
    return EvaluationRow(
        episodes=len(valid),
        errors=len(episodes) - len(valid),
        f1_interval=intervals.pop("f1"),
        em_interval=intervals.pop("em"),
        intervals=intervals,
        **known,
    )


def finite(value: object) -> object:
    """NaN, also inside a list, tuple or mapping, as None: JSON has no other form of it."""
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _note(info: Mapping[str, object], name: str) -> float:
    value = info.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _mean(values: Sequence[float]) -> float:
    mean = sum(values) / len(values) if values else math.nan
    return math.nan if math.isnan(mean) else mean  # the one NaN that rows hold, so that equal rows compare equal


def _known(interval: tuple[float, float]) -> tuple[float, float]:
    return (math.nan, math.nan) if math.isnan(sum(interval)) else interval
