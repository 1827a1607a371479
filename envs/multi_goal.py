"""``MemPO-MultiGoal-v0``: several questions at once, a search tool, a calculator, and only the memory to carry along.

Invariant: what an episode asks is a function of the reset seed and the environment's arguments; two environments made
with equal arguments ask the same for the same seed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mempo_env.env import MemoryEnv
from mempo_env.errors import UserError, unknown_name
from mempo_env.plugins import Registry
from mempo_env.records import Task
from mempo_env.tools import Tool

from .calculator import Calculator
from .closed_world import SPLITS, ClosedWorldConfig, closed_world_vocabulary, sample_closed_world_task
from .composition import ComposedTasks, Composition, Hops
from .qa_data import QaDataset, shared_dataset
from .retrieval import Bm25Index, task_index
from .search_tool import SearchTool


class TaskSource(Protocol):
    """Where tasks and passages come from; what a factory in ``DATASETS`` makes."""

    @property
    def index(self) -> Bm25Index | None:
        """The corpus for tasks without passages of their own; None where every task has its own."""
        ...

    @property
    def titles(self) -> bool:
        """Whether search results show titles."""
        ...

    def sample(self, rng: np.random.Generator, goals: int) -> Task:
        """Draws a task from ``rng`` alone."""
        ...


@dataclass(frozen=True)
class _ClosedWorld:
    config: ClosedWorldConfig
    split: str
    index: Bm25Index | None = None
    titles: bool = False

    def sample(self, rng: np.random.Generator, goals: int) -> Task:
        return sample_closed_world_task(rng, goals, self.config, self.split)


@dataclass(frozen=True)
class _Qa:
    dataset: QaDataset
    composed: ComposedTasks | None = None
    titles: bool = True

    @property
    def index(self) -> Bm25Index:
        return self.dataset.index

    def sample(self, rng: np.random.Generator, goals: int) -> Task:
        return (self.composed or self.dataset).sample(rng, goals)


def closed_world_source(data: Sequence[str | Path], split: str, world: ClosedWorldConfig | None) -> TaskSource:
    """Tasks drawn afresh.

    Args:
        data: Must be empty.
        split: ``train``, ``dev`` or ``test``.
        world: How worlds are drawn.

    Raises:
        UserError: A data folder was given, or the split is unknown.
    """
    if data:
        raise UserError("the closed-world dataset is generated and takes no data folder; drop data or use dataset='qa'")
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return _ClosedWorld(world or ClosedWorldConfig(), split)


def qa_source(data: Sequence[str | Path], split: str, world: ClosedWorldConfig | None) -> TaskSource:
    """Tasks composed from files.

    Args:
        data: One folder, file or name on the hub at least; see ``QaDataset``.
        split: ``train``, ``dev`` or ``test``.
        world: Must be None.

    Raises:
        UserError: No folder or a world was given, or a file cannot be used.
    """
    if not data:
        raise UserError("dataset='qa' needs data: a folder, or several, with corpus.jsonl and questions.SPLIT.jsonl")
    if world is not None:
        raise UserError("world configures the closed-world dataset only; drop it or use dataset='closed-world'")
    return _Qa(shared_dataset(data, split))


SourceFactory = Callable[[Sequence[str | Path], str, ClosedWorldConfig | None], TaskSource]
DATASETS = Registry[SourceFactory]("dataset", "mempo_env.datasets")
"""Datasets by name: factories ``(data, split, world) -> TaskSource``; or ``package.module:name``."""
DATASETS.register("closed-world", "mempo_env.envs.multi_goal:closed_world_source")
DATASETS.register("qa", "mempo_env.envs.multi_goal:qa_source")
_factory = functools.cache(DATASETS.get)  # a look at the installed entry points takes milliseconds


class MultiGoalEnv(MemoryEnv):
    """Answers 1 to 16 questions in one episode with a search tool and a calculator.

    Args:
        goals: Number of questions, or the two ends of a range to draw it from at every reset.
        dataset: ``"closed-world"`` (drawn afresh for every task) or ``"qa"`` (files), or your own, see ``DATASETS``.
        data: Folder of a ``qa`` data set, its files, or its name on the hub (``hub:hotpotqa``); several are joined.
        split: ``"train"``, ``"dev"`` or ``"test"``; for ``qa`` whatever ``questions.SPLIT.jsonl`` there is.
        composition: For ``qa``: which questions go into one task: ``"pooled"``, ``"mempo"``, ``"mem1"``, ``"mixed"`` or
            ``"record"``, see ``mempo_env.envs.composition``.
        hops: For ``qa``: how many gold passages a question rests on: a number, the two ends of a range, or a mapping
            from hops to the goals of every task.
        kinds: For ``qa``: kinds of questions to choose from, such as ``("bridge",)``.
        world: How closed worlds are drawn: a ``ClosedWorldConfig`` or a mapping of its fields.
        topk: Passages shown per query.
        max_passage_tokens: Longest text shown of a passage.
        **memory_env: Arguments of ``mempo_env.env.MemoryEnv``: ``budget``, ``outcome``, ``memory``, ``reward_hook``, ..

    Raises:
        UserError: An argument is unknown or out of range, or a data file is missing or malformed.
    """

    expert = "mempo_env.agents.expert:ExpertAgent"

    def __init__(
        self,
        goals: int | Sequence[int] = 2,
        dataset: str = "closed-world",
        data: str | Path | Sequence[str | Path] | None = None,
        split: str = "train",
        world: ClosedWorldConfig | Mapping[str, Any] | None = None,
        topk: int = 1,
        max_passage_tokens: int = 120,
        composition: str = "pooled",
        hops: Hops = None,
        kinds: Sequence[str] = (),
        **memory_env: Any,
    ) -> None:
        super().__init__(goals=goals, split=split, **memory_env)
        for name, value in (("topk", topk), ("max_passage_tokens", max_passage_tokens)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} must be a whole number from 1, not {value!r}")
        if data is None:
            folders: tuple[str | Path, ...] = ()
        else:
            folders = (data,) if isinstance(data, str | Path) else tuple(data)
        asked = Composition.of(composition, hops, kinds)
        source = _factory(dataset)(folders, split, _world(world))
        self.source = (
            source if asked == Composition() else _composed(source, dataset, asked, (self.min_goals, self.max_goals))
        )
        self._search = SearchTool(
            queries_per_call=self.budget.queries_per_call,
            topk=topk,
            max_passage_tokens=max_passage_tokens,
            token_counter=self.token_counter,
            titles=self.source.titles,
        )
        self._tools: tuple[Tool, ...] = (self._search, Calculator())

    @property
    def tools(self) -> Sequence[Tool]:
        """Search and calculator."""
        return self._tools

    def sample_task(self, rng: np.random.Generator) -> Task:
        """Draws the number of goals, where it is a range, and a task of that many."""
        return self.source.sample(rng, self.draw_goals(rng))

    @property
    def vocabulary(self) -> Sequence[str]:
        """The closed world's words; a model built in place reads other data letter by letter."""
        return closed_world_vocabulary()

    def prepare(self, task: Task) -> None:
        """Points the search tool at the task's own passages, or at the shared corpus.

        Raises:
            UserError: There is neither.
        """
        index = task_index(task.passages) if task.passages else self.source.index
        if index is None:
            raise UserError("this task has no passages and this dataset no shared corpus; give Task.passages")
        self._search.index = index

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._task is not None:
            self.prepare(self._task)


def _composed(source: TaskSource, dataset: str, composition: Composition, goals: tuple[int, int]) -> TaskSource:
    if not isinstance(source, _Qa):
        raise UserError(
            f"composition, hops and kinds choose among the questions of dataset='qa'; dataset='{dataset}' draws its "
            "own tasks (for closed worlds see world: two_hop_share, comparison_share)"
        )
    return replace(source, composed=ComposedTasks(source.dataset, composition, goals))


def _world(world: ClosedWorldConfig | Mapping[str, Any] | None) -> ClosedWorldConfig | None:
    if world is None or isinstance(world, ClosedWorldConfig):
        return world
    if unknown := set(world) - set(ClosedWorldConfig.__dataclass_fields__):
        raise unknown_name("world setting", sorted(unknown)[0], ClosedWorldConfig.__dataclass_fields__)
    return ClosedWorldConfig(**world)
