"""The configuration of a run, as typed dataclasses; importing it imports no torch.

Invariant: a config that was constructed is consistent (cross-field checks at construction), serialises to JSON and back
without loss, and is written into the run folder before anything else.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mempo_env.budgets import BUDGETS
from mempo_env.errors import UserError, unknown_name
from mempo_env.prompts import InstructionStyle, MemoryMode
from mempo_env.rewards import OutcomeMode

from ..agents.settings import LoraSettings, SamplingConfig, TinyConfig


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
        if self.lr <= 0 or self.max_grad_norm <= 0:
            raise UserError(f"lr={self.lr} and max_grad_norm={self.max_grad_norm} must be positive")
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
        two_hop_share: Closed world: share of two-hop goals.
        comparison_share: Closed world: share of comparison goals.
        distractors: Closed world: strangers' passages in the corpus.
    """

    outcome: OutcomeMode = "binary"
    memory: MemoryMode = "required"
    instructions: InstructionStyle = "full"
    format_penalty: float = 0.0
    topk: int = 1
    max_passage_tokens: int = 120
    two_hop_share: float = 0.25
    comparison_share: float = 0.1
    distractors: int = 8


@dataclass(frozen=True)
class WarmStartConfig:
    """Imitation before reinforcement learning.

    Attributes:
        target: ``all`` weights, or the ``adapter`` that is trained on afterwards. ``none`` skips the warm start.
        perfect_steps: Optimizer steps on the perfect expert.
        demonstrator_steps: Optimizer steps after that on the imperfect demonstrator.
        forget: Probability with which the demonstrator forgets each remembered note at every rewrite.
        goals: Least and most goals of a demonstrated task.
        tokens_per_step: Padded tokens of one optimizer step.
        episodes_per_chunk: Demonstrated episodes drawn at a time, then sorted by length and cut into steps.
        optim: The optimizer, over the steps of both parts.
    """

    target: Literal["all", "adapter", "none"] = "adapter"
    perfect_steps: int = 0
    demonstrator_steps: int = 100
    forget: float = 0.2
    goals: tuple[int, int] = (1, 4)
    tokens_per_step: int = 8192
    episodes_per_chunk: int = 64
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.forget <= 1:
            raise UserError(f"forget={self.forget} must lie in [0, 1]")
        check_goals(self.goals)


@dataclass(frozen=True)
class TrainConfig:
    """The reinforcement learning loop.

    Attributes:
        groups_per_step: Tasks per step.
        group_size: Episodes per task.
        epochs: Passes over a step's episodes.
        minibatches: Optimizer steps per pass; cut by groups.
        micro_batch_tokens: Padded tokens per forward and backward pass.
        score_scope: Scope of Q(m): ``joint`` or ``per_goal``.
        save_every: Steps between checkpoints; the last step always has one.
        keep_checkpoints: Older ones are removed.
        optim: The optimizer.
    """

    groups_per_step: int = 8
    group_size: int = 16
    epochs: int = 1
    minibatches: int = 1
    micro_batch_tokens: int = 16384
    score_scope: Literal["joint", "per_goal"] = "joint"
    save_every: int = 20
    keep_checkpoints: int = 2
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        for name in ("groups_per_step", "group_size", "epochs", "minibatches", "save_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
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
    """

    goals: tuple[int, ...] = (2, 4, 6, 8, 10)
    episodes: int = 100
    greedy: bool = True
    split: Literal["dev", "test"] = "dev"
    batch: int = 128

    def __post_init__(self) -> None:
        for goals in self.goals:
            check_goals((goals, goals))


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is made of, beside the algorithm's own settings.

    Attributes:
        algo: Name, ``package.module:Class``, or entry point of the algorithm.
        preset: Name of the preset that gave the defaults.
        env: Environment id.
        model: ``tiny`` (built in place), ``smollm2``, a hub id, a folder or a GGUF file.
        dtype: Weights' type of a loaded model.
        dataset: ``closed-world`` or ``qa``.
        data: Folders with ``questions.*.jsonl.gz`` and ``corpus.jsonl.gz`` for ``qa``.
        goals: Goals per task: one number, or least and most.
        budget: Named budget.
        context: Context strategy.
        steps: Optimizer steps of reinforcement learning (times epochs and minibatches).
        seed: Seed of everything.
        out: Run folder; empty: ``runs/<preset>-<algo>-<time>``.
        threads: CPU threads; 0 leaves torch's choice.
        device: ``auto``, ``cpu`` or ``cuda``.
        max_prompt_tokens: Longest input; 0: the model's limit.
        env_args: The environment's settings.
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
    dtype: Literal["float32", "bfloat16"] = "float32"
    dataset: str = "closed-world"
    data: tuple[str, ...] = ()
    goals: tuple[int, ...] = (4,)
    budget: str = "brief"
    context: str = "memory"
    steps: int = 40
    seed: int = 0
    out: str = ""
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_prompt_tokens: int = 0
    env_args: EnvSettings = field(default_factory=EnvSettings)
    tiny: TinyConfig = field(default_factory=TinyConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        if len(self.goals) not in (1, 2):
            raise UserError(f"goals={self.goals}: give one number, or the least and the most")
        check_goals((self.goals[0], self.goals[-1]))
        if self.budget not in BUDGETS:
            raise unknown_name("budget", self.budget, BUDGETS)
        if self.steps < 0:
            raise UserError(f"steps={self.steps} must not be negative")
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
        raise UserError(f"goals {low} to {high}: a task has 1 to 16 goals, the least first")


def config_to_json(config: Any) -> str:
    """Serialises a config dataclass."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def config_from_dict(cls: type[Any], data: dict[str, Any], where: str = "") -> Any:
    """Rebuilds a config dataclass from its JSON form.

    Args:
        cls: The dataclass.
        data: What ``json.loads`` gave.
        where: Path for error messages.

    Returns:
        The instance.

    Raises:
        UserError: A key is unknown.
    """
    hints = typing.get_type_hints(cls)
    unknown = set(data) - set(hints)
    if unknown:
        raise UserError(
            f"{where or cls.__name__} has unknown keys {sorted(unknown)}; was it written by another version?"
        )
    values: dict[str, Any] = {}
    for name, value in data.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            values[name] = config_from_dict(hint, value, f"{where}.{name}")
        elif isinstance(value, list):
            values[name] = tuple(value)
        else:
            values[name] = value
    return cls(**values)


def read_config(path: Path) -> dict[str, Any]:
    """Reads a run folder's ``config.json``.

    Raises:
        UserError: It is missing or no JSON.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {path.parent} is no run folder") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
