"""What scripted experts share: a memory of notes, flaws, and how an environment's own expert is found.

An expert writes real memories: at every turn it may rely on the memory and the tool result it is shown, as a policy
must. The gold evidence of the task only tells it what is worth asking and noting.

Invariants:
    * ``write`` is a function of the request (with noise keyed by its slot, where there are flaws);
    * the action is decided from the notes just written, never from notes that a flaw removed.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any

from mempo_env.budgets import Budget, get_budget
from mempo_env.env import MemoryEnv
from mempo_env.errors import UserError
from mempo_env.plugins import Registry
from mempo_env.records import Task
from mempo_env.tokens import RegexTokenCounter, TokenCounter

from .base import TurnRequest
from .contexts import ContextStrategy
from .notes import SEPARATOR
from .textual import TextAgent, Tokens

EXPERTS = Registry[type["ScriptedExpert"]]("expert", "mempo_env.experts")
"""Looks up ``MemoryEnv.expert``."""


@dataclass(frozen=True)
class Flaws:
    """What an imperfect demonstrator gets wrong, as probabilities.

    Attributes:
        forget: Each note that would be remembered, new or carried on, is dropped, at every rewrite.
        garble: Its value is replaced by another word that was seen, at every rewrite.
        bloat: An irrelevant sentence of the result is kept too, at every rewrite.

    Raises:
        UserError: A probability is outside [0, 1].
    """

    forget: float = 0.0
    garble: float = 0.0
    bloat: float = 0.0

    def __post_init__(self) -> None:
        for name, value in self.rates():
            if not 0 <= value <= 1:
                raise UserError(f"{name}={value} is a probability: choose a number from 0 to 1")

    def rates(self) -> list[tuple[str, float]]:
        """Names and values of all flaws."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


class ScriptedExpert(TextAgent):
    """Base of the experts: an author supplies ``remember``, ``decide`` and ``answers``.

    Args:
        budget: The environment's budget.
        think: Whether to write a short true plan in ``<think>``.
        flaws: What it gets wrong; with any of them it is called a demonstrator.
        tokens: Prices inputs and outputs (regex counter by default).
        context: What a policy in its place would be shown.
        memory_counter: Counts the memory as the environment does (regex counter by default).
    """

    def __init__(
        self,
        budget: str | Budget = "brief",
        *,
        think: bool = False,
        flaws: Flaws | None = None,
        tokens: Tokens | None = None,
        context: ContextStrategy | None = None,
        memory_counter: TokenCounter | None = None,
    ) -> None:
        self.budget = get_budget(budget)
        self.think = think
        self.flaws = flaws if flaws is not None else Flaws()
        self.memory_counter = memory_counter if memory_counter is not None else RegexTokenCounter()
        wrong = ", ".join(f"{name}={value:g}" for name, value in self.flaws.rates() if value)
        super().__init__(f"demonstrator({wrong})" if wrong else "expert", tokens, context)

    def write(self, request: TurnRequest) -> str:
        """Memory, plan if wanted, and a tool call or the answer."""
        notes = self.remember(request)
        plan, action = self.decide(request, notes)
        thought = f"<think>{plan}</think>" if self.think else ""
        return f"<mem>{SEPARATOR.join(notes)}</mem>{thought}{action}"

    @abstractmethod
    def remember(self, request: TurnRequest) -> list[str]:
        """The notes of the new memory, flaws included, that fit the budget (``notes.fit_notes``)."""

    @abstractmethod
    def decide(self, request: TurnRequest, notes: list[str]) -> tuple[str, str]:
        """A plan in words, and the action block, ``<tool_call>..</tool_call>`` or ``<answer>..</answer>``."""

    @abstractmethod
    def answers(self, task: Task, memory: str) -> str:
        """What it would answer from a memory alone, joined by ``"; "``: for imitation of the prompt of Q(m)."""


def make_expert(env: MemoryEnv, **settings: Any) -> ScriptedExpert:
    """The scripted expert of an environment, with its budget.

    Args:
        env: The environment, without wrappers.
        **settings: Arguments of the expert, such as ``flaws``, ``tokens``, ``context``, ``memory_counter``.

    Returns:
        The expert.

    Raises:
        UserError: The environment names none, or it cannot be imported.
    """
    if not env.expert:
        raise UserError(
            f"{type(env).__name__} has no scripted expert: set its `expert` to 'package.module:Class', a "
            "ScriptedExpert, or do without a warm start (--warm-start.target none) and ceilings"
        )
    cls = EXPERTS.get(env.expert)
    if not (isinstance(cls, type) and issubclass(cls, ScriptedExpert)):
        raise UserError(f"{env.expert} is no subclass of mempo_env.agents.scripted_expert.ScriptedExpert")
    return cls(env.budget, **settings)
