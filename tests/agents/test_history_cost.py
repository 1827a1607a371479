"""The price of full history: counted message by message it equals what every chat costs when it is counted whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mempo_env.agents.base import SlotKey, TurnRequest
from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.contexts import HistoryContext, Message
from mempo_env.agents.history_cost import history_cost
from mempo_env.agents.rollout import group_specs, rollout
from mempo_env.agents.scripted_expert import make_expert
from mempo_env.agents.textual import Tokens, count_messages, count_text
from mempo_env.envs.long_document import LongDocumentEnv
from mempo_env.records import Episode
from mempo_env.tokens import RegexTokenCounter


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    env = LongDocumentEnv(chunks=(4, 12), facts=8)
    return rollout(
        make_expert(env), lambda: LongDocumentEnv(chunks=(4, 12), facts=8), group_specs(range(4), 1), seed=0, step=0
    )


def whole(episode: Episode, tokens: Tokens, instructions: str) -> list[int]:
    """Every chat counted whole, as a policy with this context would be given it."""
    costs = []
    for t, turn in enumerate(episode.turns):
        request = TurnRequest(SlotKey(0, 0, "g", 0, t), turn.observation, instructions, episode.turns[:t], episode.task)
        costs.append(count_messages(tokens, HistoryContext().messages(request)) + count_text(tokens, turn.text))
    return costs


def check(episodes: Sequence[Episode], tokens: Tokens) -> None:
    expected = [whole(episode, tokens, "Answer all.") for episode in episodes]
    found = history_cost(episodes, tokens, "Answer all.")
    assert found.history_total == sum(map(sum, expected))
    assert found.history_peak == sum(map(max, expected))
    assert history_cost(episodes[:1], tokens, "Answer all.").history_total == sum(expected[0])


def test_with_a_counter(episodes: list[Episode]) -> None:
    check(episodes, RegexTokenCounter())


def test_with_a_chat_template(episodes: list[Episode], codec: ChatCodec) -> None:
    check(episodes, codec)


class Crowded:
    """A template that adds a token for every pair of messages: its prices do not add up."""

    def encode_chat(self, messages: list[Message]) -> Sequence[int]:
        return [0] * (sum(len(message["content"]) for message in messages) + len(messages) ** 2)

    def encode_text(self, text: str) -> Sequence[int]:
        return [0] * len(text)


def test_with_a_template_that_does_not_add_up(episodes: list[Episode]) -> None:
    check(episodes, Crowded())


def test_a_long_episode_is_counted_once() -> None:
    """Four hundred chunks: the texts that are counted are a few times the episode, not its square."""

    class Watched(RegexTokenCounter):
        seen = 0

        def count(self, text: str) -> int:
            Watched.seen += len(text)
            return super().count(text)

    env = LongDocumentEnv(chunks=400, chunk_tokens=16, facts=8)
    make = lambda: LongDocumentEnv(chunks=400, chunk_tokens=16, facts=8)  # noqa: E731
    (episode,) = rollout(make_expert(env), make, group_specs([0], 1), seed=0, step=0)
    history_cost([episode], Watched())
    length = sum(len(turn.text) + sum(map(len, turn.observation.values())) for turn in episode.turns)
    assert len(episode.turns) == 401
    assert Watched.seen < 6 * length
