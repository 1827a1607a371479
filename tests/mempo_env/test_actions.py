from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempo_env.actions import (
    ACTION_SEGMENTS,
    MAX_NESTING,
    TAGS,
    Answer,
    FormatError,
    FormatErrorKind,
    Segment,
    ToolCall,
    _nesting,
    action_end,
    encode_text,
    parse,
    scan,
    split_answers,
)

PIECES = [f"<{slash}{tag}>" for tag in TAGS.values() for slash in ("", "/")]
PIECES += [
    '{"name": "search", "arguments": {"queries": ["q"]}}',
    "a; b",
    "<",
    ">",
    "</",
    "é",
    "\ud800",
    " ",
    "text",
    "\x00",
]
OUTPUTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=14).map("".join)
CALL = '<tool_call>{"name": "search", "arguments": {"queries": ["q"]}}</tool_call>'


def nested_call(depth: int) -> str:
    return f'<tool_call>{{"name": "a", "arguments": {{"x": {"[" * depth}{"]" * depth}}}}}</tool_call>'


@given(OUTPUTS)
def test_every_string_parses(text: str) -> None:
    parsed = parse(text)
    assert isinstance(parsed.action, ToolCall | Answer | FormatError)


@given(OUTPUTS)
def test_blocks_are_in_order_and_closed_but_for_the_last(text: str) -> None:
    data = encode_text(text)
    position = 0
    blocks = scan(data)
    for block in blocks:
        assert position <= block.start < block.inner_start <= block.inner_end <= block.end <= len(data)
        position = block.end
        tag = TAGS[block.segment].encode()
        assert data[block.start : block.inner_start] == b"<" + tag + b">"
        if block.closed:
            assert data[block.inner_end : block.end] == b"</" + tag + b">"
            assert b"</" + tag + b">" not in data[block.inner_start : block.inner_end]
    assert all(block.closed for block in blocks[:-1])
    assert not any(block.segment in ACTION_SEGMENTS for block in blocks[:-1])


@given(OUTPUTS, OUTPUTS)
def test_what_follows_the_first_closed_action_has_no_effect(text: str, tail: str) -> None:
    end = action_end(encode_text(text))
    if end is None:
        return
    head = encode_text(text)[:end].decode()
    assert parse(head) == parse(text) == parse(head + tail)
    assert action_end(encode_text(head + tail)) == end


@given(OUTPUTS)
def test_no_shorter_prefix_has_an_action(text: str) -> None:
    data = encode_text(text)
    end = action_end(data)
    first = next((cut for cut in range(len(data) + 1) if action_end(data[:cut]) is not None), None)
    assert first == end


@given(OUTPUTS)
def test_scanning_bytes_and_scanning_their_lossy_text_agree(text: str) -> None:
    data = encode_text(text)
    for cut in range(len(data) + 1):  # a cut inside a character leaves invalid UTF-8
        lossy = data[:cut].decode("utf-8", errors="replace").encode()
        assert [block.segment for block in scan(data[:cut])] == [block.segment for block in scan(lossy)]


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        (f"<mem>m</mem>{CALL}", "m"),
        ("<mem> m </mem><answer>", "m"),  # whatever follows
        ("<mem>m</mem>", "m"),
        ("<mem></mem>", ""),
        ("<mem>m", None),
        (f"{CALL}<mem>m</mem>", None),  # the action had decided
        ("<think><mem>m</mem></think>", None),  # text of the thought
        ("<mem>first</mem><mem>second</mem>", "first"),
        ("<mem><answer>x</answer></mem>", "<answer>x</answer>"),
        ("x", None),
    ],
)
def test_memory_commits_if_and_only_if_it_is_closed(text: str, memory: str | None) -> None:
    assert parse(text).memory == memory


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", FormatErrorKind.NO_ACTION),
        ("<mem>m</mem><think>t</think>", FormatErrorKind.NO_ACTION),
        ("</answer>", FormatErrorKind.NO_ACTION),
        ("<ANSWER>x</ANSWER>", FormatErrorKind.NO_ACTION),
        ("<answer>x", FormatErrorKind.UNCLOSED_BLOCK),
        (f"<think>{CALL}", FormatErrorKind.UNCLOSED_BLOCK),
        ("<tool_call>{</tool_call>", FormatErrorKind.BAD_JSON),
        ('<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>', FormatErrorKind.BAD_JSON),
        ('<tool_call>{"name": "a", "arguments": "{"}</tool_call>', FormatErrorKind.BAD_JSON),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", FormatErrorKind.BAD_JSON),
        ('<tool_call>{"name": "a", "arguments": {"x": 1e999}}</tool_call>', FormatErrorKind.BAD_JSON),
        (nested_call(40), FormatErrorKind.BAD_JSON),
        (nested_call(600), FormatErrorKind.BAD_JSON),
        ("<tool_call>[1]</tool_call>", FormatErrorKind.BAD_CALL),
        ('<tool_call>{"arguments": {}}</tool_call>', FormatErrorKind.BAD_CALL),
        ('<tool_call>{"name": "a", "arguments": [1]}</tool_call>', FormatErrorKind.BAD_CALL),
        ("<answer> ; ;</answer>", FormatErrorKind.EMPTY_ANSWER),
        ("<answer></answer><answer>x</answer>", FormatErrorKind.EMPTY_ANSWER),
    ],
)
def test_format_errors_of_the_grammar(text: str, kind: FormatErrorKind) -> None:
    action = parse(text).action
    assert isinstance(action, FormatError)
    assert action.kind is kind
    assert action.message


def test_arguments_may_be_a_json_string() -> None:
    call = parse('<tool_call>{"name": "search", "arguments": "{\\"queries\\": [\\"q\\"]}"}</tool_call>').action
    assert call == ToolCall("search", {"queries": ["q"]})


@pytest.mark.parametrize(("depth", "fits"), [(1, True), (MAX_NESTING - 2, True), (MAX_NESTING - 1, False)])
def test_nesting_is_bounded(depth: int, fits: bool) -> None:
    assert isinstance(parse(nested_call(depth)).action, ToolCall) is fits  # call and arguments are a level each


@given(
    st.recursive(
        st.text('[]{}\\"a') | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[{\\"', max_size=3), inner, max_size=3),
        max_leaves=40,
    )
)
def test_brackets_inside_strings_are_no_nesting(value: object) -> None:
    def depth(part: object) -> int:
        inner = list(part.values()) if isinstance(part, dict) else part if isinstance(part, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    assert _nesting(json.dumps(value)) == min(depth(value), MAX_NESTING + 1)


def test_answers_keep_their_places() -> None:
    assert parse("<answer>a; ;c</answer>").action == Answer(("a", "", "c"))
    assert split_answers("a") == ("a",)


def test_a_thought_is_kept_apart() -> None:
    assert parse("<think> because </think><answer>x</answer>").think == "because"
    assert [block.segment for block in scan(b"a<think></think><mem></mem><answer></answer>")] == [
        Segment.THINK,
        Segment.MEMORY,
        Segment.ANSWER,
    ]
