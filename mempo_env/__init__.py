"""Memory as policy: environments and learners for language agents that rewrite their own short memory at every turn.

Importing this package registers the environments of the project with Gymnasium and loads the contract: what an episode
is.

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
    "ENVIRONMENTS",
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
ENVIRONMENTS = {
    MULTI_GOAL_ID: ("mempo_env.envs.multi_goal:MultiGoalEnv", "mempo_env.vector:ThreadPoolVectorEnv"),
    "MemPO-LongDocument-v0": (
        "mempo_env.envs.long_document:LongDocumentEnv",
        "mempo_env.envs.long_document:vector_env",
    ),
    "MemPO-Ledger-v0": ("mempo_env.envs.ledger:LedgerEnv", "mempo_env.envs.ledger:vector_env"),
}
"""Where the code of each environment of the project is, and its vector form."""


def register_envs() -> None:
    """Registers the environments with Gymnasium, by the place of their code; safe to call again."""
    for env_id, (single, vector) in ENVIRONMENTS.items():
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=single, vector_entry_point=vector)


register_envs()
