"""Where a GPU's memory runs out, the message says what to lower. (By phase of a run: tests/cli/test_train.py.)"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mempo_env.algos.out_of_memory import memory_advice, smaller_passes
from mempo_env.errors import UserError

CUDA_SAYS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.2 GiB is free. "
    "If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True."
)


def run_out(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError(CUDA_SAYS)


def test_the_message_names_flags_and_their_values() -> None:
    with pytest.raises(UserError) as caught, memory_advice("updating", smaller_passes(4096, keeps_layers=True)):
        run_out()
    assert str(caught.value) == (
        "the GPU ran out of memory while updating: lower --train.micro-batch-tokens, which is 4096, or give "
        "--train.gradient-checkpointing (a run that is resumed reads its config.json; change it there). CUDA out of "
        "memory. Tried to allocate 2.00 GiB"
    )
    assert "checkpointing" not in smaller_passes(4096)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_advice("updating", ""):
        raise RuntimeError("shapes")
