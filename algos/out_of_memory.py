"""What to lower where a GPU has too little memory.

Invariant: nothing is tried again with other settings; the run ends, and the message says which settings to change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mempo_env.errors import UserError


def smaller_passes(micro_batch_tokens: int, *, keeps_layers: bool = False) -> str:
    """Advice for passes of so many tokens; ``keeps_layers``: with a backward pass, without gradient checkpointing."""
    lower = f"lower --train.micro-batch-tokens, which is {micro_batch_tokens}"
    return f"{lower}, or give --train.gradient-checkpointing" if keeps_layers else lower


@contextmanager
def memory_advice(doing: str, advice: str) -> Iterator[None]:
    """Names the settings to change where memory of a GPU runs out.

    Args:
        doing: What was done meanwhile.
        advice: What would need less.

    Raises:
        UserError: It ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = " ".join(str(error).split()).split(". ")[:2]
        raise UserError(
            f"the GPU ran out of memory while {doing}: {advice} (a run that is resumed reads its config.json; change "
            f"it there). {'. '.join(reason)}"
        ) from error
