"""Wrappers that experiments need: one string as observation, memory controls, a budget curriculum, scaled rewards.

Invariants:
    * prompt wording is ``mempo_env.prompts``'s; a wrapper changes what it is named after and nothing else;
    * a memory control changes what the agent is shown, never what is stored: the next turn's observation tells the one,
      ``MemoryEnv.stored_memory`` the other;
    * noise is a function of the wrapper's seed and of what it is applied to. Nothing is drawn from the environment's
      ``np_random``: the same seeds give the same tasks with a control as without it;
    * ``reward == sum(info["reward_components"].values())`` holds outside as it does inside.

All of them record their arguments, so that ``gym.make(env.spec)`` makes the same stack again. docs/wrappers.md has an
example of each.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from .budgets import get_budget
from .env import MemoryEnv
from .errors import UserError, unknown_name
from .prompts import render_observation
from .records import Observation
from .rewards import check_reward
from .spaces import Unicode

StepResult = tuple[Observation, float, bool, bool, dict[str, Any]]
Unit = Literal["words", "turns", "episodes"]
_STAGED = ("max_tool_calls", "max_turns", "memory_tokens")


class TextObservation(gym.ObservationWrapper[str, str, Observation], RecordConstructorArgs):
    """Renders the observation as a single string, as most text gyms have it.

    Tasks and tool results may hold a chat's control tokens as text: encode the string with their recognition off
    (``split_special_tokens=True`` in transformers), as ``mempo_env.agents.codec`` does.

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
        text = render_observation(_fields(observation, self))
        return f"{self.get_wrapper_attr('instructions')}\n\n{text}" if self._instructions else text


class BlankMemory(gym.ObservationWrapper[Observation, str, Observation], RecordConstructorArgs):
    """Shows an empty memory at every turn: what is an agent worth that writes its memory in vain?

    Args:
        env: An environment with the dict of text.
    """

    def __init__(self, env: gym.Env[Observation, str]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)

    def observation(self, observation: Observation) -> Observation:
        """The observation without its memory."""
        return _fields(observation, self) | {"memory": ""}


class ShuffledMemory(gym.Wrapper[Observation, str, Observation, str], RecordConstructorArgs):
    """Shows another memory than the one stored: which property of the memory does the agent live on?

    ========== ============================================================ =========================================
    unit       shown                                                        what is lost
    ========== ============================================================ =========================================
    words      the words of the memory in random order                      order and so which fact belongs to what
    turns      the memory of an earlier turn, drawn evenly; before the      what was learned since
               first turn it was empty
    episodes   the memory of the same turn of a donor episode, drawn once   everything about the task; length and
               per task; its last one where it was shorter                  style stay
    ========== ============================================================ =========================================

    The draw is a function of ``seed``, task, turn and memory, so it depends neither on the batch nor on earlier
    episodes. What is shown is not cut again: a tokenizer may count a few tokens more for words in another order.

    Args:
        env: An environment with the dict of text.
        unit: What is shuffled.
        seed: Seed of the draws.
        donors: For ``episodes``: per donor episode its memories in the order of the turns, as ``Turn.memory`` has them.

    Raises:
        UserError: The unit is unknown, or donors are missing, empty or given where none are used.
    """

    def __init__(
        self,
        env: gym.Env[Observation, str],
        unit: Unit = "words",
        seed: int = 0,
        donors: Sequence[Sequence[str]] = (),
    ) -> None:
        RecordConstructorArgs.__init__(self, unit=unit, seed=seed, donors=[list(donor) for donor in donors])
        gym.Wrapper.__init__(self, env)
        if unit not in get_args(Unit):
            raise unknown_name("unit of ShuffledMemory", unit, get_args(Unit))
        if unit == "episodes" and not (donors and all(donors)):
            raise UserError("unit='episodes' needs donors: for each of some other episodes its memories, one at least")
        if unit != "episodes" and donors:
            raise UserError(f"unit={unit!r} uses no donors; drop them or use unit='episodes'")
        self._unit: Unit = unit
        self._seed = seed
        self._donors = tuple(tuple(donor) for donor in donors)
        self._memories: list[str] = []  # as stored, one before each turn so far

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode; its memory is empty and shown as such."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._memories = []
        return self._shown(observation), info

    def step(self, action: str) -> StepResult:
        """Plays one output; the observation shows the shuffled memory."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._shown(observation), float(reward), terminated, truncated, info

    def _shown(self, observation: Observation) -> Observation:
        memory = _fields(observation, self)["memory"]
        earlier = tuple(self._memories)
        self._memories.append(memory)
        if not earlier:
            return observation
        task, turn = observation["task"], len(earlier)
        if self._unit == "words":
            words = memory.split()
            order = self._rng(task, turn, memory).permutation(len(words))
            shown = " ".join(words[place] for place in order)
        elif self._unit == "turns":
            shown = earlier[int(self._rng(task, turn, memory).integers(turn))]
        else:
            donor = self._donors[int(self._rng(task).integers(len(self._donors)))]
            shown = donor[min(turn, len(donor)) - 1]
        return observation | {"memory": shown}

    def _rng(self, *key: str | int) -> np.random.Generator:
        name = repr((self._seed, self._unit, *key)).encode("utf-8", errors="surrogatepass")
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "big"))


class BudgetSchedule(gym.Wrapper[Observation, str, Observation, str], RecordConstructorArgs):
    """Changes the budget from stage to stage: a curriculum, such as ContextBudget (arXiv 2604.01664) trains with.

    A stage begins with an episode, never within one. It is counted by this environment's episodes, or set from outside,
    by training step say: ``env.set_wrapper_attr("stage", 2)``, for a vector ``envs.set_attr("stage", 2)``. Set it from
    outside where episodes are compared in groups, so that a group is played under one budget. ``info["budget_stage"]``
    tells which one it was.

    Args:
        env: A ``MemoryEnv``, wrapped or not.
        stages: Per stage the changes to the environment's own budget: ``max_tool_calls``, ``max_turns`` and
            ``memory_tokens``. ``queries_per_call`` is a property of the tools, which are made once.
        episodes_per_stage: Episodes after which the next stage begins; the last one stays. None: set from outside.

    Raises:
        UserError: There is no stage, a change is unknown or out of range, or the environment is no ``MemoryEnv``.
    """

    def __init__(
        self,
        env: gym.Env[Observation, str],
        stages: Sequence[Mapping[str, int]],
        episodes_per_stage: int | None = None,
    ) -> None:
        RecordConstructorArgs.__init__(
            self, stages=[dict(stage) for stage in stages], episodes_per_stage=episodes_per_stage
        )
        gym.Wrapper.__init__(self, env)
        if not isinstance(env.unwrapped, MemoryEnv):
            raise UserError(f"BudgetSchedule needs a mempo_env.MemoryEnv, not {type(env.unwrapped).__name__}")
        if not stages:
            raise UserError("BudgetSchedule needs at least one stage, such as {'memory_tokens': 128}")
        for stage in stages:
            if unknown := [field for field in stage if field not in _STAGED]:
                raise unknown_name("budget field of a stage", unknown[0], _STAGED)
        if episodes_per_stage is not None and episodes_per_stage < 1:
            raise UserError(f"episodes_per_stage={episodes_per_stage} must be at least 1, or None: set from outside")
        self._budgets = tuple(get_budget(env.unwrapped.budget, **stage) for stage in stages)
        self._episodes_per_stage = episodes_per_stage
        self._episodes = 0
        self._stage = self._playing = 0

    @property
    def stage(self) -> int:
        """The stage that the next reset begins, from 0.

        Raises:
            UserError: (when set) There is no such stage, or stages are counted by episodes.
        """
        if self._episodes_per_stage is None:
            return self._stage
        return min(self._episodes // self._episodes_per_stage, len(self._budgets) - 1)

    @stage.setter
    def stage(self, stage: int) -> None:
        if self._episodes_per_stage is not None:
            raise UserError(
                "stages are counted by episodes here; leave episodes_per_stage out to set them from outside"
            )
        if not 0 <= stage < len(self._budgets):
            raise UserError(f"stage={stage} must lie between 0 and {len(self._budgets) - 1}")
        self._stage = int(stage)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode under the budget of the current stage."""
        self._playing = self.stage
        cast(MemoryEnv, self.unwrapped).budget = self._budgets[self._playing]
        observation, info = self.env.reset(seed=seed, options=options)
        self._episodes += 1
        return observation, info | {"budget_stage": self._playing}

    def step(self, action: str) -> StepResult:
        """Plays one output."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward), terminated, truncated, info | {"budget_stage": self._playing}


class ScaleReward(gym.Wrapper[Observation, str, Observation, str], RecordConstructorArgs):
    """Multiplies the reward and each of its parts.

    Gymnasium's ``TransformReward`` changes the sum alone, and ``rollout`` refuses it. ``info["outcome"]`` and the
    scores stay as they are: they say how well the task was solved.

    Args:
        env: A ``MemoryEnv``, wrapped or not.
        scale: The factor, above 0.

    Raises:
        UserError: The factor is not a finite number above 0, or (at a step) an inner wrapper changed the reward alone.
    """

    def __init__(self, env: gym.Env[Observation, str], scale: float) -> None:
        RecordConstructorArgs.__init__(self, scale=scale)
        gym.Wrapper.__init__(self, env)
        if not (isinstance(scale, int | float) and 0 < scale < math.inf):
            raise UserError(f"scale={scale!r} must be a finite number above 0")
        self._scale = float(scale)

    def step(self, action: str) -> StepResult:
        """Plays one output; the reward and its parts are scaled."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        check_reward(float(reward), info)
        parts = {name: self._scale * part for name, part in info["reward_components"].items()}
        return observation, float(sum(parts.values())), terminated, truncated, info | {"reward_components": parts}


def _fields(observation: Observation, wrapper: gym.Env[Any, Any]) -> Observation:
    if not isinstance(observation, dict):
        raise UserError(
            f"{type(wrapper).__name__} needs the dict observation; put TextObservation around it, not inside it"
        )
    return observation
