"""Evaluation: an agent plays fixed, unseen tasks at several numbers of goals; scores and costs with intervals.

Tasks never collide with training: the environments are made with another ``split``, whose tasks are disjoint from the
training split's by construction, and the reset seeds start at ``EVAL_SEED_START``, above every training seed.

Invariants:
    * the tasks are a function of (seed, goals, index), the same for every agent that is compared;
    * results depend on neither the batch nor where an evaluation was interrupted.

What a row is made of stands in ``eval_rows``, how it is shown in ``eval_tables``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from mempo_env.errors import UserError
from mempo_env.records import Episode
from mempo_env.tokens import RegexTokenCounter, TokenCounter

from .base import Agent
from .eval_rows import EvaluationRow, evaluation_row, finite
from .eval_tables import rows_table
from .rollout import EnvFactory, EnvPool, EpisodeSpec, OnTurn, rollout

EVAL_SEED_START = 2**32
"""Evaluation seeds are at or above this number, training seeds below it."""
MAX_EPISODES = 2**20
MAX_GOALS = 16
EVAL_STEP = -1
"""The training step in the noise of evaluation: no step of training has it."""


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
        rows = [finite(dataclasses.asdict(row)) for row in self.rows]
        return json.dumps({"seed": self.seed, "rows": rows}, indent=2, allow_nan=False)

    def table(self, title: str = "Evaluation") -> Table:
        """A table for the terminal."""
        return report_table([self], title)


def report_table(reports: Sequence[EvaluationReport], title: str = "Evaluation") -> Table:
    """One table over several reports, sorted by the number of goals, so that agents stand beside each other."""
    return rows_table([row for report in reports for row in report.rows], title)


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
        with EnvPool(make_env(n_goals)) as envs:
            batches = play(agent, envs, n_goals, seeds, seed, batch=batch, on_turn=on_turn)
            done = [episode for episodes in batches for episode in episodes]
            budget = envs.memory_env.budget.name
        rows.append(evaluation_row(agent, n_goals, budget, done, counter))
        played += done
    return EvaluationReport(tuple(rows), seed, tuple(played))


def play(
    agent: Agent,
    envs: EnvPool,
    goals: int,
    seeds: Sequence[int],
    seed: int,
    *,
    batch: int = 128,
    on_turn: OnTurn | None = None,
) -> Iterator[list[Episode]]:
    """Plays the tasks of some reset seeds, a batch at a time.

    Args:
        agent: Plays.
        envs: Environments with this number of goals.
        goals: It names the episodes, and so keys the agent's noise.
        seeds: From ``eval_seeds``; any part of them, in any order.
        seed: Seed of the evaluation.
        batch: Episodes played side by side; changes no result.
        on_turn: Called after each turn.

    Yields:
        The episodes of a batch, in the order of the seeds.
    """
    specs = [EpisodeSpec(f"eval/{goals}/{env_seed}", 0, env_seed) for env_seed in seeds]
    for start in range(0, len(specs), batch):
        yield rollout(agent, envs, specs[start : start + batch], seed=seed, step=EVAL_STEP, on_turn=on_turn)
