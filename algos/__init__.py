"""Who learns: advantages, losses, memory reward, the algorithms, the trainer.

Algorithms are looked up by name here, lazily: listing them, and the settings of those that are built in, imports no
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mempo_env.plugins import Registry

if TYPE_CHECKING:
    from .base import Algorithm

ALGORITHMS: Registry[type[Algorithm[Any]]] = Registry("algorithm", "mempo_env.algos")
ALGORITHMS.register("ppo", "mempo_env.algos.ppo:PPO")
ALGORITHMS.register("grpo", "mempo_env.algos.grpo:GRPO")
ALGORITHMS.register("mempo", "mempo_env.algos.mempo:MemPO")
ALGORITHMS.register("mempo-paper", "mempo_env.algos.mempo:MemPOPaper")

_BUILT_IN_CONFIGS = {
    "ppo": ".ppo_config:PPOConfig",
    "grpo": ".algorithm_config:GRPOConfig",
    "mempo": ".algorithm_config:MemPOConfig",
    "mempo-paper": ".algorithm_config:MemPOPaperConfig",
}


def algorithm_settings(name: str) -> tuple[str, type[Any]]:
    """What an algorithm calls itself and the dataclass of its settings; torch is imported for one of your own only.

    Args:
        name: A registered name, or ``package.module:Class``.

    Returns:
        ``Algorithm.name`` and ``Algorithm.config_class``.

    Raises:
        UserError: The name is unknown, or what it stands for is no algorithm.
    """
    if name in _BUILT_IN_CONFIGS:
        module, _, settings = _BUILT_IN_CONFIGS[name].partition(":")
        return name, getattr(importlib.import_module(module, __package__), settings)
    if ":" not in name and name not in ALGORITHMS.names():
        ALGORITHMS.get(name)  # raises: it is unknown
    from .base import get_algorithm

    algorithm = get_algorithm(name)
    return algorithm.name, algorithm.config_class


__all__ = ["ALGORITHMS", "algorithm_settings"]
