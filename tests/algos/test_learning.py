"""Two small tasks that a learner must solve within a stated number of steps, and that it must unlearn when its sign is
flipped. The warm start gives the policy the format of its outputs; the values in them are random, or nearly so.

``mempo-paper`` takes part in the first task only. In the second its z-scored term stays as large as ever when nearly
all memories are right, and with one seed of three that noise undoes what was learnt; its baseline asks for a policy
that was warm-started on histories, too.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mempo_env.agents.base import TurnRequest
from mempo_env.agents.codec import CodecTokenCounter
from mempo_env.agents.contexts import MemoryContext
from mempo_env.agents.models import add_lora, make_codec
from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.rollout import EnvPool, EpisodeSpec, rollout
from mempo_env.agents.row_batches import TokenRow
from mempo_env.agents.settings import LoraSettings, SamplingConfig, TinyConfig
from mempo_env.agents.textual import TextAgent, slot_rng
from mempo_env.agents.tiny import build_tiny
from mempo_env.algos import ALGORITHMS
from mempo_env.algos.algorithm_config import GRPOConfig, MemPOConfig
from mempo_env.algos.base import Advantages, Algorithm, get_algorithm
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.frozen_reference import FrozenReference
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.imitation import demonstration_rows, imitate, imitation_batches
from mempo_env.algos.memory_reward import AnswerScorer
from mempo_env.algos.mempo import MemPO
from mempo_env.algos.optim import Optimizer, make_optimizer, trainable
from mempo_env.algos.trainer import Trainer
from mempo_env.algos.update import Updater
from mempo_env.env import MemoryEnv
from mempo_env.records import Episode, Goal, Task
from mempo_env.rewards import TurnContext
from mempo_env.tools import Tool, ToolSpec

COLOURS = ("red", "green", "blue", "gold")
CALL = '<tool_call>{"name": "search", "arguments": {"queries": ["x"]}}</tool_call>'


class Nothing:
    """A tool that says nothing."""

    spec = ToolSpec("search", "Passes the time.", {"type": "object", "properties": {}})

    def call(self, arguments: dict[str, Any]) -> str:
        return "nothing"


class BanditEnv(MemoryEnv):
    """One turn: some word among four is always right."""

    tools: Sequence[Tool] = (Nothing(),)

    def sample_task(self, rng: np.random.Generator) -> Task:
        return Task((Goal("which colour wins?", ("blue",)),), id="bandit")


class RecallEnv(MemoryEnv):
    """Two turns: the first shows a colour, the second asks for it and does not."""

    tools: Sequence[Tool] = (Nothing(),)

    def sample_task(self, rng: np.random.Generator) -> Task:
        return Task((Goal("which colour was it?", (COLOURS[int(rng.integers(len(COLOURS)))],)),), id="recall")

    def first_result(self, task: Task) -> str:
        return f"it is {task.goals[0].answers[0]}"


class UnanswerableEnv(RecallEnv):
    """Recall, but three tasks in four ask for what nobody was shown, so that every episode of their groups fails."""

    def sample_task(self, rng: np.random.Generator) -> Task:
        shown = COLOURS[int(rng.integers(len(COLOURS)))]
        asked = shown if rng.random() < 0.25 else "x"
        return Task((Goal("which colour was it?", (asked,), id=shown),), id="unanswerable")

    def first_result(self, task: Task) -> str:
        return f"it is {task.goals[0].id}"


class Guesser(TextAgent):
    """Writes well-formed turns. What it notes and answers is what it was shown with a probability, else random."""

    def __init__(self, right: float) -> None:
        super().__init__("guesser")
        self.right = right

    def write(self, request: TurnRequest) -> str:
        rng = slot_rng(request.key, "guess")

        def say(seen: str) -> str:
            known = [colour for colour in COLOURS if colour in seen.split()]
            return known[0] if known and rng.random() < self.right else COLOURS[int(rng.integers(len(COLOURS)))]

        shown = request.observation
        if shown["tool_result"].startswith("it is"):
            return f"<mem>{say(shown['tool_result'])}</mem>{CALL}"
        return f"<mem>{shown['memory']}</mem><answer>{say(shown['memory'])}</answer>"


WORDS = (*COLOURS, *["which", "colour", "wins", "was", "it", "is", "nothing", "x", "search"])
# Two layers are enough to copy; with smaller first weights the tied head could not tell the colours apart.
SHAPE = TinyConfig(layers=2, width=64, heads=2, feed_forward=128, init_range=0.15, max_positions=256, look_back=2)
INSTRUCTIONS = "Answer all."


class Lesson:
    """An environment, and a policy that was shown the format there.

    Args:
        env: The environment's class.
        right: How often the demonstrator notes and answers what it was shown.
        imitation_steps: Optimizer steps of the warm start.
        demonstrator: Who is imitated; None: a ``Guesser``.
        **settings: Of the environment.
    """

    def __init__(
        self,
        env: type[MemoryEnv],
        right: float,
        imitation_steps: int,
        demonstrator: TextAgent | None = None,
        **settings: Any,
    ) -> None:
        torch.set_num_threads(1)
        self.env = env
        self.settings = settings
        demonstrator = demonstrator or Guesser(right)
        self.model, tokenizer = build_tiny(0, WORDS, SHAPE)
        self.codec = make_codec(self.model, tokenizer)
        policy = self._policy(self.model)
        with EnvPool(self.make_env) as pool:

            def rows(chunk: int) -> list[TokenRow]:
                specs = [EpisodeSpec(f"{chunk}/{i}", 0, 1000 * chunk + i) for i in range(64)]
                episodes = rollout(demonstrator, pool, specs, seed=0, step=0)
                return demonstration_rows(episodes, policy, INSTRUCTIONS)

            optim = OptimConfig(lr=5e-3, schedule="linear", decay_from=0.3, betas=(0.9, 0.95))
            optimizer = Optimizer(trainable(self.model), optim, imitation_steps)
            batches = imitation_batches(rows, 500, 0)
            imitate(policy, optimizer, batches, imitation_steps, micro_batch_tokens=4000)

    def make_env(self, env: type[MemoryEnv] | None = None, **settings: Any) -> MemoryEnv:
        counter = CodecTokenCounter(self.codec)
        fixed: dict[str, Any] = {"instructions": "terse", "token_counter": counter, "budget": {"max_turns": 2}}
        return (env or self.env)(**fixed | self.settings | settings)

    def fresh(self) -> LoraPolicy:
        """The policy after the warm start, with a fresh adapter."""
        return self._policy(add_lora(copy.deepcopy(self.model), LoraSettings(rank=8, alpha=16)))

    def success(self, policy: LoraPolicy, **settings: Any) -> float:
        """Share of 64 sampled episodes that are right."""
        specs = [EpisodeSpec(f"test/{i}", 0, 5000 + i) for i in range(64)]
        episodes = rollout(policy, lambda: self.make_env(**settings), specs, seed=9, step=-1)
        return sum(episode.outcome for episode in episodes) / len(episodes)

    def notes(self, policy: LoraPolicy) -> float:
        """Share of 64 sampled first memories that hold the colour that was shown, and nothing else."""
        specs = [EpisodeSpec(f"test/{i}", 0, 5000 + i) for i in range(64)]
        episodes = rollout(policy, self.make_env, specs, seed=9, step=-1)
        return sum(episode.turns[0].memory.strip() == episode.task.goals[0].answers[0] for episode in episodes) / len(
            episodes
        )

    def learn(
        self,
        policy: LoraPolicy,
        algorithm: Algorithm[Any],
        steps: int,
        *,
        seed: int = 0,
        epochs: int = 1,
        env: type[MemoryEnv] | None = None,
    ) -> list[dict[str, float]]:
        """Steps of 4 tasks x 8 rollouts, in another environment if one is given; returns their metrics."""
        algorithm.setup(policy)
        optim = OptimConfig(lr=3e-3, schedule="linear", decay_from=0.4)
        optimizer = make_optimizer(policy, algorithm, optim, steps * epochs)
        with EnvPool(lambda: self.make_env(env)) as pool:
            trainer = Trainer(
                policy,
                algorithm,
                pool,
                AnswerScorer(policy, INSTRUCTIONS, reference=FrozenReference(policy, pool, seed)),
                Updater(policy, algorithm, optimizer, epochs=epochs),
                groups_per_step=4,
                group_size=8,
                seed=seed,
            )
            return [trainer.step().metrics for _ in range(steps)]

    def _policy(self, model: Any) -> LoraPolicy:
        return LoraPolicy(model, self.codec, MemoryContext(), SamplingConfig(max_new_tokens=16))


@pytest.fixture(scope="module")
def bandit() -> Lesson:
    return Lesson(BanditEnv, right=0.0, imitation_steps=70)


@pytest.fixture(scope="module")
def recall() -> Lesson:
    return Lesson(RecallEnv, right=0.7, imitation_steps=120)


def make(name: str, flipped: bool = False) -> Algorithm[Any]:
    """An algorithm with its defaults, or one that takes every advantage for its opposite."""
    algorithm = get_algorithm(name)()
    return flip(algorithm) if flipped else algorithm


def flip(algorithm: Algorithm[Any]) -> Algorithm[Any]:
    """Takes every advantage for its opposite."""
    real = algorithm.advantages

    def opposite(groups: Any, scorer: Any) -> Advantages:
        found = real(groups, scorer)
        return Advantages({key: -value for key, value in found.tokens.items()}, found.metrics)

    algorithm.advantages = opposite  # type: ignore[method-assign]
    return algorithm


RELATIVES = {
    "Dr. GRPO": GRPOConfig(normalise_std=False, aggregation="constant", divisor=16),
    "RLOO": GRPOConfig(normalise_std=False, return_baseline="leave_one_out"),
    "DAPO": GRPOConfig(clip_high=0.28, aggregation="token", beta=0.0),
    "GSPO": GRPOConfig(ratio="sequence", aggregation="sequence", clip_low=3e-4, clip_high=4e-4),
}


@pytest.mark.parametrize("name", list(RELATIVES))
def test_relatives_of_grpo_on_the_bandit(name: str, bandit: Lesson) -> None:
    """Two epochs a step, so that ratios are not 1 and what differs by them takes part."""
    policy = bandit.fresh()
    metrics = bandit.learn(policy, GRPO(RELATIVES[name]), 12, epochs=2)
    assert bandit.success(policy) >= 0.9
    assert name != "GSPO" or metrics[0]["train/clip_share"] > 0
    policy = bandit.fresh()
    bandit.learn(policy, flip(GRPO(RELATIVES[name])), 12, epochs=2)
    assert bandit.success(policy) <= 0.1


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_one_turn_bandit(name: str, bandit: Lesson) -> None:
    """From one in four to nine in ten within 12 steps; with the sign flipped below one in ten."""
    policy = bandit.fresh()
    assert 0.1 < bandit.success(policy) < 0.4
    bandit.learn(policy, make(name), 12)
    assert bandit.success(policy) >= 0.9

    policy = bandit.fresh()
    bandit.learn(policy, make(name, flipped=True), 12)
    assert bandit.success(policy) <= 0.1


def test_the_second_turn_does_not_show_the_answer(recall: Lesson) -> None:
    env = recall.make_env()
    for seed in range(8):
        first, info = env.reset(seed=seed)
        colour = info["task"].goals[0].answers[0]
        assert colour in first["tool_result"]
        second, *_ = env.step(f"<mem></mem>{CALL}")
        assert not any(colour in field for field in second.values())


@pytest.mark.parametrize("name", ["ppo", "grpo", "mempo"])
def test_two_turns_that_only_memory_can_solve(name: str, recall: Lesson) -> None:
    """From about six in ten to more than eight within 24 steps, and through the memory: without it, chance.

    With the sign flipped, below one in ten within 48: after 24, seeds differ from 0 to 34 in a hundred, whatever the
    algorithm, so that a processor's rounding decides; after 48 MemPO had none right with any of four seeds.
    """
    policy = recall.fresh()
    assert 0.35 < recall.success(policy) < 0.7
    recall.learn(policy, make(name), 24)
    assert recall.success(policy) >= 0.8
    assert recall.success(policy, memory="off") <= 0.45

    policy = recall.fresh()
    recall.learn(policy, make(name, flipped=True), 48)
    assert recall.success(policy) <= 0.1


# The memory advantage alone ---------------------------------------------------------------------------------------


class MemoryAlone(MemPO):
    """MemPO without A^T: what is learnt is learnt from A^M."""

    def trajectory_advantages(self, returns: Tensor, valid: Tensor) -> Tensor:
        return torch.zeros_like(returns)


VARIANTS: dict[str, dict[str, Any]] = {
    "reference": {},
    "credit all": {"credit": "all"},
    "credit successes": {"credit": "successes"},
    "frozen_reference": {"baseline": "frozen_reference"},
    "leave_one_out": {"baseline": "leave_one_out"},
    "same_turn": {"baseline": "same_turn"},
    "empty_memory": {"baseline": "empty_memory"},
    "old_memory": {"baseline": "old_memory"},
    "history": {"baseline": "history"},
    "old_memory pooled": {"baseline": "old_memory", "normalisation": "pooled"},
    "old_memory per_turn": {"baseline": "old_memory", "normalisation": "per_turn"},
    "history pooled": {"baseline": "history", "normalisation": "pooled"},
    "history per_turn": {"baseline": "history", "normalisation": "per_turn"},
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_memories_are_learnt_from_their_advantage_alone(variant: str, recall: Lesson) -> None:
    """Eight steps: the right way notes stay right or get better, flipped they are lost."""
    settings = VARIANTS[variant]
    start = recall.notes(recall.fresh())
    assert 0.7 < start < 0.85
    policy = recall.fresh()
    metrics = recall.learn(policy, MemoryAlone(MemPOConfig(**settings)), 8)
    learnt = recall.notes(policy)
    assert metrics[0]["memory/credited"] > 0
    policy = recall.fresh()
    recall.learn(policy, flip(MemoryAlone(MemPOConfig(**settings))), 8)
    unlearnt = recall.notes(policy)
    assert unlearnt < 0.6
    assert learnt > unlearnt + 0.15
    # A z-scored term is as large where memories hardly differ as where they do: over eight steps its noise shows.
    assert learnt >= (start if "normalisation" not in settings else start - 0.15)


# The guard for groups in which all failed -------------------------------------------------------------------------


def test_the_guard_keeps_what_hopeless_tasks_would_undo(recall: Lesson) -> None:
    """Three tasks in four cannot be solved. There Q is tiny whatever the memory, and a z-score makes its noise as large
    as any signal: less likely notes leave the impossible answer a little likelier, so that noting what was shown is
    unlearnt. The guard does not divide by a standard deviation there. Same seeds, tasks and settings but for it.
    """
    found: dict[str, list[tuple[float, float]]] = {"guarded": [], "all": []}
    for credit, results in found.items():
        for seed in (0, 1, 2):
            algorithm = MemPO(MemPOConfig(baseline="old_memory", normalisation="pooled", credit=credit))  # type: ignore[arg-type]
            policy = recall.fresh()
            metrics = recall.learn(policy, algorithm, 24, seed=seed, env=UnanswerableEnv)
            guarded = sum(step["memory/groups_guarded"] for step in metrics) / len(metrics)
            assert guarded > 0.5 if credit == "guarded" else guarded == 0
            results.append((recall.notes(policy), recall.success(policy)))
    for (notes, success), (unguarded_notes, unguarded_success) in zip(found["guarded"], found["all"], strict=True):
        assert notes > unguarded_notes + 0.2
        assert success > unguarded_success
    with_guard, without = (sum(success for _, success in found[credit]) / 3 for credit in ("guarded", "all"))
    assert with_guard > 2 * without


# A task that only a step reward makes worth learning ----------------------------------------------------------------


class NoteEnv(MemoryEnv):
    """Two turns; no answer is ever right, so that the outcome is constant."""

    tools: Sequence[Tool] = (Nothing(),)

    def sample_task(self, rng: np.random.Generator) -> Task:
        return Task((Goal("which colour wins?", ("nothing",)),), id="note")


def pays_for_green(context: TurnContext) -> float:
    """Step reward: 1 where the first turn notes green."""
    return float(context.turn == 0 and context.memory == "green")


class NoteTaker(TextAgent):
    """Notes some colour, then answers some colour."""

    def write(self, request: TurnRequest) -> str:
        rng = slot_rng(request.key, "note")
        colour = COLOURS[int(rng.integers(len(COLOURS)))]
        if request.key.turn == 0:
            return f"<mem>{colour}</mem>{CALL}"
        return f"<mem>{request.observation['memory']}</mem><answer>{colour}</answer>"


def paid(lesson: Lesson, policy: LoraPolicy) -> float:
    """Share of 64 sampled episodes that earned the step reward; none may have had any outcome."""
    specs = [EpisodeSpec(f"test/{i}", 0, 5000 + i) for i in range(64)]
    episodes = rollout(policy, lesson.make_env, specs, seed=9, step=-1)
    assert not any(episode.outcome for episode in episodes)
    return sum(episode.episode_return for episode in episodes) / len(episodes)


@pytest.fixture(scope="module")
def note() -> Lesson:
    return Lesson(NoteEnv, 0.0, 100, demonstrator=NoteTaker("note taker"), reward_hook=pays_for_green)


def deaf(name: str) -> Algorithm[Any]:
    """An algorithm that is fed the outcome where it should see the return: it does not hear of step rewards."""
    algorithm = get_algorithm(name)()
    real = algorithm.advantages

    def outcome_only(groups: Any, scorer: Any) -> Advantages:
        stripped = [tuple(_outcome_on_last_turn(episode) for episode in group) for group in groups]
        assert all(episode.episode_return == episode.outcome for group in stripped for episode in group)
        return real(stripped, scorer)

    algorithm.advantages = outcome_only  # type: ignore[method-assign]
    return algorithm


def _outcome_on_last_turn(episode: Episode) -> Episode:
    rewards = [0.0] * (len(episode.turns) - 1) + [episode.outcome]
    turns = (dataclasses.replace(turn, reward=r) for turn, r in zip(episode.turns, rewards, strict=True))
    return episode.replace(turns=tuple(turns))


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_step_reward_that_only_the_return_shows(name: str, note: Lesson) -> None:
    """From one in four to more than eight in ten within 16 steps; fed the outcome instead, it stays at chance."""
    policy = note.fresh()
    assert 0.1 < paid(note, policy) < 0.4
    note.learn(policy, make(name), 16)
    assert paid(note, policy) >= 0.8

    policy = note.fresh()
    note.learn(policy, deaf(name), 16)
    assert paid(note, policy) <= 0.45

    policy = note.fresh()
    note.learn(policy, make(name, flipped=True), 16)
    assert paid(note, policy) <= 0.1
