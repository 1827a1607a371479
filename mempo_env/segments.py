"""From the blocks of an output to one segment per token.

Invariant: a token takes the segment of its first byte. A byte-level tokenizer merges ``><`` across ``</mem><think>``;
such a token starts inside the memory's tag and so belongs to the memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from .actions import OWN_TAGS, Segment, TagSet, scan


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
    """
    data = b"".join(tokens)
    byte_segments = bytearray(len(data) + 1)  # zero = Segment.OTHER
    for block in scan(data, tags):
        byte_segments[block.start : block.end] = bytes([block.segment]) * (block.end - block.start)
    labels: list[int] = []
    position = 0
    for token in tokens:
        labels.append(Segment(byte_segments[position]).value)
        position += len(token)
    return tuple(labels)
