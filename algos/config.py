"""The configuration of a run, as typed dataclasses; importing it imports no torch.

Invariant: a config that was constructed is consistent: every number is in its range, cross-field checks are made at
construction. ``config_io`` writes it into the run folder and reads it back without loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from mempo_env.budgets import BUDGETS
from mempo_env.errors import UserError, unknown_name
from mempo_env.prompts import InstructionStyle, MemoryMode
from mempo_env.rewards import OutcomeMode

from ..agents.settings import LoraSettings, SamplingConfig, TinyConfig
from ..envs.composition import Composition, CompositionName
from .algorithm_config import check_choices


@dataclass(frozen=True)
class OptimConfig:
    """An optimizer and its schedule.

    Attributes:
        name: ``adamw``, or ``muon`` for hidden matrices with AdamW for embeddings, biases and norms.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay.
        betas: AdamW's betas.
        max_grad_norm: Gradients are clipped to this norm.
        warmup_steps: Linear warm-up from 0.
        schedule: After the warm-up: ``constant``, or ``linear`` decay to 0 from ``decay_from`` of the steps on.
        decay_from: Share of the steps at which the decay starts.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 5e-5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear"] = "constant"
    decay_from: float = 0.5

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.lr < math.inf or not self.max_grad_norm > 0:  # a NaN here would make every weight one
            raise UserError(f"lr={self.lr} must be positive and finite, max_grad_norm={self.max_grad_norm} positive")
        at_least(0, weight_decay=self.weight_decay, warmup_steps=self.warmup_steps)
        if not 0 <= self.betas[0] < 1 or not 0 <= self.betas[1] < 1:
            raise UserError(f"betas={self.betas} must lie in [0, 1)")
        if not 0 <= self.decay_from < 1:
            raise UserError(f"decay_from={self.decay_from} must lie in [0, 1)")


@dataclass(frozen=True)
class EnvSettings:
    """What the environment is made with, beside the common flags.

    Attributes:
        outcome: Outcome reward.
        memory: Whether a memory is required.
        instructions: Style of the system message.
        format_penalty: Subtracted per format error.
        topk: Passages per query.
        max_passage_tokens: Longest passage shown.
        retrieval: ``bm25``, ``dense:MODEL`` or the address of a search server, such as ``http://127.0.0.1:8000``.
        two_hop_share: Closed world: share of two-hop goals.
        comparison_share: Closed world: share of comparison goals.
        distractors: Closed world: strangers' passages in the corpus.
        score_step: Closed world: distance between possible scores.
        composition: Files: which questions make a task (docs/data.md).
        hops: Files: gold passages of a question, one number or least and most; none: any.
        kinds: Files: kinds of questions, such as ``bridge``; none: all.
    """

    outcome: OutcomeMode = "binary"
    memory: MemoryMode = "required"
    instructions: InstructionStyle = "full"
    format_penalty: float = 0.0
    topk: int = 1
    max_passage_tokens: int = 120
    retrieval: str = "bm25"
    two_hop_share: float = 0.25
    comparison_share: float = 0.1
    distractors: int = 8
    score_step: int = 1
    composition: CompositionName = "pooled"
    hops: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        Composition.of(self.composition, self.hops, self.kinds)


@dataclass(frozen=True)
class WarmStartConfig:
    """Imitation before reinforcement learning.

    Attributes:
        target: ``all`` weights, or the ``adapter`` that is trained on afterwards. ``none`` skips the warm start.
        perfect_steps: Optimizer steps on the perfect expert.
        demonstrator_steps: Optimizer steps after that on the imperfect demonstrator.
        forget: Probability with which the demonstrator forgets each remembered note at every rewrite.
        goals: Least and most goals of a demonstrated task.
        curriculum: Pairs (steps, most goals): so many of the perfect steps, the first ones, see at most so many goals;
            it ends where the perfect steps do. Copying is found much sooner on short tasks (docs/demo.md).
        recall_rows: Whether one more row per episode asks for the answers from task and memory alone, the prompt of
            Q(m). A model built in place has never answered such a prompt, and its Q(m) would mean nothing.
        tokens_per_step: Padded tokens of one optimizer step.
        episodes_per_chunk: Demonstrated episodes drawn at a time, then sorted by length and cut into steps.
        optim: The optimizer, over the steps of both parts.
    """

    target: Literal["all", "adapter", "none"] = "adapter"
    perfect_steps: int = 0
    demonstrator_steps: int = 100
    forget: float = 0.2
    goals: tuple[int, int] = (1, 4)
    curriculum: tuple[tuple[int, int], ...] = ()
    recall_rows: bool = False
    tokens_per_step: int = 8192
    episodes_per_chunk: int = 64
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.forget <= 1:
            raise UserError(f"forget={self.forget} must lie in [0, 1]")
        at_least(0, perfect_steps=self.perfect_steps, demonstrator_steps=self.demonstrator_steps)
        at_least(1, tokens_per_step=self.tokens_per_step, episodes_per_chunk=self.episodes_per_chunk)
        check_goals(self.goals)
        for steps, most in self.curriculum:
            at_least(1, curriculum_steps=steps)
            check_goals((self.goals[0], most))


@dataclass(frozen=True)
class TrainConfig:
    """The reinforcement learning loop.

    Attributes:
        groups_per_step: Tasks per step.
        group_size: Episodes per task; an algorithm that compares them (GRPO, MemPO) needs 2 or more.
        epochs: Passes over a step's episodes.
        minibatches: Optimizer steps per pass; cut by groups.
        micro_batch_tokens: Padded tokens per forward and backward pass.
        gradient_checkpointing: Whether each layer is computed again in the backward pass, of imitation too, instead of
            kept: a fraction of the memory, for one more forward pass. On a GPU rows then share no prefixes in updates.
        score_scope: Scope of Q(m): ``joint`` or ``per_goal``.
        save_every: Steps between checkpoints; the last step always has one.
        keep_checkpoints: Older ones are removed.
        save_episodes: Training episodes kept with advantages and Q(m) for ``mempo view``, at the first step and at each
            step with a checkpoint; the group size keeps one group whole. 0: none.
        stop_kl: Ends the run, with a checkpoint, after a step in which KL(policy || reference) was above this: the mean
            over the tokens trained on of Schulman's k3 estimate (2020), in nats. Distance from the reference is what
            over-optimisation grows with (Gao et al., arXiv 2210.10760); no source gives a number. 0: never.
        optim: The optimizer.
    """

    groups_per_step: int = 8
    group_size: int = 16
    epochs: int = 1
    minibatches: int = 1
    micro_batch_tokens: int = 16384
    gradient_checkpointing: bool = False
    score_scope: Literal["joint", "per_goal"] = "joint"
    save_every: int = 20
    keep_checkpoints: int = 2
    save_episodes: int = 0
    stop_kl: float = 0.0
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, groups_per_step=self.groups_per_step, group_size=self.group_size, epochs=self.epochs)
        at_least(1, minibatches=self.minibatches, micro_batch_tokens=self.micro_batch_tokens)
        at_least(1, save_every=self.save_every, keep_checkpoints=self.keep_checkpoints)
        at_least(0, stop_kl=self.stop_kl, save_episodes=self.save_episodes)
        if self.minibatches > self.groups_per_step:
            raise UserError(f"minibatches={self.minibatches} cannot exceed groups_per_step={self.groups_per_step}")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation before and after training.

    Attributes:
        goals: Numbers of goals to test.
        episodes: Episodes per number of goals; 0 skips the evaluation.
        greedy: Greedy decoding; off samples at temperature 1.
        split: Split of the tasks, never the training one.
        batch: Episodes played side by side.
        ceilings: Whether to measure what could be reached as well: the expert itself, and the imitation of the perfect
            expert with as many steps as the warm start took.
    """

    goals: tuple[int, ...] = (2, 4, 6, 8, 10)
    episodes: int = 100
    greedy: bool = True
    split: Literal["dev", "test"] = "dev"
    batch: int = 128
    ceilings: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.goals:
            raise UserError("no number of goals to evaluate: give one or more")
        for goals in self.goals:
            check_goals((goals, goals))
        at_least(0, episodes=self.episodes)
        at_least(1, batch=self.batch)


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is made of, beside the algorithm's own settings.

    Attributes:
        algo: Name, ``package.module:Class``, or entry point of the algorithm.
        preset: Name of the preset that gives the defaults.
        env: Environment id.
        model: ``tiny`` (built in place), ``smollm2``, a hub id, a folder or a GGUF file.
        dataset: ``closed-world`` or ``qa``.
        data: Folders, files or names on the hub (``hub:hotpotqa``) for ``qa``; see docs/data.md.
        goals: Goals per task: one number, or least and most.
        budget: Named budget: ``brief`` or ``paper``.
        steps: Steps of reinforcement learning, each a batch of groups sampled and learned from.
        seed: Seed of everything.
        out: Run folder; by default ``runs/<preset>-<algo>-<time>``.
        context: What the model sees: ``memory``, ``history``, ``mem1``, ``window-3`` or ``retrieved``, for example.
        dtype: Weights' type of a loaded model.
        device: Where the model runs; ``auto``: CUDA if there is any.
        threads: CPU threads; 0 leaves torch's choice.
        max_prompt_tokens: Longest input; 0: the model's limit.
        env_args: The environment's settings.
        env_options: Further arguments of another environment, each ``name=value``, such as ``chunks=8``.
        tiny: Shape of the model built in place.
        lora: The adapter.
        sampling: How training episodes are sampled.
        warm_start: Imitation first.
        train: The loop.
        eval: Evaluation before and after.
    """

    algo: str = "mempo"
    preset: str = "tiny"
    env: str = "MemPO-MultiGoal-v0"
    model: str = "tiny"
    dataset: str = "closed-world"
    data: tuple[str, ...] = ()
    goals: tuple[int, ...] = (4,)
    budget: str = "brief"
    steps: int = 40
    seed: int = 0
    out: str = ""
    context: str = "memory"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    max_prompt_tokens: int = 0
    env_args: EnvSettings = field(default_factory=EnvSettings)
    env_options: tuple[str, ...] = ()
    tiny: TinyConfig = field(default_factory=TinyConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        check_choices(self)
        if len(self.goals) not in (1, 2):
            raise UserError(f"--goals takes one number, or the least and the most, not {len(self.goals)} numbers")
        check_goals((self.goals[0], self.goals[-1]))
        if self.budget not in BUDGETS:
            raise unknown_name("budget", self.budget, BUDGETS)
        at_least(0, steps=self.steps, seed=self.seed, threads=self.threads, max_prompt_tokens=self.max_prompt_tokens)
        if self.dataset == "qa" and not self.data:
            raise UserError("dataset='qa' needs --data with a folder of questions and corpus files")
        if self.sampling.greedy and self.steps:
            raise UserError("training samples at a temperature: greedy episodes of a group would all be equal")

    @property
    def goal_range(self) -> tuple[int, int]:
        """Least and most goals of a training task."""
        return self.goals[0], self.goals[-1]


def check_goals(goals: tuple[int, int]) -> None:
    """Checks a range of goals.

    Raises:
        UserError: It is empty or leaves 1-16.
    """
    low, high = goals
    if not 1 <= low <= high <= 16:
        given = f"{low}" if low == high else f"{low} {high}"
        raise UserError(f"goals {given}: a task has 1 to 16 goals, the least first")


def at_least(least: float, **values: float) -> None:
    """Checks numbers, given by the names of their fields, against a lower bound.

    Raises:
        UserError: One is below.
    """
    for name, value in values.items():
        if not value >= least:  # also refuses NaN
            raise UserError(f"{name}={value} must be at least {least}")
