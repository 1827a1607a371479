"""Evaluation: an agent plays fixed, unseen tasks at several numbers of goals; scores and costs with intervals.

Tasks never collide with training: the environments are made with another ``split``, whose tasks are disjoint from the
training split's by construction, and the reset seeds start at ``EVAL_SEED_START``, above every training seed.

Invariants:
    * the tasks are a function of (seed, goals, index), the same for every agent that is compared;
    * every episode that was played counts in scores and costs, truncated ones with 0; only those with an infrastructure
      ``error`` are left out, and they are counted beside.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from mempo_env.errors import UserError
from mempo_env.metrics import bootstrap_interval, token_costs
from mempo_env.records import Episode
from mempo_env.tokens import RegexTokenCounter, TokenCounter

from .base import Agent
from .rollout import EnvFactory, EnvPool, EpisodeSpec, OnTurn, rollout

EVAL_SEED_START = 2**32
"""Evaluation seeds are at or above this number, training seeds below it."""
MAX_EPISODES = 2**20
MAX_GOALS = 16
EVAL_STEP = -1
"""The training step in the noise of evaluation: no step of training has it."""


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


@dataclass(frozen=True)
class EvaluationReport:
    """What ``evaluate`` found.

    Attributes:
        rows: One per number of goals.
        seed: Seed of tasks and noise.
        episodes: Everything that was played, in order.
    """

    rows: tuple[EvaluationRow, ...]
    seed: int
    episodes: tuple[Episode, ...] = ()

    def to_json(self) -> str:
        """Rows and seed as JSON; a mean over nothing is null."""
        rows = [{name: _finite(value) for name, value in dataclasses.asdict(row).items()} for row in self.rows]
        return json.dumps({"seed": self.seed, "rows": rows}, indent=2, allow_nan=False)

    def table(self, title: str = "Evaluation") -> Table:
        """A table for the terminal."""
        return report_table([self], title)


def report_table(reports: Sequence[EvaluationReport], title: str = "Evaluation") -> Table:
    """One table over several reports, sorted by the number of goals, so that agents stand beside each other.

    What is the same in every row (agent, context strategy, budget) stands under the table, which then fits a terminal.
    """
    rows = sorted((row for report in reports for row in report.rows), key=lambda row: row.goals)
    labels = {name: [getattr(row, name) for row in rows] for name in ("agent", "context", "budget")}
    differing = [name for name, values in labels.items() if len(set(values)) > 1]
    same = [f"{name} {values[0]}" for name, values in labels.items() if len(set(values)) == 1 and values[0]]
    about = "F1, EM, success in %, intervals 95 %; TT, PT in tokens, means over n episodes"
    table = Table(title=title, caption="\n".join([", ".join(same), about] if same else [about]), box=box.SIMPLE_HEAD)
    table.padding, table.collapse_padding, table.pad_edge = (0, 1), True, False
    table.add_column("goals", justify="right")
    for name in differing:
        table.add_column(name)
    for name in ("F1", "EM", "success", "TT", "PT", "turns", "calls", "format\nerrors", "n"):
        table.add_column(name, justify="right", min_width=11 if name in ("F1", "EM") else None)
    for row in rows:
        table.add_row(
            str(row.goals),
            *(getattr(row, name) for name in differing),
            f"{row.f1:.1f} ({row.f1_interval[0]:.3g}-{row.f1_interval[1]:.3g})",
            f"{row.em:.1f} ({row.em_interval[0]:.3g}-{row.em_interval[1]:.3g})",
            f"{row.success:.1f}",
            f"{row.total_tokens:.0f}",
            f"{row.peak_tokens:.0f}",
            f"{row.turns:.1f}",
            f"{row.tool_calls:.1f}",
            f"{row.format_errors:.2f}",
            f"{row.episodes}" + (f" + {row.errors} errors" if row.errors else ""),
        )
    return table


def eval_seeds(seed: int, goals: int, episodes: int) -> list[int]:
    """Reset seeds of an evaluation: distinct for each (seed, goals, index), all at or above ``EVAL_SEED_START``.

    Args:
        seed: Seed of the evaluation, 0 or more.
        goals: Goals per task, 1 to 16.
        episodes: How many.

    Returns:
        The seeds in order; more episodes only add to the end.

    Raises:
        UserError: A number is out of range.
    """
    if seed < 0 or not 1 <= goals <= MAX_GOALS or not 1 <= episodes <= MAX_EPISODES:
        raise UserError(
            f"seed={seed}, goals={goals}, episodes={episodes}: the seed must be 0 or more, goals 1 to {MAX_GOALS}, "
            f"episodes 1 to {MAX_EPISODES}"
        )
    first = EVAL_SEED_START + (seed * (MAX_GOALS + 1) + goals) * MAX_EPISODES
    return list(range(first, first + episodes))


def evaluate(
    agent: Agent,
    make_env: Callable[[int], EnvFactory],
    goals: Sequence[int],
    episodes: int,
    seed: int,
    *,
    batch: int = 128,
    counter: TokenCounter | None = None,
    on_turn: OnTurn | None = None,
) -> EvaluationReport:
    """Lets an agent play fixed tasks at each number of goals.

    Args:
        agent: Plays.
        make_env: Gives, for a number of goals, what makes an environment; with ``split="dev"`` or ``"test"``.
        goals: Numbers of goals, 1 to 16.
        episodes: Episodes, each on a task of its own, per number of goals.
        seed: Seed of tasks and noise.
        batch: Episodes played side by side; changes no result.
        counter: Counts the memories (regex counter by default).
        on_turn: Called after each turn, for progress.

    Returns:
        The report.

    Raises:
        UserError: A number is out of range.
    """
    if batch < 1:
        raise UserError(f"batch={batch}: play at least one episode at a time")
    plan = [(n, eval_seeds(seed, n, episodes)) for n in goals]  # checks every number before the first episode is played
    counter = counter if counter is not None else RegexTokenCounter()
    rows, played = [], []
    for n_goals, seeds in plan:
        specs = [EpisodeSpec(f"eval/{n_goals}/{env_seed}", 0, env_seed) for env_seed in seeds]
        done: list[Episode] = []
        with EnvPool(make_env(n_goals)) as envs:
            for start in range(0, len(specs), batch):
                part = specs[start : start + batch]
                done += rollout(agent, envs, part, seed=seed, step=EVAL_STEP, on_turn=on_turn)
            budget = envs.memory_env.budget.name
        rows.append(evaluation_row(agent, n_goals, budget, done, counter))
        played += done
    return EvaluationReport(tuple(rows), seed, tuple(played))


def evaluation_row(
    agent: Agent, goals: int, budget: str, episodes: Sequence[Episode], counter: TokenCounter
) -> EvaluationRow:
    """Sums episodes up.

    Args:
        agent: Who played them.
        goals: Goals per task.
        budget: Name of the budget.
        episodes: All of them, errors included.
        counter: Counts the memories.

    Returns:
        The row; its means are nan if no episode ended without a fault.
    """
    valid = [episode for episode in episodes if episode.error is None]
    turns = [turn for episode in valid for turn in episode.turns]
    costs = [token_costs(episode) for episode in valid]
    f1, em = ([100 * episode.scores[name] for episode in valid] for name in ("f1", "em"))
    return EvaluationRow(
        agent=agent.name,
        context=getattr(getattr(agent, "context", None), "name", ""),
        goals=goals,
        budget=budget,
        episodes=len(valid),
        errors=len(episodes) - len(valid),
        f1=_mean(f1),
        f1_interval=bootstrap_interval(f1),
        em=_mean(em),
        em_interval=bootstrap_interval(em),
        success=_mean([100 * episode.scores["success"] for episode in valid]),
        truncated=_mean([100 * float(episode.truncated) for episode in valid]),
        total_tokens=_mean([cost.total for cost in costs]),
        total_tokens_unique=_mean([cost.total_unique for cost in costs]),
        peak_tokens=_mean([cost.peak for cost in costs]),
        turns=_mean([len(episode.turns) for episode in valid]),
        tool_calls=_mean([int(str(episode.turns[-1].info["tool_calls"])) for episode in valid]),
        format_errors=_mean([sum(turn.format_error is not None for turn in episode.turns) for episode in valid]),
        memory_tokens=_mean([counter.count(turn.memory) for turn in turns if turn.memory_written]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _finite(value: object) -> object:
    """NaN, also inside a tuple, as None."""
    if isinstance(value, tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
