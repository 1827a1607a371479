from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempo_env.actions import TAGS, Segment, encode_text, memory_block, parse, scan
from mempo_env.segments import token_segments

PIECES = [f"<{slash}{tag}>" for tag in TAGS.values() for slash in ("", "/")] + ["<", "/>", "é", "文", "\ud800", " "]
OUTPUTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=14).map("".join)


def segment_at(data: bytes, position: int) -> int:
    """The segment of one byte, the slow way: what is in a memory block that is not the stored one is other."""
    blocks = scan(data)
    closed = [b for b in blocks if b.segment is Segment.MEMORY and b.closed]
    credited = [b for b in blocks if b.segment is not Segment.MEMORY or b in closed[:1]]
    return next((int(b.segment) for b in credited if b.start <= position < b.end), int(Segment.OTHER))


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
def test_the_bytes_labelled_memory_are_those_of_the_memory_that_is_committed(text: str) -> None:
    """Parse and segments agree: what they label, read as an output of its own, commits the same memory."""
    data = encode_text(text)
    labels = token_segments([data[at : at + 1] for at in range(len(data))])
    places = [at for at, label in enumerate(labels) if label == Segment.MEMORY]
    memory = parse(text).memory
    if memory is None:
        assert places == []
        return
    assert places == list(range(places[0], places[-1] + 1))
    labelled = data[places[0] : places[-1] + 1].decode("utf-8", errors="replace")
    assert labelled.startswith("<mem>")
    assert labelled.endswith("</mem>")
    assert labelled.count("</mem>") == 1
    assert parse(labelled).memory == memory
    block = memory_block(scan(data))
    assert block is not None
    assert (places[0], places[-1] + 1) == (block.start, block.end)


@pytest.mark.parametrize(
    ("tokens", "labels"),
    [
        ((b"<mem>a</mem>", b"<mem>b</mem>", b"<answer>x</answer>"), (1, 0, 4)),  # the second is not stored
        ((b"<mem>a</mem>", b"<mem>b", b"c"), (1, 0, 0)),  # nor is one that was never closed
        ((b"<mem>", b"<mem>a</mem>", b"b</mem>"), (1, 1, 0)),  # the inner tag is text; the first closing tag ends it
        ((b"<think><mem>a</mem></think>", b"<mem>b</mem>"), (2, 1)),
        ((b"<answer>x</answer>", b"<mem>b</mem>"), (4, 0)),  # the action had decided
    ],
)
def test_only_the_stored_block_is_memory(tokens: tuple[bytes, ...], labels: tuple[int, ...]) -> None:
    assert token_segments(tokens) == labels


def test_a_token_across_two_tags_belongs_to_the_first() -> None:
    tokens = [b"<mem>a</mem", b"><", b"think>b</think", b"><answer>", b"c", b"</answer>", b" tail"]
    assert token_segments(tokens) == (1, 1, 2, 2, 4, 4, 0)


def test_nothing_gives_nothing() -> None:
    assert token_segments([]) == ()
    assert token_segments([b"", b""]) == (0, 0)


def cut(data: bytes, draw: st.DataObject) -> list[bytes]:
    """A random tokenisation; some tokens are empty, as control tokens are."""
    edges = [0, *sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=20))), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


BODIES = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=12)


@given(BODIES, BODIES, st.data())
def test_memory_tokens_are_one_run_that_covers_the_block(memory: str, answer: str, draw: st.DataObject) -> None:
    """Of a well-formed turn: credit for the memory reaches all of its text, and of the rest less than one token."""
    block = encode_text(f"<mem>{memory}</mem>")
    tokens = cut(block + encode_text(f"<answer>{answer}</answer>"), draw)
    labels = token_segments(tokens)
    count = labels.count(int(Segment.MEMORY))
    assert labels[:count] == (int(Segment.MEMORY),) * count
    assert set(labels[count:]) <= {int(Segment.ANSWER), int(Segment.OTHER)}
    covered = b"".join(tokens[:count])
    assert covered.startswith(block)
    assert len(covered) < len(block) + max(map(len, tokens))


@given(OUTPUTS, st.data())
def test_a_finer_tokenisation_changes_no_label_of_a_first_byte(text: str, draw: st.DataObject) -> None:
    data = encode_text(text)
    coarse = cut(data, draw)
    labels = token_segments(coarse)
    bytewise = token_segments([data[at : at + 1] for at in range(len(data))])
    position = 0
    for token, label in zip(coarse, labels, strict=True):
        if token:
            assert label == bytewise[position]
        position += len(token)


@given(OUTPUTS, st.data())
def test_there_is_one_label_per_token_whatever_the_cut(text: str, draw: st.DataObject) -> None:
    tokens = cut(encode_text(text), draw)
    labels = token_segments(tokens)
    assert len(labels) == len(tokens)
    assert set(labels) <= {int(segment) for segment in Segment}
    if not text or "<" not in text:
        assert set(labels) <= {int(Segment.OTHER)}
