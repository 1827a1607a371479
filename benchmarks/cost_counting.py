"""What torch counts and a process takes, to be put beside what ``cost_formulas.py`` says.

Invariant: CPU time, never the clock: the machine may be shared. FLOPs are those of the kernels that ran: of fused
attention the whole square, so that predictions to compare are made with an infinite ``tile``; of packed rows the tiles.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from mempo_env.agents.row_batches import RowBatch
from mempo_env.agents.scoring import causal_lm


def _sdpa(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _sdpa_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


# The counter knows attention's kernels for CUDA; those for the CPU are the same products.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
}


def counted_flops(function: Callable[[], object]) -> dict[str, int]:
    """FLOPs of a call: ``linear`` (products of two matrices) and ``batched`` (attention's, and all others)."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        function()
    found = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    linear = sum(flops for op, flops in found.items() if op in ("aten.mm", "aten.addmm"))
    return {"linear": linear, "batched": sum(found.values()) - linear}


def kept_bytes(model: nn.Module, function: Callable[[], object]) -> int:
    """Bytes of the storages that a forward pass keeps for its backward pass, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # held, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class _Kernels(TorchDispatchMode):
    """Counts the operators whose result is new memory, or that write: what a GPU would start a kernel for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        results = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor)]
        seen = results and all(t.untyped_storage().data_ptr() in given for t in results)
        self.count += bool(results) and (func._schema.is_mutable or not seen)
        return out


def kernels_of(function: Callable[[], object]) -> int:
    """Kernels that a call starts."""
    with _Kernels() as counter:
        function()
    return int(counter.count)


def states_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Hidden states (B, T, D) of ids (B, T), without the head."""
    states: Tensor = causal_lm(model).get_decoder()(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[operator]
    return states


def cpu_seconds(function: Callable[[], object], rounds: int = 2) -> float:
    """Median CPU seconds of a call, after one that warms up."""
    function()
    taken = []
    for _ in range(rounds):
        gc.collect()
        begun = time.process_time()
        function()
        taken.append(time.process_time() - begun)
    return statistics.median(taken)


def matmul_rate(dtype: str, size: int = 1024) -> float:
    """FLOP/s, in CPU time, of the best of eight products of two square matrices."""
    a, b = (torch.randn(size, size, dtype=getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        begun = time.process_time()
        a @ b
        best = min(best, time.process_time() - begun)
    return 2 * size**3 / best


def batch_of(groups: list[Any], *, share: bool) -> RowBatch:
    """One batch of groups of one-turn episodes."""
    from mempo_env.agents.row_batches import TokenRow, collate

    turns = [episode.turns[0] for group in groups for episode in group]
    return collate([TokenRow(turn.prompt_ids, turn.output_ids) for turn in turns], 0, share=share)
