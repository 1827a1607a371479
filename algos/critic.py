"""A critic that shares the policy's frozen base: a LoRA adapter of its own, and a linear head on the hidden states.

V(s) is read where the next token is predicted: from the state before the head, after everything that the policy saw.

Invariants:
    * forward and backward of a value happen under the critic's adapter; only ``score``, which has no backward, switches
      to it by itself;
    * before its first step every value is 0: the head starts at zero, the adapter as a copy of the policy's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..agents.policy import LoraPolicy
from ..agents.row_batches import RowBatch, TokenRow, collate, micro_batches
from ..agents.scoring import can_share, output_states, per_token


class Critic:
    """State values of a policy's turns.

    Args:
        policy: Gets the adapter.
        adapter: Its name.
    """

    def __init__(self, policy: LoraPolicy, adapter: str) -> None:
        policy.add_trainable_copy(adapter)
        self.policy = policy
        self.adapter = adapter
        self.head = nn.Linear(int(policy.model.config.hidden_size), 1, device=policy.device)  # type: ignore[union-attr, arg-type]
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def values(self, batch: RowBatch) -> Tensor:
        """V of the state before each output token, (B, O); to be called under the critic's adapter."""
        states = output_states(self.policy.model, batch)  # (N, D)
        return per_token(batch, self.head(states.float()).squeeze(-1))  # (B, O)

    @torch.no_grad()
    def score(self, rows: Sequence[TokenRow], *, max_tokens: int) -> list[Tensor]:
        """Values of many rows without gradient, in the rows' order.

        Args:
            rows: Any number.
            max_tokens: Padded tokens per forward pass.

        Returns:
            One float32 (n_output,) tensor per row, on the CPU.
        """
        found: dict[int, Tensor] = {}
        with self.policy.use_adapter(self.adapter), self.policy.evaluating():
            share = can_share(self.policy.model)
            for indices in micro_batches(rows, max_tokens, share=share):
                batch = collate([rows[i] for i in indices], self.policy.codec.pad_id, self.policy.device, share=share)
                values = self.values(batch).cpu()  # (B, O)
                for slot, index in enumerate(indices):
                    found[index] = values[slot, : len(rows[index].output_ids)].clone()
        return [found[i] for i in range(len(rows))]

    def parameters(self) -> Iterator[nn.Parameter]:
        """The adapter's and the head's."""
        yield from self.policy.adapter_parameters(self.adapter)
        yield from self.head.parameters()

    def state_dict(self) -> dict[str, Any]:
        """The head; the adapter is in the checkpoint's folder of adapters."""
        return dict(self.head.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict``."""
        self.head.load_state_dict(state)
