"""Memory as policy: environments and learners for language agents that rewrite their own short memory at every turn.

Importing this package registers ``MemPO-MultiGoal-v0`` with Gymnasium and loads the contract: what an episode is.

Invariant: the import needs gymnasium and numpy only, never torch or transformers, and stays under half a second; an
environment's own code is imported when it is made.
"""

import gymnasium as gym

from .actions import Answer, FormatError, FormatErrorKind, Segment, ToolCall
from .budgets import BRIEF, BUDGETS, PAPER, Budget
from .env import MemoryEnv
from .errors import InfrastructureError, UserError
from .records import Episode, Evidence, Goal, Group, Observation, Passage, Task, Turn
from .rewards import TurnContext
from .tokens import RegexTokenCounter, TokenCounter
from .tools import Tool, ToolArgumentError, ToolSpec
from .wrappers import BlankMemory, BudgetSchedule, ScaleReward, ShuffledMemory, TextObservation

__all__ = [
    "BRIEF",
    "BUDGETS",
    "PAPER",
    "Answer",
    "BlankMemory",
    "Budget",
    "BudgetSchedule",
    "Episode",
    "Evidence",
    "FormatError",
    "FormatErrorKind",
    "Goal",
    "Group",
    "InfrastructureError",
    "MemoryEnv",
    "Observation",
    "Passage",
    "RegexTokenCounter",
    "ScaleReward",
    "Segment",
    "ShuffledMemory",
    "Task",
    "TextObservation",
    "TokenCounter",
    "Tool",
    "ToolArgumentError",
    "ToolCall",
    "ToolSpec",
    "Turn",
    "TurnContext",
    "UserError",
    "register_envs",
]

MULTI_GOAL_ID = "MemPO-MultiGoal-v0"


def register_envs() -> None:
    """Registers the environments with Gymnasium, by the place of their code; safe to call again."""
    if MULTI_GOAL_ID not in gym.registry:
        gym.register(
            MULTI_GOAL_ID,
            entry_point="mempo_env.envs.multi_goal:MultiGoalEnv",
            vector_entry_point="mempo_env.vector:ThreadPoolVectorEnv",
        )


register_envs()
