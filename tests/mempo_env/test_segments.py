from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mempo_env.actions import TAGS, Segment, encode_text, parse, scan
from mempo_env.segments import token_segments

PIECES = [f"<{slash}{tag}>" for tag in TAGS.values() for slash in ("", "/")] + ["<", "/>", "é", "文", "\ud800", " "]
OUTPUTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=14).map("".join)


def segment_at(data: bytes, position: int) -> int:
    """The segment of one byte, the slow way."""
    return next((int(b.segment) for b in scan(data) if b.start <= position < b.end), int(Segment.OTHER))


@given(OUTPUTS, st.data())
def test_a_token_takes_the_segment_of_its_first_byte(text: str, draw: st.DataObject) -> None:
    data = encode_text(text)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=20)))
    edges = [0, *cuts, len(data)]
    tokens = [data[start:end] for start, end in itertools.pairwise(edges)]  # some empty
    assert b"".join(tokens) == data
    expected = tuple(segment_at(data, start) for start in edges[:-1])
    assert token_segments(tokens) == expected


@given(OUTPUTS)
def test_single_bytes_give_back_the_memory(text: str) -> None:
    data = encode_text(text)
    labels = token_segments([data[at : at + 1] for at in range(len(data))])
    blocks = [block for block in scan(data) if block.segment is Segment.MEMORY and block.closed]
    if blocks and parse(text).memory is not None:
        block = blocks[0]
        assert set(labels[block.start : block.end]) == {int(Segment.MEMORY)}


def test_a_token_across_two_tags_belongs_to_the_first() -> None:
    tokens = [b"<mem>a</mem", b"><", b"think>b</think", b"><answer>", b"c", b"</answer>", b" tail"]
    assert token_segments(tokens) == (1, 1, 2, 2, 4, 4, 0)


def test_nothing_gives_nothing() -> None:
    assert token_segments([]) == ()
    assert token_segments([b"", b""]) == (0, 0)
