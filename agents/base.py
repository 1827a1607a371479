"""What an agent is to the rollout loop: requests in, outputs out, in the same order.

Invariant: ``act`` answers every request, in order; an output that carries ids carries exactly what the sampler saw and
produced. A ``SlotKey`` names a turn across the whole run, and all randomness of that turn is derived from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mempo_env.prompt_styles import OWN, PromptStyle
from mempo_env.records import Observation, Task, Turn


@dataclass(frozen=True)
class SlotKey:
    """Names one turn: noise is keyed by it, so no sample depends on who else is in the batch."""

    seed: int
    step: int
    group_id: str
    rollout_id: int
    turn: int


@dataclass(frozen=True)
class TurnRequest:
    """What an agent is given for one turn.

    Attributes:
        key: Names the turn.
        observation: What the environment showed.
        instructions: The environment's system message.
        history: Earlier turns of this episode (for context strategies that keep them).
        task: The task with its gold answers: for scripted agents only; policies never look at it.
        style: How a context strategy words it; set by the agent (see ``wording``).
    """

    key: SlotKey
    observation: Observation
    instructions: str
    history: tuple[Turn, ...]
    task: Task
    style: PromptStyle = OWN


@dataclass(frozen=True)
class TurnOutput:
    """What an agent gives back. The id fields are empty for text-only agents.

    Attributes:
        text: The whole output, in the environment's grammar.
        n_prompt: Input tokens.
        n_output: Output tokens.
        prompt_ids: Ids the sampler saw.
        output_ids: Ids the sampler produced, the end-of-turn token included where it was sampled.
        logprobs: The sampler's log-probability per output id.
        segments: ``Segment`` per output id.
        stop_reason: ``action`` (an action block closed), ``eos``, ``length``, or ``""`` where there is no model.
        weights_version: Which weights sampled it (optimizer steps taken).
        error: A fault outside the agent (a server failed for good): the episode ends as an error, without this turn.
        raw_text: What was sampled, where a prompt style had to be read into the environment's grammar; the ids and
            segments are of this text.
    """

    text: str
    n_prompt: int
    n_output: int
    prompt_ids: tuple[int, ...] = ()
    output_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    segments: tuple[int, ...] = ()
    stop_reason: str = ""
    weights_version: int = 0
    error: str | None = None
    raw_text: str | None = None


class Agent(Protocol):
    """Plays turns; holds no state between them that the requests do not carry."""

    name: str

    def act(self, requests: Sequence[TurnRequest]) -> list[TurnOutput]:
        """Answers each request, in order."""
        ...
