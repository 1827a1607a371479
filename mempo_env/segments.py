"""From the blocks of an output to one segment per token.

Invariants:
    * a token takes the segment of its first byte. A byte-level tokenizer merges ``><`` across ``</mem><think>``; such a
      token starts inside the memory's tag and so belongs to the memory;
    * the tokens labelled memory are those of the block that ``parse`` commits and no others: a second ``mem`` block, or
      one that was never closed, is ``other``, since what was not stored earns no credit.
"""

from __future__ import annotations

from collections.abc import Sequence

from .actions import OWN_TAGS, Segment, TagSet, memory_block, scan


def token_segments(tokens: Sequence[bytes], tags: TagSet = OWN_TAGS) -> tuple[int, ...]:
    """Labels each token of an output.

    Args:
        tokens: The bytes of each token; joined they are the output's bytes. A token may be empty (a control token):
            it takes the segment of the byte that would follow.
        tags: What opens and closes a block.

    Returns:
        One ``Segment`` value per token, as small ints.

    >>> token_segments([b"<mem>", b"a", b"</mem", b"><", b"answer>", b"b", b"</answer>", b""])
    (1, 1, 1, 1, 4, 4, 4, 0)
    >>> token_segments([b"<mem>a</mem>", b"<mem>b</mem>", b"<think>", b"c</think>", b"<mem>d"])
    (1, 0, 2, 2, 0)
    """
    data = b"".join(tokens)
    byte_segments = bytearray(len(data) + 1)  # zero = Segment.OTHER
    blocks = scan(data, tags)
    stored = memory_block(blocks)
    for block in blocks:
        if block.segment is Segment.MEMORY and block is not stored:
            continue
        byte_segments[block.start : block.end] = bytes([block.segment]) * (block.end - block.start)
    labels: list[int] = []
    position = 0
    for token in tokens:
        labels.append(byte_segments[position])
        position += len(token)
    return tuple(labels)
