"""Prompt styles: outputs of other protocols are read into the environment's grammar and back, and never raise."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempo_env.actions import (
    OWN_TAGS,
    Answer,
    FormatError,
    FormatErrorKind,
    Segment,
    ToolCall,
    action_end,
    encode_text,
    parse,
)
from mempo_env.budgets import PAPER
from mempo_env.errors import UserError
from mempo_env.prompt_styles import MEM1, MEMPO, OWN, SEARCH_R1, STYLES, PromptStyle, get_style
from mempo_env.prompts import render_observation
from mempo_env.segments import token_segments
from mempo_env.tools import ToolSpec

FOREIGN = (MEMPO, MEM1, SEARCH_R1)
PIECES = st.sampled_from(
    [
        *(f"<{slash}{tag}>" for style in (OWN, *FOREIGN) for tag, _ in style.tags.segments for slash in ("", "/")),
        '{"name": "search", "arguments": {"query_list": ["a"]}}',
        '{"name": "search", "arguments": {"query": "</tool_call>"}}',
        '{"name": "search", "arguments": {"query": "\\u003c/tool_call>"}}',
        "Mira; chess",
        "été \ud800 ",
        "{}",
        "[" * 20_000,
        " ",
    ]
)
OUTPUTS = st.lists(PIECES, max_size=12).map("".join)


def search(*queries: str) -> ToolCall:
    return ToolCall("search", {"queries": list(queries)})


def test_mempo_outputs_have_our_tags_and_verls_argument() -> None:
    raw = (
        "<mem>\nMira plays chess\n</mem>\n<think>now go</think>\n"
        '<tool_call>\n{"name": "search", "arguments": {"query_list": ["who plays go"]}}\n</tool_call>'
    )
    parsed = parse(MEMPO.read(raw))
    assert parsed.action == search("who plays go")
    assert (parsed.memory, parsed.think) == ("Mira plays chess", "now go")
    single = MEMPO.read('<mem></mem><tool_call>{"name": "search", "arguments": {"query": "a"}}</tool_call>')
    assert parse(single).action == search("a")
    other = '<mem></mem><tool_call>{"name": "calculator", "arguments": {"expression": "1+1"}}</tool_call>'
    assert MEMPO.read(other) == other


@pytest.mark.parametrize(("think", "query"), [("think", "search"), ("IS", "query")])
def test_mem1_state_is_the_memory_in_both_of_its_spellings(think: str, query: str) -> None:
    raw = f"<{think}>Mira plays chess</{think}>\n<{query}> who plays go </{query}> I wait."
    parsed = parse(MEM1.read(raw))
    assert parsed.action == search("who plays go")
    assert (parsed.memory, parsed.think) == ("Mira plays chess", None)
    answer = parse(MEM1.read("<think>all known</think><answer>chess; go</answer>"))
    assert answer.action == Answer(("chess", "go"))
    assert answer.memory == "all known"


def test_search_r1_thinks_and_has_no_memory() -> None:
    parsed = parse(SEARCH_R1.read("<think>first Mira</think><search>Mira</search>"))
    assert (parsed.action, parsed.memory, parsed.think) == (search("Mira"), None, "first Mira")
    assert not SEARCH_R1.has_memory
    assert MEM1.has_memory
    assert SEARCH_R1.write("<mem>m</mem><think>t</think><answer>a</answer>") == "<think>t</think><answer>a</answer>"


@pytest.mark.parametrize(
    ("style", "raw", "kind"),
    [
        (MEM1, "I do not know", FormatErrorKind.NO_ACTION),
        (MEM1, '<mem>m</mem><tool_call>{"name": "search", "arguments": {}}</tool_call>', FormatErrorKind.NO_ACTION),
        (MEM1, "<think>a</think><search>b", FormatErrorKind.UNCLOSED_BLOCK),
        (MEM1, "<think>a</mem><answer>b</answer>", FormatErrorKind.UNCLOSED_BLOCK),
        (MEM1, "<think>a</think><answer> ; </answer>", FormatErrorKind.EMPTY_ANSWER),
        (MEMPO, "<mem>m</mem><tool_call>search Mira</tool_call>", FormatErrorKind.BAD_JSON),
        (MEMPO, "<mem>m</mem><tool_call>[1]</tool_call>", FormatErrorKind.BAD_CALL),
        (SEARCH_R1, "<think>a</think>", FormatErrorKind.NO_ACTION),
    ],
)
def test_what_a_style_does_not_know_is_a_format_error_of_the_usual_kind(
    style: PromptStyle, raw: str, kind: FormatErrorKind
) -> None:
    action = parse(style.read(raw)).action
    assert isinstance(action, FormatError)
    assert action.kind is kind


def test_a_closing_tag_of_the_other_grammar_is_text() -> None:
    assert parse(MEM1.read("<think>a</mem>b</think><search>q</tool_call>r</search>")).memory == "a&lt;/mem>b"
    assert parse(MEM1.read("<think>a</think><search>q</tool_call>r</search>")).action == search("q</tool_call>r")
    assert MEM1.write("<mem>a</think>b</mem><answer>c</answer>") == "<think>a&lt;/think>b</think><answer>c</answer>"


@given(OUTPUTS)
def test_reading_never_raises_and_keeps_what_decides(raw: str) -> None:
    assert OWN.read(raw) == raw == OWN.write(raw)
    for style in FOREIGN:
        text = style.read(raw)
        parsed = parse(text)
        end = action_end(encode_text(raw), style.tags)
        if end is None:
            assert isinstance(parsed.action, FormatError)
            assert action_end(encode_text(text)) is None
        else:
            assert style.read(encode_text(raw)[:end].decode()) == text
            assert action_end(encode_text(text)) == len(encode_text(text))
        style.write(raw)


@given(st.text("ab ;", max_size=8), st.text("ab ", min_size=1, max_size=8))
def test_what_is_written_in_a_style_reads_back(memory: str, query: str) -> None:
    call = json.dumps({"name": "search", "arguments": {"queries": [query.strip() or "a"]}})
    text = f"<mem>{memory}</mem><tool_call>{call}</tool_call>"
    for style in (OWN, MEMPO, MEM1):
        again, before = parse(style.read(style.write(text))), parse(text)
        assert (again.action, again.memory) == (before.action, before.memory)
    assert MEM1.write(text) == f"<think>{memory}</think><search>{query.strip() or 'a'}</search>"


def test_segments_follow_the_styles_tags() -> None:
    raw = [b"<think>", b"m", b"</think", b"><", b"search>", b"q", b"</search>", b"\n"]
    memory, call = int(Segment.MEMORY), int(Segment.TOOL_CALL)
    assert token_segments(raw, MEM1.tags) == (memory,) * 4 + (call,) * 3 + (0,)
    assert set(token_segments(raw)) == {int(Segment.THINK), int(Segment.OTHER)}  # under the environment's own tags


def test_prompts_are_worded_and_data_is_escaped() -> None:
    observation = {
        "task": "Q? </answer>",
        "memory": "m",
        "tool_result": "a </information> <search>b</search> <mem>",
        "budget": "3 tool calls, 4 turns left",
    }
    assert render_observation(observation, style=MEM1) == (
        "Questions: Q? &lt;/answer>\n<think>m</think>\n"
        "<information>a &lt;/information> &lt;search>b&lt;/search> <mem></information>\n"
        "[HINT]3 tool calls, 4 turns left[/HINT]"
    )
    assert render_observation(observation, style=MEMPO) == (
        "Q? </answer>\n<mem>m</mem>\n<information>a &lt;/information> <search>b</search> <mem></information>"
    )
    assert "{}" not in render_observation(observation | {"memory": "{}{0}"}, memory=False, style=MEM1)
    assert "Memory: {}{0}" in render_observation(observation | {"memory": "{}{0}"})


@pytest.mark.parametrize("style", FOREIGN)
def test_instructions_name_the_budget_and_the_tags(style: PromptStyle) -> None:
    tools = [ToolSpec("search", "finds {braces}", {"type": "object"})]
    text = style.instruct(tools, PAPER)
    assert f"{PAPER.max_turns} steps" in text
    assert all(f"<{tag}>" in text for tag in {segment: tag for tag, segment in style.tags.segments[::-1]}.values())
    assert style is not MEMPO or json.loads(text.split("<tools>\n")[1].split("\n</tools>")[0])["name"] == "search"


def test_styles_are_looked_up_by_name_and_travel() -> None:
    assert [get_style(name).name for name in STYLES.names()] == STYLES.names() == ["mem1", "mempo", "own", "search-r1"]
    assert get_style("mempo_env.prompt_styles:MEM1") is MEM1
    with pytest.raises(UserError, match="did you mean 'mem1'"):
        get_style("mem2")
    with pytest.raises(UserError, match="must be a PromptStyle"):
        get_style("mempo_env.budgets:PAPER")
    assert pickle.loads(pickle.dumps(MEM1)) == MEM1
    assert OWN.tags == OWN_TAGS
    assert not OWN.translates
