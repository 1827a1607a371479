r"""Prompt styles: how instructions, observations and outputs are worded for models that learned another protocol.

A style is data: the tags of its outputs with the segment each marks, the words around each field of an observation, and
its instructions. ``read`` turns an output of the style into the environment's own grammar, ``write`` the other way.

Invariants, held by property tests:
    * ``read`` never raises; what the style does not know is no action afterwards, so that the environment answers with
      a format error of the usual kind;
    * ``read`` keeps what decides: the first closed action block, the first closed memory before it, unclosed blocks;
    * the project's own style changes nothing.

>>> MEM1.read("<think>Mira plays chess</think><search>who plays go</search>")
'<mem>Mira plays chess</mem><tool_call>{"name": "search", "arguments": {"queries": ["who plays go"]}}</tool_call>'
>>> MEM1.write("<mem>Mira plays chess</mem><answer>chess</answer>")
'<think>Mira plays chess</think><answer>chess</answer>'
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .actions import OWN_TAGS, TAGS, Segment, TagSet, encode_text, scan
from .errors import UserError
from .plugins import Registry

if TYPE_CHECKING:
    from .budgets import Budget
    from .tools import ToolSpec


@dataclass(frozen=True)
class FieldWords:
    """The words around each field of an observation, with ``{}`` for its text; an empty one is never shown.

    Attributes:
        task: The questions.
        memory: The memory that was written last.
        earlier: Earlier turns that a context strategy brings back.
        tool_result: The last tool result.
        budget: What is left.
    """

    task: str = "Task: {}"
    memory: str = "Memory: {}"
    earlier: str = "Earlier: {}"
    tool_result: str = "Result: {}"
    budget: str = "Budget: {}"


@dataclass(frozen=True)
class PromptStyle:
    """One way to word prompts and to read outputs.

    Attributes:
        name: What users type.
        tags: Tags of its outputs.
        words: Words around the fields of an observation.
        instructions: Template of the system message with ``{tools}``, ``{tool_calls}``, ``{turns}`` and
            ``{memory_tokens}``; empty: the environment's own.
        system_role: Whether the instructions are a system message; else they begin the first user message.
        plain_call: Tool and list argument that a call block's plain text is for; None: the block holds JSON.
        argument_names: Names of arguments that stand for another one, whose value is a list.
        result_tags: Tags that stand around results, beside those of the outputs: escaped inside data too.
    """

    name: str
    tags: TagSet = OWN_TAGS
    words: FieldWords = FieldWords()
    instructions: str = ""
    system_role: bool = True
    plain_call: tuple[str, str] | None = None
    argument_names: tuple[tuple[str, str], ...] = ()
    result_tags: tuple[str, ...] = ()

    @property
    def translates(self) -> bool:
        """Whether its outputs are another grammar than the environment's."""
        return self.tags != OWN_TAGS or self.plain_call is not None or bool(self.argument_names)

    @property
    def has_memory(self) -> bool:
        """Whether its outputs can hold a memory."""
        return self.tags.tag_of(Segment.MEMORY) is not None

    def instruct(self, tools: Sequence[ToolSpec], budget: Budget) -> str:
        """The system message, for a style that has its own.

        Args:
            tools: What may be called.
            budget: Limits to tell.
        """
        schemas = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in tools]
        return self.instructions.format(
            tools="\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas),
            tool_calls=budget.max_tool_calls,
            turns=budget.max_turns,
            memory_tokens=budget.memory_tokens,
        )

    def escape(self, text: str) -> str:
        """Escapes the style's tags inside data, as the environment does with its own.

        A line of the text that begins like a field is set off by ``> ``, as mail sets off ``From``.
        """
        if self._tag:
            text = self._tag.sub("&lt;", text)
        return self._label.sub("> ", text) if self._label and ":" in text else text

    def read(self, text: str) -> str:
        """An output of this style in the environment's grammar.

        Args:
            text: Anything.

        Returns:
            The same blocks under the environment's tags; text outside of blocks is left out.
        """
        if not self.translates:
            return text
        data, parts = encode_text(text), []
        for block in scan(data, self.tags):
            body = data[block.inner_start : block.inner_end].decode("utf-8", errors="replace")
            tag = TAGS[block.segment]
            if block.segment is Segment.TOOL_CALL and block.closed:
                body = self._read_call(body)
            # What closes the block in one grammar is text in the other.
            body = body.replace(f"</{tag}>", f"&lt;/{tag}>")
            parts.append(f"<{tag}>{body}</{tag}>" if block.closed else f"<{tag}>{body}")
        return "".join(parts)

    def write(self, text: str) -> str:
        """An output in the environment's grammar as this style would have it.

        Args:
            text: Anything.

        Returns:
            The same blocks under the style's tags; those that it has no tag for are left out.
        """
        if not self.translates:
            return text
        data, parts = encode_text(text), []
        for block in scan(data):
            body = data[block.inner_start : block.inner_end].decode("utf-8", errors="replace")
            tag = self.tags.tag_of(block.segment)
            if tag is None:
                continue
            if block.segment is Segment.TOOL_CALL:
                body = self._write_call(body)
            body = body.replace(f"</{tag}>", f"&lt;/{tag}>")
            parts.append(f"<{tag}>{body}</{tag}>" if block.closed else f"<{tag}>{body}")
        return "".join(parts)

    @cached_property
    def _tag(self) -> re.Pattern[str] | None:
        names = [*(tag for tag, _ in self.tags.segments if self.tags != OWN_TAGS), *self.result_tags]
        return re.compile(r"<(?=/?(?:" + "|".join(map(re.escape, names)) + r")>)") if names else None

    @cached_property
    def _label(self) -> re.Pattern[str] | None:
        labels = [words[: -len(" {}")] for words in dataclasses.astuple(self.words) if words.endswith(": {}")]
        line_start = "(?<=[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])"
        return re.compile(line_start + "(?=" + "|".join(map(re.escape, labels)) + ")") if labels else None

    def _read_call(self, body: str) -> str:
        if self.plain_call is not None:
            tool, argument = self.plain_call
            return _dump({"name": tool, "arguments": {argument: [body.strip()]}})
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            return body  # the environment says what is wrong with it
        arguments = call.get("arguments") if isinstance(call, dict) else None
        if not isinstance(arguments, dict):
            return body
        renamed = dict(arguments)
        for name, meant in self.argument_names:
            if name in renamed and meant not in renamed:
                value = renamed.pop(name)
                renamed[meant] = value if isinstance(value, list) else [value]
        return body if renamed == arguments else _dump(call | {"arguments": renamed})

    def _write_call(self, body: str) -> str:
        if self.plain_call is None:
            return body
        tool, argument = self.plain_call
        try:
            call = json.loads(body)
            asked = call["arguments"][argument] if call["name"] == tool else None
        except (ValueError, RecursionError, TypeError, KeyError):
            return body
        return "; ".join(map(str, asked)) if isinstance(asked, list) else body


def _dump(call: object) -> str:
    """JSON that no closing tag can stand in."""
    return json.dumps(call, ensure_ascii=False).replace("</", "<\\/")


OWN = PromptStyle("own")

# The tags and the order of blocks are those of the paper (MemPO, arXiv 2603.00680). The system message that the
# authors' checkpoints were tuned with is not reproduced: these are words of ours. `query_list` is the argument of
# verl's search tool, which their code is a fork of.
MEMPO = PromptStyle(
    "mempo",
    words=FieldWords(
        task="{}",
        memory="<mem>{}</mem>",
        earlier="<information>{}</information>",
        tool_result="<information>{}</information>",
        budget="",
    ),
    instructions=(
        "Answer all of the questions, which are separated by semicolons. In each step you see the questions, your "
        "memory in <mem> </mem> and what the last tool call gave in <information> </information>; nothing older is "
        "kept. Write, in this order: <mem> everything that you still need, in at most {memory_tokens} tokens </mem>, "
        "<think> your reasoning </think>, and then either one tool call, "
        '<tool_call>{{"name": "..", "arguments": {{..}}}}</tool_call>, or, when every question is settled, '
        "<answer> answer1; answer2; .. </answer>.\n"
        "Tools, in <tools> </tools>:\n<tools>\n{tools}\n</tools>\n"
        "At most {tool_calls} tool calls and {turns} steps."
    ),
    argument_names=(("query", "queries"), ("query_list", "queries")),
    result_tags=("information",),
)

# MEM1 (arXiv 2506.15841): its code writes the state as <think>, the query as <search> and results as <information>; its
# paper calls them IS, query and info, which are read too. The wording is ours, the protocol and the hint theirs.
MEM1 = PromptStyle(
    "mem1",
    tags=TagSet(
        (
            ("think", Segment.MEMORY),
            ("IS", Segment.MEMORY),
            ("search", Segment.TOOL_CALL),
            ("query", Segment.TOOL_CALL),
            ("answer", Segment.ANSWER),
        )
    ),
    words=FieldWords(
        task="Questions: {}",
        memory="<think>{}</think>",
        earlier="<information>{}</information>",
        tool_result="<information>{}</information>",
        budget="[HINT]{}[/HINT]",
    ),
    instructions=(
        "Several questions, separated by semicolons, are to be answered by reasoning and searching in steps. In each "
        "step you are given the questions, your last summary, your last query and what it found. First update, in "
        "<think> </think>, one concise summary of all that matters so far: it is all that is kept, with at most "
        "{memory_tokens} tokens. Then write either one query of a few words, for one question, in <search> </search>, "
        "or, once every question is settled, the short answers in order in <answer> answer1; answer2; .. </answer>. "
        "What a query finds is shown in <information> </information>. At most {tool_calls} queries and {turns} steps."
    ),
    system_role=False,
    plain_call=("search", "queries"),
    result_tags=("information", "info"),
)

# Search-R1 (arXiv 2503.09516): a ReAct without a memory, for use with the context `history`. The wording is ours.
SEARCH_R1 = PromptStyle(
    "search-r1",
    tags=TagSet((("think", Segment.THINK), ("search", Segment.TOOL_CALL), ("answer", Segment.ANSWER))),
    words=FieldWords(
        task="Question: {}",
        memory="",
        earlier="<information>{}</information>",
        tool_result="<information>{}</information>",
        budget="",
    ),
    instructions=(
        "Answer the question; several are separated by semicolons. Whenever something new was found, reason in "
        "<think> </think> first. Where knowledge is missing, ask the search engine with <search> query </search>; what "
        "it finds stands in <information> </information>. Search at most {tool_calls} times, in at most {turns} steps. "
        "When nothing more is needed, give the short answer, without explanations, in <answer> </answer>; several are "
        "separated by semicolons, in the order of the questions."
    ),
    system_role=False,
    plain_call=("search", "queries"),
    result_tags=("information",),
)

STYLES: Registry[PromptStyle] = Registry("prompt style", "mempo_env.styles")
for _name, _where in (("own", "OWN"), ("mempo", "MEMPO"), ("mem1", "MEM1"), ("search-r1", "SEARCH_R1")):
    STYLES.register(_name, f"mempo_env.prompt_styles:{_where}")


def get_style(name: str) -> PromptStyle:
    """Looks a prompt style up.

    Args:
        name: A registered name, or ``package.module:NAME`` for a style of your own.

    Returns:
        The style.

    Raises:
        UserError: The name is unknown, or what it stands for is no prompt style.
    """
    style = STYLES.get(name)
    if not isinstance(style, PromptStyle):
        raise UserError(f"prompt style '{name}' must be a PromptStyle, not {type(style).__name__}")
    return style
