"""Reward of a turn: outcome at the last turn, format, and the step reward hook.

Invariant: ``reward == sum(reward_components.values())`` at every step. The hook is a pure, picklable function of a
``TurnContext``; what it returns enters the episode's return and so the advantages of every learner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .actions import Action
from .errors import UserError
from .metrics import AnswerScores
from .records import Task

OutcomeMode = Literal["binary", "fraction", "f1"]


@dataclass(frozen=True)
class TurnContext:
    """What a step reward hook may look at.

    Attributes:
        task: What the episode asks, gold answers included.
        turn: Index of this turn, from 0.
        memory_before: Memory the agent was shown.
        memory: Memory stored after this turn.
        tool_result_before: Tool result the agent was shown.
        tool_result: Tool result of this turn's call (empty after an answer).
        action: This turn's action.
        done: Whether the episode ends with this turn.
    """

    task: Task
    turn: int
    memory_before: str
    memory: str
    tool_result_before: str
    tool_result: str
    action: Action
    done: bool


RewardHook = Callable[[TurnContext], "float | dict[str, float]"]


def outcome_reward(mode: OutcomeMode, scores: AnswerScores, format_errors: int) -> float:
    """Outcome reward R^T of an answered episode.

    Args:
        mode: ``binary``: every goal right and no format error, 1, else 0 (both sources' setting). ``fraction``: share
            of goals right. ``f1``: mean F1 over the goals.
        scores: Scores of the answers.
        format_errors: Format errors of the episode so far.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: The mode is unknown.
    """
    if mode == "binary":
        return float(scores.success and format_errors == 0)
    if mode == "fraction":
        return scores.em
    if mode == "f1":
        return scores.f1
    raise ValueError(f"unknown outcome '{mode}'; use binary, fraction or f1")


def hook_components(value: float | dict[str, float]) -> dict[str, float]:
    """Names the parts of what a hook returned; a bare number is called ``hook``.

    Raises:
        ValueError: A part is not finite.
    """
    parts = {f"hook/{name}": part for name, part in value.items()} if isinstance(value, dict) else {"hook": value}
    if not all(math.isfinite(part) for part in parts.values()):
        raise ValueError(f"the reward hook returned {value!r}; every part must be a finite number")
    return {name: float(part) for name, part in parts.items()}


def check_reward(reward: float, info: Mapping[str, Any]) -> None:
    """Refuses a reward that is not the sum of its parts: a wrapper changed the one and not the others.

    Args:
        reward: What a step returned.
        info: What it returned beside it.

    Raises:
        UserError: The parts are missing or do not sum to the reward; says what to use instead.
    """
    parts = info.get("reward_components")
    if parts is None or not math.isclose(reward, sum(parts.values()), rel_tol=1e-6, abs_tol=1e-9):
        raise UserError(
            f"a wrapper changed the reward to {reward} and left its parts, info['reward_components'], at {parts}; use "
            "mempo_env.ScaleReward or a reward_hook in its place"
        )
