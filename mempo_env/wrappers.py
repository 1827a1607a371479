"""Wrappers for libraries that expect an observation to be one string.

Invariant: the text is rendered by ``mempo_env.prompts``, the only place with prompt wording.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from .prompts import render_observation
from .records import Observation
from .spaces import Unicode


class TextObservation(gym.ObservationWrapper[str, str, Observation], RecordConstructorArgs):
    """Renders the observation as a single string, as most text gyms have it.

    Args:
        env: An environment with the dict of text.
        instructions: Whether the string begins with the environment's system message.
    """

    def __init__(self, env: gym.Env[Observation, str], instructions: bool = False) -> None:
        RecordConstructorArgs.__init__(self, instructions=instructions)
        gym.ObservationWrapper.__init__(self, env)
        self._instructions = instructions
        self.observation_space: gym.Space[Any] = Unicode()

    def observation(self, observation: Observation) -> str:
        """The text of one observation: task, memory, tool result and budget."""
        text = render_observation(observation)
        return f"{self.get_wrapper_attr('instructions')}\n\n{text}" if self._instructions else text
