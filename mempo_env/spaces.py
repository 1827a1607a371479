"""A space of Unicode strings.

``gymnasium.spaces.Text`` refuses a space character by default and is garbled in the shared memory of
``AsyncVectorEnv``.

Invariant: every ``str`` of at most ``max_length`` characters is a member, and ``sample`` returns members only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

SAMPLE_OUTPUTS = (
    "",
    "no tags at all",
    "<mem>unclosed",
    "<mem>a note</mem><think>let me see</think><answer>a; b</answer>",
    '<mem>a note</mem><tool_call>{"name": "search", "arguments": {"queries": ["a"]}}</tool_call>',
    '<mem>été 文 \u202e</mem><tool_call>{"name": "calculator", "arguments": {"expression": "1+1"}}</tool_call>',
    "<tool_call>{not json}</tool_call>",
)
"""What the action space of an environment samples from."""


class Unicode(gym.Space[str]):
    """Strings of at most ``max_length`` characters.

    Args:
        max_length: Longest member, in characters.
        samples: Strings that ``sample`` draws from, so that random play also meets well-formed text.
        seed: Seed of ``sample``.
    """

    def __init__(
        self,
        max_length: int = 10_000_000,
        samples: Sequence[str] = ("", "text", "été 文 \u202e😀"),
        seed: int | np.random.Generator | None = None,
    ) -> None:
        if not samples or any(len(text) > max_length for text in samples):
            raise ValueError("samples must be members of the space, and there must be one at least")
        self.max_length = max_length
        self.samples = tuple(samples)
        super().__init__(dtype=str, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """Text does not flatten to numbers."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draws one of the sample strings.

        Args:
            mask: Not supported.
            probability: Not supported.

        Raises:
            ValueError: A mask or probabilities were given.
        """
        if mask is not None or probability is not None:
            raise ValueError("Unicode does not support mask or probability")
        return self.samples[int(self.np_random.integers(len(self.samples)))]

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a string that is short enough."""
        return isinstance(x, str) and len(x) <= self.max_length

    def to_jsonable(self, sample_n: Iterable[str]) -> list[str]:
        """Strings are JSON already."""
        return list(sample_n)

    def from_jsonable(self, sample_n: list[Any]) -> list[str]:
        """Strings are JSON already."""
        return [str(text) for text in sample_n]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unicode) and self.max_length == other.max_length

    def __hash__(self) -> int:
        return hash((type(self), self.max_length))

    def __repr__(self) -> str:
        return f"Unicode(max_length={self.max_length})"
