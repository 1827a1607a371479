"""The records that flow from environment to learner: the only currency of the project.

Invariant: where a policy of ours sampled a turn, ``prompt_ids + output_ids`` is exactly what the sampler saw and
produced. Nothing is decoded and tokenised again. ``logprobs`` and ``segments`` have one entry per output token. A turn
from a text-only agent (expert, person, chat server) leaves the id fields empty; learners refuse it, imitation tokenises
it once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .actions import Action, FormatError
from .errors import UserError

MIN_GOALS, MAX_GOALS = 1, 16
"""Fewest and most goals of a task."""
Observation = dict[str, str]
"""What the agent is given at a turn: ``task``, ``memory``, ``tool_result``, ``budget``."""


def goal_range(goals: object) -> tuple[int, int]:
    """Fewest and most goals of a task, as an argument gives them.

    Args:
        goals: A whole number, or the two ends of a range.

    Returns:
        Both ends.

    Raises:
        UserError: It is neither, or leaves 1 to 16.
    """
    given = list(goals) if isinstance(goals, Sequence) and not isinstance(goals, str) else [goals, goals]
    ends = [int(end) for end in given if isinstance(end, int | np.integer) and not isinstance(end, bool)]
    if len(given) != 2 or len(ends) != 2:
        raise UserError(f"goals must be a whole number or two, (lowest, highest), not {goals!r}")
    low, high = ends
    if not MIN_GOALS <= low <= high <= MAX_GOALS:
        raise UserError(f"goals must lie between {MIN_GOALS} and {MAX_GOALS}, lowest first, not {goals!r}")
    return low, high


@dataclass(frozen=True)
class Passage:
    """A unit of retrieval."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Evidence:
    """One thing to find out on the way to an answer, as a scripted expert needs it.

    Attributes:
        query: What to search for.
        note: What to write down once the passage was seen.
        passage_id: The gold passage that holds it.
        after: Index (in the goal's evidence) of what must be known before ``query`` can be asked; -1 for nothing.
    """

    query: str
    note: str
    passage_id: str
    after: int = -1


@dataclass(frozen=True)
class Goal:
    """One question with its gold answers; the first is the primary one, the others are aliases."""

    question: str
    answers: tuple[str, ...]
    kind: str = "one-hop"
    evidence: tuple[Evidence, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        answers: object = self.answers  # callers without a type checker write "Paris", which is a sequence of letters
        if not isinstance(answers, tuple) or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(f"goal {self.id or self.question!r}: answers is a tuple of strings, such as ('Paris',)")
        if not self.answers:
            raise ValueError(f"goal {self.id or self.question!r} has no gold answer")
        if ";" in self.answers[0]:
            raise ValueError(f"the primary answer {self.answers[0]!r} contains ';', which separates answers")


@dataclass(frozen=True)
class Task:
    """What one episode asks: 1 to 16 goals, joined in MEM1's layout.

    Attributes:
        goals: The questions in the order in which they must be answered.
        id: Stable name of the task.
        passages: The corpus of this task alone, where the world is drawn per task; empty where a corpus is shared.
    """

    goals: tuple[Goal, ...]
    id: str = ""
    passages: tuple[Passage, ...] = ()

    def __post_init__(self) -> None:
        if not MIN_GOALS <= len(self.goals) <= MAX_GOALS:
            raise ValueError(f"task {self.id!r} has {len(self.goals)} goals; a task has {MIN_GOALS} to {MAX_GOALS}")
        object.__setattr__(self, "goals", tuple(self.goals))
        object.__setattr__(self, "passages", tuple(self.passages))

    @property
    def text(self) -> str:
        """The questions, joined by ``"; "`` (MEM1, arXiv 2506.15841)."""
        return "; ".join(goal.question for goal in self.goals)


@dataclass(frozen=True)
class Turn:
    """One call of the policy and the environment step that followed.

    Attributes:
        observation: What the environment showed before the call.
        text: The whole output.
        action: What the environment made of it.
        reward: Reward of this step.
        reward_components: The parts of ``reward``; they sum to it.
        memory: The memory stored after this step.
        memory_written: Whether this turn committed a memory.
        n_prompt: Input length in tokens.
        n_output: Output length in tokens.
        prompt_ids: Ids the sampler saw.
        output_ids: Ids the sampler produced.
        logprobs: The sampler's log-probability of each output id.
        segments: One ``Segment`` per output id.
        info: What the environment reported at this step.
    """

    observation: Observation
    text: str
    action: Action
    reward: float
    reward_components: dict[str, float]
    memory: str
    memory_written: bool
    n_prompt: int
    n_output: int
    prompt_ids: tuple[int, ...] = ()
    output_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    segments: tuple[int, ...] = ()
    info: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.output_ids)
        if len(self.logprobs) not in (0, n) or len(self.segments) != n:
            raise ValueError(
                f"{n} output ids with {len(self.logprobs)} log-probs and {len(self.segments)} segments; "
                "each output id needs one of each"
            )

    @property
    def has_ids(self) -> bool:
        """Whether a policy of ours sampled this turn, so that learners accept it."""
        return bool(self.prompt_ids) and bool(self.output_ids)

    @property
    def format_error(self) -> FormatError | None:
        """The format error of this turn, if it was one."""
        return self.action if isinstance(self.action, FormatError) else None


@dataclass(frozen=True)
class Episode:
    """The turns of one task, from reset to termination or truncation.

    Attributes:
        turns: In order.
        task: What was asked.
        group_id: Episodes of one task sampled to be compared share it.
        rollout_id: Which of the group this is.
        seed: Seed of the environment's reset: the episode replays from it.
        outcome: Outcome reward R^T of the last turn (without format and hook parts).
        terminated: The agent answered.
        truncated: A turn limit or a fault ended it.
        error: What failed outside the agent; such an episode is left out of baselines and loss.
        scores: ``em`` and ``f1`` in [0, 1], ``success`` 0 or 1.
    """

    turns: tuple[Turn, ...]
    task: Task
    group_id: str
    rollout_id: int
    seed: int
    outcome: float
    terminated: bool
    truncated: bool
    error: str | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def episode_return(self) -> float:
        """Sum of the turns' rewards, the number every learner compares."""
        return float(sum(turn.reward for turn in self.turns))

    @property
    def n_output(self) -> int:
        """Output tokens of the whole episode, |tau| of the objective."""
        return sum(turn.n_output for turn in self.turns)

    def replace(self, **changes: object) -> Episode:
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


Group = tuple[Episode, ...]
"""The episodes sampled for one task, ordered by ``rollout_id``."""
