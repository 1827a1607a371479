"""Scores of answers (EM, F1 as SQuAD normalises them) and costs in tokens (TT, TT_unique, PT).

Invariant: an episode with a wrong number of answers scores 0 on every goal; all scores lie in [0, 1]. Token costs count
every call of the policy, failed episodes too.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .records import Episode, Goal

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces (Rajpurkar et al. 2016, evaluation script).

    >>> normalise_answer("The  Red-fox!")
    'redfox'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """1.0 if the normalised strings are equal, else 0.0.

    Where nothing of the gold answer is left (``A``, ``*``), the strings as written decide, so that an empty answer
    never counts as right.
    """
    normal = normalise_answer(gold)
    if not normal:
        return float(answer.strip().lower() == gold.strip().lower() != "")
    return float(normalise_answer(answer) == normal)


def f1_score(answer: str, gold: str) -> float:
    """Token F1 of the normalised strings; yes, no and noanswer only count as a whole (HotpotQA's script).

    >>> f1_score("red fox", "the fox")
    0.6666666666666666
    """
    ours, theirs = normalise_answer(answer), normalise_answer(gold)
    if not theirs:
        return exact_match(answer, gold)
    if ours != theirs and {ours, theirs} & {"yes", "no", "noanswer"}:
        return 0.0
    common = sum((Counter(ours.split()) & Counter(theirs.split())).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(ours.split()), common / len(theirs.split())
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class AnswerScores:
    """Scores of an answered task: per goal, and their means."""

    em_per_goal: tuple[float, ...]
    f1_per_goal: tuple[float, ...]

    @property
    def em(self) -> float:
        """Share of goals right."""
        return sum(self.em_per_goal) / len(self.em_per_goal)

    @property
    def f1(self) -> float:
        """Mean F1 over goals."""
        return sum(self.f1_per_goal) / len(self.f1_per_goal)

    @property
    def success(self) -> bool:
        """Every goal right."""
        return all(score == 1.0 for score in self.em_per_goal)


def score_answers(answers: Sequence[str], goals: Sequence[Goal]) -> AnswerScores:
    """Scores answers against goals, best alias per goal.

    Args:
        answers: As the agent gave them; a number other than ``len(goals)`` scores 0 throughout.
        goals: The task's goals.

    Returns:
        Scores per goal.
    """
    if len(answers) != len(goals):
        zeros = (0.0,) * len(goals)
        return AnswerScores(zeros, zeros)
    pairs = list(zip(answers, goals, strict=True))
    return AnswerScores(
        tuple(max(exact_match(answer, gold) for gold in goal.answers) for answer, goal in pairs),
        tuple(max(f1_score(answer, gold) for gold in goal.answers) for answer, goal in pairs),
    )


@dataclass(frozen=True)
class TokenCosts:
    """Costs of one episode in tokens.

    Attributes:
        total: TT, sum over calls of input + output.
        total_unique: TT_unique, each token once: the output of all calls, and of each input what the call before did
            not already hold as a common prefix.
        peak: PT, max over calls of input + output.
    """

    total: int
    total_unique: int
    peak: int


def token_costs(episode: Episode) -> TokenCosts:
    """Token costs of an episode; ``total_unique`` equals ``total`` for agents that leave no ids."""
    calls = [turn.n_prompt + turn.n_output for turn in episode.turns]
    unique, seen = 0, tuple[int, ...]()
    for turn in episode.turns:
        shared = 0
        for ours, theirs in zip(turn.prompt_ids, seen, strict=False):
            if ours != theirs:
                break
            shared += 1
        unique += turn.n_prompt + turn.n_output - shared
        seen = turn.prompt_ids + turn.output_ids
    return TokenCosts(sum(calls), unique, max(calls, default=0))


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: One number per episode.
        level: Coverage.
        draws: Resamples.
        seed: Seed of the resampling.

    Returns:
        Lower and upper bound; ``(nan, nan)`` for no values.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = data[rng.integers(0, data.size, size=(draws, data.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_ratio_interval(
    above: Sequence[float], below: Sequence[float], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of ``sum(above) / sum(below)``, resampling the pairs.

    For a mean over parts of episodes (memories, calls), or a share of costs, where the episode is what was drawn.

    Args:
        above: One number per episode, such as the sum over its memories.
        below: One number per episode, such as how many memories it has.
        level: Coverage.
        draws: Resamples.
        seed: Seed of the resampling.

    Returns:
        Lower and upper bound; ``(nan, nan)`` where there is nothing to divide by.
    """
    top, bottom = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if top.shape != bottom.shape:
        raise ValueError(f"{top.size} numbers above and {bottom.size} below; each episode needs one of each")
    if not bottom.sum() > 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, top.size, size=(draws, top.size))
    sums = bottom[chosen].sum(axis=1)
    ratios = top[chosen].sum(axis=1)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
