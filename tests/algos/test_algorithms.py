"""What every registered algorithm must keep, and MemPO's advantages against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch

from mempo_env.actions import Segment
from mempo_env.algos import ALGORITHMS
from mempo_env.algos.algorithm_config import EPS, GRPOConfig, MemPOConfig, MemPOPaperConfig
from mempo_env.algos.base import Algorithm, get_algorithm
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.config_io import config_from_dict
from mempo_env.algos.grpo import GRPO, GroupRelative
from mempo_env.algos.mempo import MemPO, MemPOPaper
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.update import Updater
from mempo_env.errors import UserError
from mempo_env.records import Episode, Group, Turn
from mempo_env.rewards import TurnContext

NAMES = ALGORITHMS.names()
every_algorithm = pytest.mark.parametrize("name", NAMES)
every_comparing_algorithm = pytest.mark.parametrize(
    "name", [name for name in NAMES if issubclass(get_algorithm(name), GroupRelative)]
)


@pytest.fixture
def ready(make_policy: Any) -> Callable[[str], Algorithm[Any]]:
    """Algorithms with their defaults, set up on an untrained policy; a value head says something else than 0."""

    def make(name: str) -> Algorithm[Any]:
        algorithm = get_algorithm(name)()
        algorithm.setup(make_policy())
        with torch.no_grad():
            for parameter in algorithm.extra_parameters():
                parameter.copy_(torch.linspace(-0.2, 0.3, parameter.numel()).reshape(parameter.shape))
        return algorithm

    return make


@every_algorithm
def test_defaults_construct_and_settings_survive_json(name: str) -> None:
    algorithm = get_algorithm(name)()
    config: Any = algorithm.config
    assert algorithm.name == name
    assert "arXiv" in algorithm.source
    assert isinstance(algorithm.config, algorithm.config_class)
    text = json.dumps(dataclasses.asdict(config))
    assert config_from_dict(algorithm.config_class, json.loads(text)) == algorithm.config


@every_algorithm
def test_every_token_of_every_turn_has_an_advantage(
    name: str, ready: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    broken = shared_groups[0][1].replace(error="the tool was down", truncated=True, terminated=False)
    groups = [(shared_groups[0][0], broken, *shared_groups[0][2:]), *shared_groups[1:]]
    tokens = ready(name).advantages(groups, fake_scorer()).tokens
    sizes = {
        (g, i, t): turn.n_output
        for g, group in enumerate(groups)
        for i, episode in enumerate(group)
        for t, turn in enumerate(episode.turns)
    }
    assert {key: tuple(value.shape) for key, value in tokens.items()} == {key: (n,) for key, n in sizes.items()}
    assert all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in tokens.values())
    assert not any(bool(value.any()) for (g, i, _), value in tokens.items() if (g, i) == (0, 1))
    assert any(bool(value.any()) for value in tokens.values())


@every_algorithm
def test_an_error_enters_no_statistic(name: str, ready: Any, shared_groups: Any, fake_scorer: Any) -> None:
    group = shared_groups[0]
    broken = group[3].replace(error="down", outcome=1.0)
    with_error = ready(name).advantages([(*group[:3], broken)], fake_scorer()).tokens
    without = ready(name).advantages([group[:3]], fake_scorer()).tokens
    assert all(torch.equal(with_error[key], value) for key, value in without.items())


@every_comparing_algorithm
def test_nothing_to_compare_is_zero(name: str, ready: Any, shared_groups: Any, fake_scorer: Any) -> None:
    def all_zero(group: Group, scorer: Any) -> bool:
        return not any(bool(v.any()) for v in ready(name).advantages([group], scorer).tokens.values())

    group = shared_groups[0]
    assert all_zero(group[:1], fake_scorer())
    assert all_zero((group[0], *(episode.replace(error="down") for episode in group[1:])), fake_scorer())
    assert all_zero(tuple(episode.replace(error="down") for episode in group), fake_scorer())

    class Equal:
        def memory_quality(self, items: Sequence[Any]) -> torch.Tensor:
            return torch.full((len(items),), 0.1, dtype=torch.float64)

        history_quality = memory_quality

        def reference_quality(self, groups: Sequence[Group], episodes: int) -> list[torch.Tensor]:
            return [self.memory_quality(range(episodes)) for _ in groups]

    same = tuple(
        episode.replace(outcome=0.5, turns=tuple(dataclasses.replace(turn, reward=0.1) for turn in group[0].turns))
        for episode in group
    )
    assert all_zero(same, Equal())


def wordiness(context: TurnContext) -> float:
    return 0.01 * len(context.memory.split())


@every_algorithm
def test_a_reward_hook_moves_the_advantages(
    name: str, ready: Any, make_policy: Any, record_groups: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    hooked = record_groups(make_policy(), reward_hook=wordiness)
    texts = [[turn.text for episode in group for turn in episode.turns] for group in shared_groups]
    assert [[turn.text for episode in group for turn in episode.turns] for group in hooked] == texts
    plain = ready(name).advantages(shared_groups, fake_scorer()).tokens
    moved = ready(name).advantages(hooked, fake_scorer()).tokens
    for g, group in enumerate(hooked):
        if len({episode.episode_return - episode.outcome for episode in group}) > 1:
            assert any(not torch.equal(plain[key], moved[key]) for key in plain if key[0] == g)


@every_comparing_algorithm
def test_more_rows_of_an_episode_change_no_trajectory_advantage(
    name: str, ready: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    """A^T is computed over episodes; a mean over turns would shift when one episode has twice as many."""
    group = shared_groups[0]
    silent = [dataclasses.replace(turn, reward=0.0, memory_written=False) for turn in group[0].turns]
    longer = group[0].replace(turns=(*silent, *group[0].turns))
    n = len(silent)
    plain = ready(name).advantages([group], fake_scorer()).tokens
    doubled = ready(name).advantages([(longer, *group[1:])], fake_scorer()).tokens
    for (_, i, t), value in plain.items():
        answer = torch.tensor(group[i].turns[t].segments) != Segment.MEMORY
        assert torch.equal(value[answer], doubled[0, i, t + (n if i == 0 else 0)][answer])


# The registry -----------------------------------------------------------------------------------------------------


class HalfDone(Algorithm[GRPOConfig]):
    name, config_class, source = "half", GRPOConfig, "a test"

    def advantages(self, groups: Any, scorer: Any) -> Any:
        raise AssertionError("an algorithm that is not whole is refused before it is asked")


class Nameless(GRPO):
    config_class = int


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("collections:Counter", "no subclass of mempo_env.algos.base.Algorithm"),
        ("math:pi", "no subclass of mempo_env.algos.base.Algorithm"),
        ("memppo", "did you mean 'mempo'"),
        ("mempo_env.algos.base:Algorithm", "not complete; define advantages, token_loss"),
        ("mempo_env.algos.grpo:GroupRelative", "must set name, config_class, source"),
    ],
)
def test_what_is_no_algorithm_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_algorithm(name)


@pytest.mark.parametrize(("made", "message"), [(HalfDone, "define token_loss"), (Nameless, "config_class to a datac")])
def test_an_algorithm_that_is_not_whole_is_refused(made: type, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ALGORITHMS, "get", lambda name: made)
    with pytest.raises(UserError, match=message):
        get_algorithm("mine")


# MemPO and GRPO ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [MemPOConfig(weight=0.0), MemPOPaperConfig(weight=0.0)])
def test_without_weight_it_is_grpo_to_the_bit(
    config: MemPOConfig, make_policy: Any, shared_groups: Any, fake_scorer: Any
) -> None:
    scorer = fake_scorer()
    results = []
    for algorithm in (GRPO(), MemPO(config)):
        policy = make_policy()
        advantages = algorithm.advantages(shared_groups, scorer)
        optimizer = Optimizer(trainable(policy.model), OptimConfig(lr=1e-2), 1)
        Updater(policy, algorithm, optimizer, micro_batch_tokens=4096).update(shared_groups, advantages)
        results.append((advantages.tokens, policy.trainable_parameters()))
    (tokens, parameters), (other_tokens, other_parameters) = results
    assert not scorer.memories
    assert all(torch.equal(value, other_tokens[key]) for key, value in tokens.items())
    assert all(torch.equal(p, q) for p, q in zip(parameters, other_parameters, strict=True))
    assert any(bool(p.any()) for n, p in trainable(policy.model) if "lora_B" in n), "the update must have moved it"


@pytest.mark.parametrize("algorithm", [MemPO(), MemPOPaper(), MemPO(MemPOConfig(baseline="old_memory"))])
def test_only_tokens_of_the_memory_segment_get_memory_credit(
    algorithm: MemPO, shared_groups: Any, fake_scorer: Any
) -> None:
    plain = GRPO().advantages(shared_groups, fake_scorer()).tokens
    full = algorithm.advantages(shared_groups, fake_scorer()).tokens
    credited = 0
    for (g, i, t), value in full.items():
        turn = shared_groups[g][i].turns[t]
        memory = torch.tensor(turn.segments) == Segment.MEMORY
        extra = value - plain[g, i, t]
        assert memory.any()
        assert not bool(extra[~memory].any())
        assert extra[memory].unique().numel() == 1
        credited += bool(extra.any())
    assert credited > len(full) / 2


def test_each_memory_is_scored_once(shared_groups: Any, fake_scorer: Any) -> None:
    scorer = fake_scorer()
    MemPO().advantages(shared_groups, scorer)
    written = [
        (id(episode), turn.memory)
        for group in shared_groups
        for episode in group
        for turn in episode.turns
        if turn.memory_written
    ]
    assert [(id(episode), memory) for episode, memory in scorer.memories] == written


QUALITY = {"a": 0.2, "b": 0.4, "c": 0.8, "d": 0.1, "e": 0.3, "": 0.05, "unseen": 0.9}


@pytest.fixture
def hand_group(small_turn: Callable[..., Turn], small_episode: Callable[..., Episode]) -> Group:
    """Episode 0 writes a, then b and succeeds; 1 writes c; 2 writes d, then e. Qualities: see QUALITY."""
    return (
        small_episode(0, [small_turn("a"), small_turn("b", 1.0, before="a")]),
        small_episode(1, [small_turn("c", 0.0)]),
        small_episode(2, [small_turn("d"), small_turn("e", 0.0, before="d")]),
    )


def memory_credit(algorithm: MemPO, group: Group, scorer: Any) -> list[float]:
    """A^M of each turn, read off its first token, after checking that A^T stands on all."""
    plain = GRPO(GRPOConfig()).advantages([group], scorer).tokens
    full = algorithm.advantages([group], scorer).tokens
    for key in full:
        assert torch.equal(full[key][2:], plain[key][2:])
        assert full[key][0] == full[key][1]
    return [(full[key][0] - plain[key][0]).item() for key in full]


def close(expected: Iterable[float]) -> Any:
    return pytest.approx(list(expected), abs=1e-6)


def test_trajectory_advantage_by_hand(hand_group: Group, fake_scorer: Any) -> None:
    tokens = GRPO().advantages([hand_group], fake_scorer()).tokens
    std = math.sqrt(((2 / 3) ** 2 + 2 * (1 / 3) ** 2) / 2)
    expected = {0: (2 / 3) / (std + EPS), 1: (-1 / 3) / (std + EPS), 2: (-1 / 3) / (std + EPS)}
    for (_, i, _), value in tokens.items():
        assert value.tolist() == close([expected[i]] * 4)


def test_default_form_by_hand(hand_group: Group, fake_scorer: Any) -> None:
    """b is the mean over the memories of the other episodes: (.8+.1+.3)/3, (.2+.4+.1+.3)/4, (.2+.4+.8)/3."""
    expected = [0.2 - 0.4, 0.4 - 0.4, 0.8 - 0.25, 0.1 - 1.4 / 3, 0.3 - 1.4 / 3]
    assert memory_credit(MemPO(), hand_group, fake_scorer(QUALITY)) == close(expected)
    half = MemPO(MemPOConfig(weight=0.5))
    assert memory_credit(half, hand_group, fake_scorer(QUALITY)) == close(0.5 * value for value in expected)


def test_old_memory_by_hand(hand_group: Group, fake_scorer: Any) -> None:
    algorithm = MemPO(MemPOConfig(baseline="old_memory"))
    expected = [0.2 - 0.05, 0.4 - 0.2, 0.8 - 0.05, 0.1 - 0.05, 0.3 - 0.1]
    assert memory_credit(algorithm, hand_group, fake_scorer(QUALITY)) == close(expected)


def test_empty_memory_by_hand(hand_group: Group, fake_scorer: Any) -> None:
    algorithm = MemPO(MemPOConfig(baseline="empty_memory"))
    expected = [QUALITY[m] - 0.05 for m in "abcde"]
    assert memory_credit(algorithm, hand_group, fake_scorer(QUALITY)) == close(expected)


HISTORY = {(0, 0): 0.1, (0, 1): 0.5, (1, 0): 0.2, (2, 0): 0.3, (2, 1): 0.1}
REWARD = [0.2 - 0.1, 0.4 - 0.5, 0.8 - 0.2, 0.1 - 0.3, 0.3 - 0.1]


def z_scores(values: Sequence[float]) -> list[float]:
    mean, std = statistics.mean(values), statistics.stdev(values)
    return [(value - mean) / (std + EPS) for value in values]


def test_paper_form_by_hand(hand_group: Group, fake_scorer: Any) -> None:
    credit = memory_credit(MemPOPaper(), hand_group, fake_scorer(QUALITY, HISTORY))
    assert credit == close(z_scores(REWARD))


def test_paper_form_per_turn_by_hand(hand_group: Group, fake_scorer: Any) -> None:
    algorithm = MemPOPaper(MemPOPaperConfig(normalisation="per_turn", weight=2.0))
    first, second = z_scores([REWARD[0], REWARD[2], REWARD[3]]), z_scores([REWARD[1], REWARD[4]])
    expected = [first[0], second[0], first[1], first[2], second[1]]
    assert memory_credit(algorithm, hand_group, fake_scorer(QUALITY, HISTORY)) == close(2 * v for v in expected)


def failed(group: Group) -> Group:
    return tuple(
        episode.replace(outcome=0.0, turns=tuple(dataclasses.replace(t, reward=0.0) for t in episode.turns))
        for episode in group
    )


def test_guard_in_groups_where_all_failed(hand_group: Group, fake_scorer: Any) -> None:
    """Not divided by a std, and only what is above the baseline."""
    group = failed(hand_group)
    assert memory_credit(MemPO(), group, fake_scorer(QUALITY)) == close([0, 0, 0.55, 0, 0])
    paper = memory_credit(MemPOPaper(), group, fake_scorer(QUALITY, HISTORY))
    assert paper == close(max(value, 0) for value in REWARD)
    unguarded = memory_credit(MemPOPaper(MemPOPaperConfig(credit="all")), group, fake_scorer(QUALITY, HISTORY))
    assert unguarded == close(z_scores(REWARD))


def test_credit_for_successes_only(hand_group: Group, fake_scorer: Any) -> None:
    algorithm = MemPO(MemPOConfig(credit="successes", baseline="old_memory"))
    assert memory_credit(algorithm, hand_group, fake_scorer(QUALITY)) == close([0.15, 0.2, 0, 0, 0])
    assert memory_credit(algorithm, failed(hand_group), fake_scorer(QUALITY)) == close([0] * 5)


def test_a_memory_that_was_not_committed_earns_nothing(
    hand_group: Group, small_turn: Any, small_episode: Any, fake_scorer: Any
) -> None:
    silent = small_turn("unseen", 0.0, written=False)
    group = (*hand_group[:2], small_episode(2, [small_turn("d"), silent]))
    expected = [0.2 - 0.45, 0.4 - 0.45, 0.8 - 0.7 / 3, 0.1 - 1.4 / 3, 0.0]
    assert memory_credit(MemPO(), group, fake_scorer(QUALITY)) == close(expected)


def test_a_single_memory_has_nothing_to_compare(small_turn: Any, small_episode: Any, fake_scorer: Any) -> None:
    group = (
        small_episode(0, [small_turn("a", 1.0)]),
        small_episode(1, [small_turn("unseen", 0.0, written=False)]),
    )
    for algorithm in (MemPO(), MemPOPaper(), MemPO(MemPOConfig(baseline="old_memory"))):
        assert memory_credit(algorithm, group, fake_scorer(QUALITY, HISTORY)) == close([0, 0])


def test_what_had_nothing_to_compare_is_counted(hand_group: Group, fake_scorer: Any) -> None:
    metrics = MemPO().advantages([hand_group, hand_group[:1], failed(hand_group)], fake_scorer(QUALITY)).metrics
    assert metrics["memory/groups_without_comparison"] == pytest.approx(1 / 3)
    assert metrics["memory/scored"] == 10
    assert metrics["train/groups_without_variance"] == pytest.approx(2 / 3)
    assert metrics["train/groups_of_one"] == pytest.approx(1 / 3)
    assert metrics["memory/quality"] == pytest.approx(sum(QUALITY[m] for m in "abcde") / 5)
    errors = tuple(episode.replace(error="down") for episode in hand_group)
    metrics = MemPO().advantages([errors], fake_scorer(QUALITY)).metrics
    assert metrics["memory/groups_without_comparison"] == metrics["train/groups_of_one"] == 1
    assert metrics["memory/scored"] == metrics["memory/groups_guarded"] == metrics["train/group_size"] == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MemPOConfig(baseline="old_mem"), "did you mean 'old_memory'"),  # type: ignore[arg-type]
        (lambda: MemPOConfig(credit="guard"), "did you mean 'guarded'"),  # type: ignore[arg-type]
        (lambda: MemPOConfig(normalisation="turn"), "MemPOConfig.normalisation"),  # type: ignore[arg-type]
        (lambda: MemPOConfig(weight=-1.0), "weight=-1.0"),
        (lambda: GRPOConfig(clip_low=1.0), "clip_low=1.0"),
        (lambda: GRPOConfig(beta=-0.1), "beta=-0.1"),
        (lambda: MemPOConfig(reference_episodes=0), "reference_episodes=0"),
        (lambda: GRPOConfig(eps=0.0), "eps=0.0"),
        (lambda: GRPOConfig(ratio="sequnce"), "did you mean 'sequence'"),  # type: ignore[arg-type]
        (lambda: GRPOConfig(return_baseline="leave_one_out"), "set normalise_std=False"),
        (lambda: GRPOConfig(aggregation="constant"), "needs a divisor above 0"),
        (lambda: GRPOConfig(divisor=512), "every other aggregation takes none"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
