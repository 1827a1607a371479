"""Which questions go into one task: from which data set, of how many hops, of which kind.

Compositions, by name:

    * ``pooled``: any questions of the joined pool, without regard to where they come from (the default);
    * ``mempo``: 2 goals are one question of HotpotQA and one of NQ, 4 to 10 goals are all of HotpotQA. This is what the
      paper (arXiv 2603.00680) says of its data; it does not say in which order the two stand, so the order is drawn;
    * ``mem1``: all goals of a task come from one data set, drawn in proportion to its questions, and a question without
      a question mark gets one. So MEM1 (arXiv 2506.15841) makes its data from NQ and HotpotQA, except that its tasks
      are successive rows of the file and ours are drawn;
    * ``mixed``: as even a share of every data set as the number of goals allows, in an order that is drawn;
    * ``record``: whole tasks as a file has them (MEM1's data), in their own order.

Invariant: a task is a function of the generator, the number of goals, the data set and these settings; what they ask
for is met exactly or refused when the environment is made, never filled up with other questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeGuard, get_args

import numpy as np

from mempo_env.errors import UserError, unknown_name
from mempo_env.records import Task

from .jsonl import Question
from .qa_data import QaDataset
from .records_io import is_list

CompositionName = Literal["pooled", "mempo", "mem1", "mixed", "record"]
Hops = int | Sequence[int] | Mapping[int, int] | None
MEMPO_GOALS = (2, *range(4, 11))
"""Numbers of goals for which the paper says what a task is made of: trained on 2, tested on 2, 4, 6, 8 and 10."""


@dataclass(frozen=True)
class Composition:
    """How tasks are composed.

    Attributes:
        name: See the module.
        least_hops: Questions that rest on fewer gold passages are left out; 0 leaves out none.
        most_hops: Questions that rest on more are left out; 0 leaves out none.
        hop_counts: Pairs (hops, goals): every task has exactly so many goals of so many hops. Empty: any.
        kinds: Kinds of questions to choose from, such as ``bridge``; empty: all.

    Raises:
        UserError: A setting is unknown or the settings contradict each other.
    """

    name: CompositionName = "pooled"
    least_hops: int = 0
    most_hops: int = 0
    hop_counts: tuple[tuple[int, int], ...] = ()
    kinds: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.name not in get_args(CompositionName):
            raise unknown_name("composition", str(self.name), get_args(CompositionName))
        if self.hop_counts and self.name != "pooled":
            raise UserError(f"hops as a mapping fixes every goal of a task and goes with 'pooled', not '{self.name}'")
        if self.name == "record" and self.chooses:
            raise UserError("composition='record' plays whole tasks as they are; drop hops and kinds")

    @classmethod
    def of(cls, name: str = "pooled", hops: Hops = None, kinds: Sequence[str] = ()) -> Composition:
        """Reads the arguments of an environment.

        Args:
            name: Name of a composition.
            hops: A number of hops, the two ends of a range, or a mapping from hops to goals per task.
            kinds: Kinds of questions.

        Returns:
            The composition.

        Raises:
            UserError: An argument is malformed or unknown.
        """
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        if not is_list(kinds) or not all(isinstance(kind, str) and kind for kind in kinds):
            raise UserError(f"kinds={kinds!r} must be a list of kinds of questions, such as ('bridge',)")
        counts: tuple[tuple[int, int], ...] = ()
        if isinstance(hops, Mapping):
            counts = tuple(sorted(hops.items()))
            if not counts or not all(_whole(number) for pair in counts for number in pair):
                raise UserError(f"hops={dict(hops)!r} must map hops to goals per task, whole numbers from 1")
            ends = (0, 0)
        else:
            ends = _ends(hops)
        chosen: CompositionName = name  # type: ignore[assignment]  # checked by the constructor
        return cls(chosen, *ends, counts, tuple(kinds))

    @property
    def chooses(self) -> bool:
        """Whether questions are chosen by hops or kind."""
        return bool(self.least_hops or self.most_hops or self.hop_counts or self.kinds)


class ComposedTasks:
    """Draws tasks of a data set by a composition; what a ``qa`` environment samples from.

    Args:
        dataset: Where the questions are.
        composition: How they are chosen.
        goals: Least and most goals per task; every number in between must be possible.

    Raises:
        UserError: There are no such questions, or too few for one of the numbers of goals.
    """

    def __init__(self, dataset: QaDataset, composition: Composition, goals: tuple[int, int]) -> None:
        self.dataset = dataset
        self.composition = composition
        self._goals = goals
        questions = dataset.questions
        if not composition.chooses:
            self._questions: tuple[Question, ...] = questions
        else:
            self._questions = tuple(question for question in questions if self._fits(question))
            if not self._questions:
                known = sorted({question.hops for question in questions}), sorted({q.kind for q in questions})
                raise UserError(
                    f"no {dataset.split} question has the hops and kinds asked for; there are hops "
                    f"{', '.join(map(str, known[0]))} and kinds {', '.join(known[1])}"
                )
        self._pools = _grouped(self._questions)
        for number in range(goals[0], goals[1] + 1):
            self._check(number)

    def __reduce__(self) -> tuple[object, ...]:
        return ComposedTasks, (self.dataset, self.composition, self._goals)

    def sample(self, rng: np.random.Generator, goals: int) -> Task:
        """Composes a task.

        Args:
            rng: Decides which questions, and their order where the composition leaves it open.
            goals: Number of goals.

        Returns:
            A task without passages of its own.

        Raises:
            UserError: The composition has no such number of goals, or too few questions.
        """
        self._check(goals)
        name = self.composition.name
        if name == "record":
            records = self._records(goals)
            return self.dataset.compose(records[int(rng.integers(len(records)))])
        if name == "mem1":
            pools = [pool for pool in self._pools.values() if len(pool) >= goals]
            sizes = np.array([len(pool) for pool in pools], dtype=np.float64)
            pool = pools[int(rng.choice(len(pools), p=sizes / sizes.sum()))]
            return self.dataset.compose([_with_mark(question) for question in _draw(rng, pool, goals)])
        if name == "pooled" and not self.composition.hop_counts:
            return self.dataset.compose(_draw(rng, self._questions, goals))
        parts = self._parts(rng, goals)
        chosen = [question for pool, count in parts for question in _draw(rng, pool, count)]
        return self.dataset.compose([chosen[int(at)] for at in rng.permutation(len(chosen))])

    def _parts(self, rng: np.random.Generator, goals: int) -> list[tuple[Sequence[Question], int]]:
        """From which questions how many goals are drawn."""
        if self.composition.hop_counts:
            return [(self._of_hops(hops), count) for hops, count in self.composition.hop_counts]
        if self.composition.name == "mempo":
            names = ("hotpotqa", "nq") if goals == 2 else ("hotpotqa",)
            return [(self._pools[name], goals // len(names)) for name in names]
        share, rest = divmod(goals, len(self._pools))
        more = {int(at) for at in rng.choice(len(self._pools), size=rest, replace=False)}
        return [(pool, share + (at in more)) for at, pool in enumerate(self._pools.values())]

    def _fits(self, question: Question) -> bool:
        asked = self.composition
        if asked.kinds and question.kind not in asked.kinds:
            return False
        if asked.hop_counts:
            return question.hops in dict(asked.hop_counts)
        return question.hops >= asked.least_hops and (not asked.most_hops or question.hops <= asked.most_hops)

    def _of_hops(self, hops: int) -> list[Question]:
        return [question for question in self._questions if question.hops == hops]

    def _records(self, goals: int) -> list[list[Question]]:
        records: dict[str, list[Question]] = {}
        for question in self._questions:
            if question.record:
                records.setdefault(question.record, []).append(question)
        return [record for record in records.values() if len(record) == goals]

    def _check(self, goals: int) -> None:
        """Refuses a number of goals that this composition cannot give."""
        name, split = self.composition.name, self.dataset.split
        if name == "record":
            if not self._records(goals):
                raise UserError(f"composition='record': no {split} task of the files has {goals} goals")
            return
        if name == "mempo" and goals not in MEMPO_GOALS:
            raise UserError(
                f"composition='mempo' has 2 goals, or 4 to 10, as in the paper, not {goals}; choose another number, or "
                "composition='mixed'"
            )
        if self.composition.hop_counts and sum(count for _, count in self.composition.hop_counts) != goals:
            raise UserError(f"hops={dict(self.composition.hop_counts)} must name as many goals as there are: {goals}")
        if name == "mempo":
            for wanted in ("hotpotqa", "nq") if goals == 2 else ("hotpotqa",):
                if wanted not in self._pools:
                    raise UserError(
                        f"composition='mempo' of {goals} goals needs '{wanted}' among the data, which is "
                        f"{', '.join(self._pools)}; a folder's name, or that of its file, says which data set it is"
                    )
        for what, have, need in self._needs(goals):
            if have < need:
                raise UserError(f"{need} goals from {have} {split} questions{what}; ask fewer goals")

    def _needs(self, goals: int) -> Iterable[tuple[str, int, int]]:
        """``(which questions, how many there are, how many a task may need)``."""
        name = self.composition.name
        if self.composition.hop_counts:
            for hops, count in self.composition.hop_counts:
                yield f" of {hops} hops", len(self._of_hops(hops)), count
        elif name == "mempo":
            for pool in ("hotpotqa", "nq") if goals == 2 else ("hotpotqa",):
                yield f" of {pool}", len(self._pools[pool]), 1 if goals == 2 else goals
        elif name == "mixed":
            for pool, questions in self._pools.items():
                yield f" of {pool}", len(questions), -(-goals // len(self._pools))
        elif name == "mem1":
            yield " of one data set", max(map(len, self._pools.values())), goals
        else:
            yield "", len(self._questions), goals


def _grouped(questions: Sequence[Question]) -> dict[str, list[Question]]:
    pools: dict[str, list[Question]] = {}
    for question in questions:
        pools.setdefault(question.dataset, []).append(question)
    return pools


def _draw(rng: np.random.Generator, pool: Sequence[Question], count: int) -> list[Question]:
    return [pool[int(at)] for at in rng.choice(len(pool), size=count, replace=False)]


def _with_mark(question: Question) -> Question:
    """MEM1's code appends a question mark to a question that does not end with one."""
    return question if question.text.endswith("?") else replace(question, text=f"{question.text}?")


def _ends(hops: object) -> tuple[int, int]:
    if hops is None or hops == ():
        return 0, 0
    given = list(hops) if is_list(hops) else [hops, hops]
    ends = [end for end in (given * 2 if len(given) == 1 else given) if _whole(end)]
    if len(ends) != 2 or len(given) > 2 or ends[0] > ends[1]:
        raise UserError(f"hops={hops!r} must be a whole number from 1, two of them (least, most), or a mapping")
    return ends[0], ends[1]


def _whole(number: object) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1
