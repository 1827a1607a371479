"""The loop: sample groups, turn them into advantages, update; blind to which algorithm it runs.

The way of the data, each one function in one named place:
task > env > observation > context > sampler > turn > episode (``rollout``) > group (``as_groups``) > advantages per
token (``Algorithm.advantages``) > loss (``Algorithm.token_loss``) > optimizer (``Updater.update``).

Invariants:
    * the tasks and the noise of step s are functions of (seed, s), so that a resumed run sees what the whole one would
      have;
    * what is dropped, truncated, unscored or without variance is counted in the metrics.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from mempo_env.records import Group, Observation

from ..agents.adapters import seeded
from ..agents.policy import LoraPolicy
from ..agents.rollout import EnvPool, EpisodeSpec, as_groups, rollout
from ..agents.row_batches import TokenRow
from ..agents.scoring import score_rows
from .advantage_check import check_advantages
from .base import Advantages, Algorithm, MemoryScorer
from .guards import NonFiniteError, write_failure_row
from .metrics import advantage_metrics, rollout_metrics
from .out_of_memory import memory_advice, smaller_passes
from .processes import ALONE, Processes
from .training_episodes import EpisodeKeeper
from .update import Updater

EnvFactory = Callable[[], gym.Env[Observation, str]]


def task_seed(seed: int, step: int, index: int) -> int:
    """Seed of a training task, from the run's seed, the step and the task's index; collisions are 1 in 2^31.

    >>> task_seed(0, 0, 0) != task_seed(0, 0, 1)
    True
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass
class StepResult:
    """What one step gave: its groups and its metrics."""

    groups: list[Group]
    metrics: dict[str, float]


class Trainer:
    """Runs steps of reinforcement learning.

    Args:
        policy: What learns.
        algorithm: How it learns.
        envs: Environments to play in.
        scorer: Scores memories for algorithms that ask.
        updater: Applies advantages.
        groups_per_step: Tasks per step.
        group_size: Episodes per task.
        seed: Seed of tasks and noise.
        processes: Those that play and learn together.
        failures: Folder for the row that stopped an update; None: it is not kept.
        stop_kl: Ends the run after a step whose KL(policy || reference) was above this; 0: never.
        keeper: Keeps some episodes with their advantages; None: none are kept.

    Attributes:
        steps_done: The task cursor.
        stopped: Why no further step is to be taken; empty while the run goes on.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        algorithm: Algorithm[Any],
        envs: EnvPool,
        scorer: MemoryScorer,
        updater: Updater,
        *,
        groups_per_step: int,
        group_size: int,
        seed: int,
        processes: Processes = ALONE,
        failures: Path | None = None,
        stop_kl: float = 0.0,
        keeper: EpisodeKeeper | None = None,
    ) -> None:
        self.policy = policy
        self.algorithm = algorithm
        self.envs = envs
        self.scorer = scorer
        self.updater = updater
        self.groups_per_step = groups_per_step
        self.group_size = group_size
        self.seed = seed
        self.processes = processes
        self.failures = failures
        self.stop_kl = stop_kl
        self.keeper = keeper
        self.steps_done = 0
        self.stopped = ""

    def step(self) -> StepResult:
        """Takes one step.

        Returns:
            The groups that were played and the metrics, among them the seconds of each part.

        Raises:
            UserError: The memory of a GPU does not suffice, or the model cannot compute its layers again.
        """
        started, cpu = time.perf_counter(), time.process_time()
        cut_before = self.policy.truncated_prompts
        with memory_advice("sampling", f"lower --sampling.batch-size, which is {self.policy.sampling.batch_size}"):
            groups = self.collect(self.steps_done)
        sampled, cut = time.perf_counter(), sum(self.processes.gather(self.policy.truncated_prompts - cut_before))
        passes, recomputes = self.updater.micro_batch_tokens, self.updater.gradient_checkpointing
        with memory_advice("scoring", smaller_passes(passes)):
            advantages = self._advantages(groups)
        if self.keeper is not None:
            self.keeper.keep(self.steps_done, groups, advantages)
        scored = time.perf_counter()
        metrics = rollout_metrics(groups) | advantage_metrics(groups, advantages) | advantages.metrics
        with memory_advice("updating", smaller_passes(passes, keeps_layers=not recomputes)):
            metrics |= self._update(groups, advantages)
        if self.steps_done == 0:
            metrics |= self._sampler_moved(groups)
        metrics |= {
            "rollout/cut_prompts": float(cut),
            "time/sampling_s": sampled - started,
            "time/scoring_s": scored - sampled,
            "time/update_s": time.perf_counter() - scored,
            "time/step_s": time.perf_counter() - started,
            "time/cpu_s": time.process_time() - cpu,
        }
        self.steps_done += 1
        if self.stop_kl and (kl := metrics.get("train/kl", 0.0)) > self.stop_kl:
            self.stopped = f"KL {kl:.3g} to the reference is above stop_kl={self.stop_kl:g}"
        return StepResult(groups, metrics)

    def collect(self, step: int) -> list[Group]:
        """Plays the groups of a step with the current weights; each is played in one process, and all get all."""

        def play(indices: Sequence[int]) -> list[Group]:
            specs = []
            for index in indices:
                seed = task_seed(self.seed, step, index)
                specs += [EpisodeSpec(f"{step}/{index}", i, seed) for i in range(self.group_size)]
            return as_groups(rollout(self.policy, self.envs, specs, seed=self.seed, step=step))

        return self.processes.share(range(self.groups_per_step), play)

    def _advantages(self, groups: list[Group]) -> Advantages:
        found = self.algorithm.advantages(groups, self.scorer)
        with self.processes.together():
            try:
                return check_advantages(self.algorithm.name, groups, found)
            except NonFiniteError as error:
                if self.failures is None:
                    raise
                raise self._kept(self.failures, error, groups) from error

    def _update(self, groups: Sequence[Group], advantages: Advantages) -> dict[str, float]:
        # Dropout draws from torch's global generator: keyed by seed, step and process, so that it has no history.
        noise = task_seed(self.seed, self.steps_done, -1 - self.processes.rank)
        try:
            with seeded(noise, self.policy.device):
                return self.updater.update(groups, advantages)
        except NonFiniteError as error:
            if self.failures is None:
                raise
            raise self._kept(self.failures, error, groups) from error

    def _kept(self, folder: Path, error: NonFiniteError, groups: Sequence[Group]) -> FloatingPointError:
        """The error that ends the run, once its row is in the folder for failures."""
        path = write_failure_row(folder, self.steps_done, error, groups, self.policy.codec)
        return FloatingPointError(f"{error}; its row is in {path}")

    def _sampler_moved(self, groups: Sequence[Group]) -> dict[str, float]:
        """Whether the first update reached the weights that sample: mean change of sampled tokens' log-probability."""
        turns = [turn for group in groups for episode in group for turn in episode.turns if turn.logprobs][:8]
        with self.policy.evaluating():
            now = score_rows(
                self.policy.model,
                [TokenRow(turn.prompt_ids, turn.output_ids) for turn in turns],
                self.policy.codec.pad_id,
                max_tokens=self.updater.micro_batch_tokens,
                temperature=self.policy.temperature,
            )
        change = [
            abs(a - b)
            for row, turn in zip(now, turns, strict=True)
            for a, b in zip(row.tolist(), turn.logprobs, strict=True)
        ]
        return {"train/sampler_moved": sum(change) / max(len(change), 1)}

    def state_dict(self) -> dict[str, Any]:
        """Task cursor, optimizer, algorithm, version of the weights, why the run ended early if it did."""
        return {
            "steps_done": self.steps_done,
            "weights_version": self.policy.weights_version,
            "optimizer": self.updater.optimizer.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "stopped": self.stopped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict``."""
        self.steps_done = int(state["steps_done"])
        self.policy.weights_version = int(state["weights_version"])
        self.updater.optimizer.load_state_dict(state["optimizer"])
        self.algorithm.load_state_dict(state["algorithm"])
        self.stopped = str(state.get("stopped", ""))
