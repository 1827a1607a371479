"""Episodes of the frozen reference policy, for a baseline that does not move with the policy (method 4).

Invariant: what is said of a task is a function of the run's seed, the task and the reference's weights, which never
change: played and scored under the reference adapter. So it is computed once and kept, and a resumed run, which has
forgotten it, computes the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mempo_env.records import Episode, Group

from ..agents.policy import LoraPolicy
from ..agents.rollout import EnvPool, EpisodeSpec, rollout
from .processes import ALONE, Processes

ScoreMemories = Callable[[Sequence[tuple[Episode, str]]], Tensor]


class FrozenReference:
    """Plays the reference policy on the tasks of groups.

    Args:
        policy: Its ``reference_adapter`` plays; it needs adapters, or it would be its own reference.
        envs: The environments of the groups; nobody else may be playing in them meanwhile.
        seed: Of the run, for the noise.
        processes: Those that share the episodes; each then knows all of them.
    """

    def __init__(self, policy: LoraPolicy, envs: EnvPool, seed: int, processes: Processes = ALONE) -> None:
        self.policy = policy
        self.envs = envs
        self.seed = seed
        self.processes = processes
        self._known: dict[tuple[str, int], Tensor] = {}

    def quality(self, groups: Sequence[Group], episodes: int, score: ScoreMemories) -> list[Tensor]:
        """Q of the memories written in so many episodes of each group's task.

        Args:
            groups: At least one episode each, which says task and seed.
            episodes: Per task, K.
            score: Q(m) under the active adapter.

        Returns:
            Per group float64 (M,), a Q per memory; errors are left out.

        Raises:
            ValueError: The policy has no adapters.
        """
        if not self.policy.adapters:
            raise ValueError("a policy without adapters is its own reference; add an adapter, or take another baseline")
        keys = [(_name(group), episodes) for group in groups]
        missing = {key: group for key, group in zip(keys, groups, strict=True) if key not in self._known}
        if missing:
            with self.policy.use_adapter(self.policy.reference_adapter):
                self._known |= self._play(missing, score)
        return [self._known[key] for key in keys]

    def _play(self, missing: dict[tuple[str, int], Group], score: ScoreMemories) -> dict[tuple[str, int], Tensor]:
        specs = [
            EpisodeSpec(name, k, group[0].seed, group[0].task)
            for (name, episodes), group in missing.items()
            for k in range(episodes)
        ]
        played = self.processes.share(specs, lambda some: rollout(self.policy, self.envs, some, seed=self.seed, step=0))
        written: dict[str, list[tuple[Episode, str]]] = {name: [] for name, _ in missing}
        for episode in played:
            if episode.error is None:
                written[episode.group_id] += [(episode, turn.memory) for turn in episode.turns if turn.memory_written]
        items = [item for found in written.values() for item in found]
        quality = score(items) if items else torch.zeros(0, dtype=torch.float64)  # (M,)
        parts = torch.split(quality, [len(found) for found in written.values()])
        return dict(zip(missing, parts, strict=True))


def _name(group: Group) -> str:
    """Names a group's task by what it is, so that its noise does not depend on when it was asked."""
    content = repr((group[0].seed, group[0].task)).encode("utf-8", "surrogatepass")
    return f"reference/{hashlib.blake2b(content, digest_size=8).hexdigest()}"
