"""Who learns: advantages, losses, memory reward, the algorithms, the trainer.

Algorithms are looked up by name here, lazily, so that listing them imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mempo_env.plugins import Registry

if TYPE_CHECKING:
    from .base import Algorithm

ALGORITHMS: Registry[type[Algorithm[Any]]] = Registry("algorithm", "mempo_env.algos")
ALGORITHMS.register("grpo", "mempo_env.algos.grpo:GRPO")
ALGORITHMS.register("mempo", "mempo_env.algos.mempo:MemPO")
ALGORITHMS.register("mempo-paper", "mempo_env.algos.mempo:MemPOPaper")

__all__ = ["ALGORITHMS"]
