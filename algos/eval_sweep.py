"""The evaluation of several agents, contexts, budgets and numbers of goals: what is played, in which order, and kept.

Invariants:
    * everybody plays the same tasks at the same (environment, seed, goals, index);
    * what has been played is on the disk before the next batch begins, so that an interruption costs one batch;
    * tables are made from the stored episodes, never from what is in memory.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mempo_env.env import MemoryEnv
from mempo_env.errors import UserError
from mempo_env.records import Episode, Turn
from mempo_env.tokens import TokenCounter

from ..agents.base import Agent
from ..agents.eval_notes import noted
from ..agents.eval_rows import RowKey
from ..agents.eval_store import EvalStore
from ..agents.evaluation import eval_seeds, play
from ..agents.overflow import OverflowLosesTurn
from ..agents.policy import LoraPolicy, PromptTooLongError
from ..agents.rollout import EnvPool, EpisodeSpec
from .config import RunConfig
from .noting_scorer import NotingScorer
from .setup import env_factory


@dataclass(frozen=True)
class EvalPlan:
    """What is measured of each agent: all combinations, each a row.

    Attributes:
        contexts: Context strategies.
        budgets: Names of budgets.
        goals: Numbers of goals.
        episodes: Episodes per row.
        seed: Seed of tasks and noise.
        batch: Episodes played side by side; changes no result.
    """

    contexts: tuple[str, ...]
    budgets: tuple[str, ...]
    goals: tuple[int, ...]
    episodes: int
    seed: int = 0
    batch: int = 128

    def __post_init__(self) -> None:
        for name in ("contexts", "budgets", "goals"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"{name} {' '.join(map(str, values))}: name each once")
        if self.batch < 1:
            raise UserError(f"batch={self.batch}: play at least one episode at a time")
        for goals in self.goals:
            eval_seeds(self.seed, goals, self.episodes)  # checks the numbers

    def rows(self, agent: str) -> list[RowKey]:
        """The rows of an agent, in the order in which they are played."""
        return [
            RowKey(agent, context, budget, goals)
            for budget in self.budgets
            for context in self.contexts
            for goals in self.goals
        ]


@dataclass(frozen=True)
class Player:
    """A contestant that is loaded.

    Attributes:
        make: Gives the agent that plays under a context strategy in an environment; called once a row.
        counter: Counts memories, in the environment too.
    """

    make: Callable[[str, MemoryEnv], Agent]
    counter: TokenCounter


@dataclass(frozen=True)
class Contestant:
    """An agent to be measured.

    Attributes:
        name: How tables call it; no two alike.
        settings: What it is, as JSON values: a later call under the same name must repeat them.
        config: The run or preset in whose environment it plays.
        load: Loads it; called once, if a row of it is to be played.
    """

    name: str
    settings: Mapping[str, Any]
    config: RunConfig
    load: Callable[[], Player]


_LINE_EVERY_S = 30.0


class EvalStopped(KeyboardInterrupt):
    """Ctrl-C during an evaluation; says how far it came."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__()
        self.done, self.total = done, total


def measure(contestants: Sequence[Contestant], plan: EvalPlan, store: EvalStore, console: Console) -> None:
    """Plays what is not in the store yet.

    Args:
        contestants: Who.
        plan: What.
        store: Where to.
        console: Where progress is shown.

    Raises:
        EvalStopped: The user stopped it. What was played is stored.
        UserError: An environment cannot be made, or an episode cannot be stored.
    """
    left = {key: _left(plan, store, key) for who in contestants for key in plan.rows(who.name)}
    total = plan.episodes * len(left)
    bar = _EpisodeBar(console, total, {key: len(seeds) for key, seeds in left.items()})
    if bar.done:
        console.print(f"{bar.done} of {total} episodes are there already")
    try:
        with bar, _quiet_policies():
            for who in contestants:
                rows = [key for key in plan.rows(who.name) if left[key]]
                player = who.load() if rows else None
                for key in rows:
                    assert player is not None
                    _play_row(who.config, player, key, plan, left[key], store, bar)
    except KeyboardInterrupt:
        raise EvalStopped(bar.done, total) from None


def _left(plan: EvalPlan, store: EvalStore, key: RowKey) -> list[int]:
    done = store.done(key)
    return [seed for seed in eval_seeds(plan.seed, key.goals, plan.episodes) if seed not in done]


def _play_row(
    config: RunConfig,
    player: Player,
    key: RowKey,
    plan: EvalPlan,
    seeds: Sequence[int],
    store: EvalStore,
    bar: _EpisodeBar,
) -> None:
    config = dataclasses.replace(config, context=key.context, budget=key.budget)
    with EnvPool(env_factory(config, key.goals, config.eval.split, player.counter)) as envs:
        instructions, turns = envs.memory_env.instructions, envs.memory_env.budget.max_turns
        agent = player.make(key.context, envs.memory_env)
        plays, scorer, train = agent, None, config.train
        if isinstance(agent, LoraPolicy):
            plays = OverflowLosesTurn(agent, PromptTooLongError)
            scorer = NotingScorer(agent, instructions, scope=train.score_scope, max_tokens=train.micro_batch_tokens)
        bar.begin(key, turns)
        for episodes in play(plays, envs, key.goals, seeds, plan.seed, batch=plan.batch, on_turn=bar.on_turn):
            scored = episodes if scorer is None else with_quality(episodes, scorer)
            store.append(key, [noted(episode, agent, player.counter, instructions) for episode in scored])
            bar.stored(len(episodes))


def with_quality(episodes: Sequence[Episode], scorer: NotingScorer) -> Sequence[Episode]:
    """The episodes with Q(m) noted at every turn that wrote a memory; those with an error are not scored."""
    valid = [episode for episode in episodes if episode.error is None]
    where = [(episode, turn.memory) for episode in valid for turn in episode.turns if turn.memory_written]
    if not where:
        return episodes
    scorer.memory_quality(where)
    return scorer.annotated(episodes)


class _EpisodeBar:
    """Progress in episodes, with an estimate of what is left; rows with more goals count for more."""

    def __init__(self, console: Console, total: int, left: Mapping[RowKey, int]) -> None:
        self._progress = Progress(
            BarColumn(bar_width=20),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=3600,  # a batch of a slow model takes minutes
            disable=not console.is_terminal,  # a log gets lines instead
        )
        self._console = console
        self._said = time.monotonic()
        self.total, self.done = total, total - sum(left.values())
        work = sum(key.goals * count for key, count in left.items())
        self._task = self._progress.add_task("", total=max(work, 1), note="")
        self._key: RowKey | None = None
        self._turns = 1
        self._stored = 0
        self._running: dict[str, int] = {}

    def begin(self, key: RowKey, turns: int) -> None:
        """A row begins; an episode of it has at most so many turns."""
        self._key, self._turns = key, turns
        self._show()

    def on_turn(self, spec: EpisodeSpec, _: Turn) -> None:
        """A turn was played: a running episode counts in part, up to nine tenths."""
        self._running[spec.group_id] = self._running.get(spec.group_id, 0) + 1
        self._show()

    def stored(self, episodes: int) -> None:
        """A batch is on the disk."""
        assert self._key is not None
        self._running.clear()
        self.done += episodes
        self._stored += episodes * self._key.goals
        self._show()
        if not self._console.is_terminal and time.monotonic() - self._said > _LINE_EVERY_S:
            self._said = time.monotonic()
            task = self._progress.tasks[0]
            left = task.time_remaining
            note = task.fields["note"] if left is None else f"{task.fields['note']}; about {left / 60:.0f} min left"
            self._console.print(note, markup=False, highlight=False)

    def _show(self) -> None:
        assert self._key is not None
        part = sum(min(turns / self._turns, 0.9) for turns in self._running.values()) * self._key.goals
        note = f"{self.done}/{self.total} episodes, {self._key.agent} {self._key.context} {self._key.budget}"
        self._progress.update(self._task, completed=self._stored + part, note=f"{note} {self._key.goals} goals")

    def __enter__(self) -> _EpisodeBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


@contextmanager
def _quiet_policies() -> Iterator[None]:
    """Keeps a policy from logging each tool result that it cuts; the tables count what was lost."""
    log = logging.getLogger("mempo_env.agents.policy")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
