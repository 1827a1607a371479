"""A small policy, real episodes with ids, and scorers that need no model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from mempo_env.actions import Answer
from mempo_env.agents.base import TurnOutput, TurnRequest
from mempo_env.agents.codec import CodecTokenCounter
from mempo_env.agents.contexts import MemoryContext
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.models import add_lora, make_codec
from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.rollout import as_groups, group_specs, rollout
from mempo_env.agents.row_batches import TokenRow
from mempo_env.agents.scoring import score_rows
from mempo_env.agents.scripted_expert import Flaws
from mempo_env.agents.settings import LoraSettings, SamplingConfig, TinyConfig
from mempo_env.agents.tiny import build_tiny
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.imitation import demonstration_rows, imitate, imitation_batches
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.envs.closed_world import closed_world_vocabulary
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.records import Episode, Goal, Group, Task, Turn
from mempo_env.segments import token_segments

SMALL = TinyConfig(layers=2, width=64, heads=4, feed_forward=128)
INSTRUCTIONS = "Answer all."


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Bit-for-bit comparisons need a fixed number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_policy(seed: int = 0, *, adapter: bool = True, max_new_tokens: int = 40, dropout: float = 0.0) -> LoraPolicy:
    model, tokenizer = build_tiny(seed, closed_world_vocabulary(), SMALL)
    codec = make_codec(model, tokenizer)
    settings = LoraSettings(rank=4, alpha=8, dropout=dropout)
    wrapped = add_lora(model, settings, seed=seed) if adapter else model
    return LoraPolicy(wrapped, codec, MemoryContext(), SamplingConfig(max_new_tokens=max_new_tokens))


@pytest.fixture(scope="session")
def make_policy() -> Callable[..., LoraPolicy]:
    """Untrained policies, built in place from a seed."""
    return small_policy


@pytest.fixture(scope="session")
def env_factory() -> Callable[..., Callable[[], MultiGoalEnv]]:
    """Makes factories of closed-world environments whose memory is counted by a policy's tokenizer."""

    def factory(policy: LoraPolicy, goals: int = 2, **changes: Any) -> Callable[[], MultiGoalEnv]:
        counter = CodecTokenCounter(policy.codec)
        settings = {"instructions": "terse", "outcome": "fraction", "world": {"distractors": 2}} | changes
        return lambda: MultiGoalEnv(goals=goals, token_counter=counter, **settings)

    return factory


@pytest.fixture(scope="session")
def imitated_weights(env_factory: Any) -> dict[str, torch.Tensor]:
    """Base weights of a policy that has learnt the format of an output, and little else."""
    torch.set_num_threads(1)
    policy = small_policy(adapter=False)
    make = env_factory(policy, goals=1)
    expert = ExpertAgent("brief", memory_counter=CodecTokenCounter(policy.codec))

    def rows(chunk: int) -> list[TokenRow]:
        episodes = rollout(expert, make, group_specs(range(32 * chunk, 32 * chunk + 32), 1), seed=0, step=0)
        return demonstration_rows(episodes, policy, INSTRUCTIONS)

    optimizer = Optimizer(trainable(policy.model), OptimConfig(name="muon", lr=5e-3), 45)
    imitate(policy, optimizer, imitation_batches(rows, 700, 0), 45, micro_batch_tokens=4000)
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


@pytest.fixture
def make_imitated(imitated_weights: dict[str, torch.Tensor]) -> Callable[..., LoraPolicy]:
    """Policies with imitated base weights and a fresh adapter."""

    def make(**settings: Any) -> LoraPolicy:
        policy = small_policy(adapter=False, **settings)
        policy.model.load_state_dict(imitated_weights)
        model = add_lora(policy.model, LoraSettings(rank=4, alpha=8))
        return LoraPolicy(model, policy.codec, policy.context, policy.sampling)

    return make


class RecordedDemonstrator:
    """A demonstrator whose turns carry what a policy's sampler would have recorded had it written the same."""

    name = "recorded"

    def __init__(self, policy: LoraPolicy, forget: float = 0.5) -> None:
        self.policy = policy
        self.writer = ExpertAgent(
            "brief", flaws=Flaws(forget=forget, bloat=0.3), memory_counter=CodecTokenCounter(policy.codec)
        )

    def act(self, requests: Sequence[TurnRequest]) -> list[TurnOutput]:
        codec = self.policy.codec
        rows = [
            TokenRow(self.policy.prompt_ids(request), tuple(codec.encode_text(self.writer.write(request))))
            for request in requests
        ]
        scored = score_rows(self.policy.model, rows, codec.pad_id, max_tokens=8192)
        return [
            TurnOutput(
                text=codec.decode(row.output_ids),
                n_prompt=len(row.prompt_ids),
                n_output=len(row.output_ids),
                prompt_ids=row.prompt_ids,
                output_ids=row.output_ids,
                logprobs=tuple(logprobs.tolist()),
                segments=token_segments(codec.token_bytes(row.output_ids)),
                stop_reason="action",
            )
            for row, logprobs in zip(rows, scored, strict=True)
        ]


@pytest.fixture
def record_groups(env_factory: Any) -> Callable[..., list[Group]]:
    """Plays groups on real tasks; episodes of a group differ in what the demonstrator forgot."""

    def record(policy: LoraPolicy, groups: int = 3, size: int = 4, goals: int = 2, **env: Any) -> list[Group]:
        specs = group_specs(range(groups), size)
        return as_groups(
            rollout(RecordedDemonstrator(policy), env_factory(policy, goals, **env), specs, seed=0, step=0)
        )

    return record


@pytest.fixture(scope="session")
def shared_groups(env_factory: Any) -> tuple[Group, ...]:
    """Three groups of four, recorded with the untrained policy of seed 0."""
    torch.set_num_threads(1)
    policy = small_policy()
    specs = group_specs(range(3), 4)
    groups = as_groups(rollout(RecordedDemonstrator(policy), env_factory(policy), specs, seed=0, step=0))
    returns = [{episode.episode_return for episode in group} for group in groups]
    assert sum(len(different) > 1 for different in returns) >= 2, "the groups must have variance"
    assert len({len(episode.turns) for group in groups for episode in group}) > 1, "lengths must differ"
    return tuple(groups)


class FakeScorer:
    """Scores by given numbers, or by a hash of the text; remembers what it was asked."""

    def __init__(
        self, qualities: dict[str, float] | None = None, histories: dict[tuple[int, int], float] | None = None
    ):
        self.qualities = qualities
        self.histories = histories
        self.references: list[float] = [0.25, 0.5]
        self.memories: list[tuple[Episode, str]] = []
        self.turns: list[tuple[Episode, int]] = []

    def memory_quality(self, items: Sequence[tuple[Episode, str]]) -> torch.Tensor:
        self.memories += items
        values = [_hashed(memory) if self.qualities is None else self.qualities[memory] for _, memory in items]
        return torch.tensor(values, dtype=torch.float64)

    def history_quality(self, items: Sequence[tuple[Episode, int]]) -> torch.Tensor:
        self.turns += items
        return torch.tensor(
            [
                _hashed(f"{episode.rollout_id}/{t}")
                if self.histories is None
                else self.histories[episode.rollout_id, t]
                for episode, t in items
            ],
            dtype=torch.float64,
        )

    def reference_quality(self, groups: Sequence[Group], episodes: int) -> list[torch.Tensor]:
        return [torch.tensor(self.references, dtype=torch.float64) for _ in groups]


def _hashed(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") / 2**32


@pytest.fixture(scope="session")
def fake_scorer() -> type[FakeScorer]:
    return FakeScorer


@pytest.fixture
def small_turn() -> Callable[..., Turn]:
    """A turn of four output tokens: two of the memory, two of the answer."""

    def make(memory: str, reward: float = 0.0, before: str = "", written: bool = True) -> Turn:
        return Turn(
            observation={"task": "Q?", "memory": before, "tool_result": "", "budget": ""},
            text=f"<mem>{memory}</mem><answer>x</answer>",
            action=Answer(("x",)),
            reward=reward,
            reward_components={"outcome": reward},
            memory=memory,
            memory_written=written,
            n_prompt=3,
            n_output=4,
            prompt_ids=(1, 2, 3),
            output_ids=(4, 5, 6, 7),
            logprobs=(-1.0, -1.0, -1.0, -1.0),
            segments=(1, 1, 4, 4),
        )

    return make


@pytest.fixture
def small_episode() -> Callable[..., Episode]:
    """An episode from turns; its outcome is the last reward."""

    def make(rollout_id: int, turns: Sequence[Turn], error: str | None = None) -> Episode:
        return Episode(
            turns=tuple(turns),
            task=Task((Goal("Q?", ("x",)),), id="t"),
            group_id="g",
            rollout_id=rollout_id,
            seed=0,
            outcome=turns[-1].reward,
            terminated=error is None,
            truncated=error is not None,
            error=error,
        )

    return make
