"""What an evaluation does where a prompt is longer than the model takes: the turn is lost, and the episode goes on.

Full history grows until it no longer fits. In training that is a mistake in the settings and ends the run; in a
comparison of context strategies it is a result. Left out as a fault, or ended with the run, it would flatter history.

Invariant: nothing is cut, no call is made and no token is counted for such a turn; its empty output is a format error
as any other, so that the episode ends without an answer and scores 0. Its ``stop_reason`` is ``overflow``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mempo_env.errors import UserError

from .base import TurnOutput, TurnRequest
from .contexts import ContextStrategy

OVERFLOW = "overflow"


class Prompting(Protocol):
    """An agent that can say whether it could be prompted: a policy."""

    name: str
    context: ContextStrategy

    def act(self, requests: Sequence[TurnRequest]) -> list[TurnOutput]:
        """Answers each request; raises ``too_long`` if one has too long a prompt."""
        ...

    def prompt_ids(self, request: TurnRequest) -> tuple[int, ...]:
        """The prompt of a request; raises ``too_long`` if it is too long."""
        ...


class OverflowLosesTurn:
    """Plays as an agent does, except that a prompt that is too long costs its own turn and not the whole batch.

    Args:
        agent: Who plays; must refuse a prompt before it samples anything.
        too_long: What it raises.
    """

    def __init__(self, agent: Prompting, too_long: type[UserError]) -> None:
        self.agent = agent
        self.too_long = too_long
        self.name = agent.name

    @property
    def context(self) -> ContextStrategy:
        """The agent's."""
        return self.agent.context

    def act(self, requests: Sequence[TurnRequest]) -> list[TurnOutput]:
        """Answers each request, in order."""
        try:
            return self.agent.act(requests)
        except self.too_long:
            fits = [self._fits(request) for request in requests]
        some = [request for request, fit in zip(requests, fits, strict=True) if fit]
        outputs = iter(self.agent.act(some) if some else [])
        return [next(outputs) if fit else TurnOutput("", 0, 0, stop_reason=OVERFLOW) for fit in fits]

    def _fits(self, request: TurnRequest) -> bool:
        try:
            self.agent.prompt_ids(request)
        except self.too_long:
            return False
        return True
