"""What agents that leave no ids share: noise keyed by the turn, and the token costs of a text.

Invariant: both are functions of the request alone. Noise never comes from a global generator; costs are those of the
text that a policy would have been given under the same context strategy.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from mempo_env.tokens import RegexTokenCounter, TokenCounter

from .base import SlotKey, TurnOutput, TurnRequest
from .contexts import ContextStrategy, MemoryContext, Message


@runtime_checkable
class ChatEncoder(Protocol):
    """Encodes a chat as a policy's sampler would see it, template included."""

    def encode_chat(self, messages: list[Message]) -> Sequence[int]:
        """Ids of the whole prompt."""
        ...

    def encode_text(self, text: str) -> Sequence[int]:
        """Ids of an output."""
        ...


Tokens = TokenCounter | ChatEncoder
"""What can price a text: a counter (contents only), or a codec (contents and chat template)."""


def slot_rng(key: SlotKey, purpose: str) -> np.random.Generator:
    """A generator of its own for each (turn, purpose): counter-based, seeded by a stable hash.

    Args:
        key: The turn.
        purpose: Sets draws for different ends apart.

    Returns:
        The same generator on every machine and in every process.
    """
    # repr quotes the strings, so that no two (key, purpose) pairs give the same bytes.
    name = repr((key.seed, key.step, key.group_id, key.rollout_id, key.turn, purpose))
    digest = hashlib.blake2b(name.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


def count_messages(tokens: Tokens, messages: list[Message]) -> int:
    """Tokens of a chat: with its template for a codec, of its contents alone for a counter."""
    if isinstance(tokens, ChatEncoder):
        return len(tokens.encode_chat(messages))
    return sum(tokens.count(message["content"]) for message in messages)


def count_text(tokens: Tokens, text: str) -> int:
    """Tokens of an output."""
    return len(tokens.encode_text(text)) if isinstance(tokens, ChatEncoder) else tokens.count(text)


class TextAgent(ABC):
    """Base of the agents that write text without a model.

    Args:
        name: How reports call it.
        tokens: Prices inputs and outputs.
        context: What a policy in its place would have been shown; sets the price of the inputs.
    """

    def __init__(self, name: str, tokens: Tokens | None = None, context: ContextStrategy | None = None) -> None:
        self.name = name
        self.tokens: Tokens = tokens if tokens is not None else RegexTokenCounter()
        self.context: ContextStrategy = context if context is not None else MemoryContext()

    def act(self, requests: Sequence[TurnRequest]) -> list[TurnOutput]:
        """Answers each request, in order."""
        outputs = []
        for request in requests:
            text = self.write(request)
            n_prompt = count_messages(self.tokens, self.context.messages(request))
            outputs.append(TurnOutput(text, n_prompt, count_text(self.tokens, text)))
        return outputs

    @abstractmethod
    def write(self, request: TurnRequest) -> str:
        """The whole output of one turn."""
