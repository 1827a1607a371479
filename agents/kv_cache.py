"""The cache of keys and values behind the embedded sampler.

Invariant: after what the sampler does with it, appending and choosing rows, it holds what ``DynamicCache`` would hold;
only where the tensors live differs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

_SPARE_POSITIONS = 64


def new_cache(config: Any) -> Cache:
    """The cache a model's config asks for; where that is a plain growing one, ours.

    Args:
        config: Of a model of transformers.

    Returns:
        An empty cache.
    """
    cache = DynamicCache(config=config)
    if plain_cache(cache):
        return Cache(layers=[GrowingLayer() for _ in cache.layers])
    return cache


def plain_cache(cache: Cache) -> bool:
    """Whether every layer keeps all positions, so that a prefix read once serves any row."""
    return bool(cache.layers) and all(type(layer) in (DynamicLayer, GrowingLayer) for layer in cache.layers)


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values in buffers with room to spare, where ``DynamicLayer`` copies everything at every token.

    On a CPU the keys of a float32 model lie with positions last, as the product of a query with them reads memory: keys
    that lie like the values are copied, whole, by each such product. In half precision they lie like the values, since
    there such a product copies whatever does not fill its buffer, and torch's fused kernel copies nothing.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._key_buffer = self._value_buffer = Tensor()  # (B, H, room, D) each
        self._room = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends (B, H, t, D) keys and values; returns all (B, H, T, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        if new > self._room:
            self._room = new + max(_SPARE_POSITIONS, new // 4)
            buffers = _key_buffer(key_states, self._room), _buffer(value_states, self._room)
            if old:
                buffers[0][:, :, :old], buffers[1][:, :, :old] = self.keys, self.values
            self._key_buffer, self._value_buffer = buffers
        self._key_buffer[:, :, old:new], self._value_buffer[:, :, old:new] = key_states, value_states
        self._show(new)
        if not old:
            return key_states, value_states  # the same numbers, in the order that long queries are fastest with
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows at ``indices``, which may repeat."""
        if not (length := self.get_seq_length()):
            return
        # Whole rows, room included: that copies long runs of memory, and the next token finds its place.
        turned = self._key_buffer.transpose(2, 3) if turned_keys(self._key_buffer) else self._key_buffer
        chosen = turned.index_select(0, indices)
        self._key_buffer = chosen.transpose(2, 3) if turned_keys(chosen) else chosen  # (B, H, room, D)
        self._value_buffer = self._value_buffer.index_select(0, indices)  # (B, H, room, D)
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys = self._key_buffer[:, :, :length]  # (B, H, T, D)
        self.values = self._value_buffer[:, :, :length]  # (B, H, T, D)


def turned_keys(states: Tensor) -> bool:
    """Whether keys of this type, on this device, lie with positions last."""
    return states.device.type == "cpu" and states.dtype not in (torch.bfloat16, torch.float16)


def _buffer(states: Tensor, room: int) -> Tensor:
    batch, heads, _, depth = states.shape
    return states.new_empty((batch, heads, room, depth))


def _key_buffer(states: Tensor, room: int) -> Tensor:
    if not turned_keys(states):
        return _buffer(states, room)
    batch, heads, _, depth = states.shape
    return states.new_empty((batch, heads, depth, room)).transpose(2, 3)  # (B, H, room, D)
