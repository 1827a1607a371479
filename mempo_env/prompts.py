"""The text the agent reads: instructions with tool schemas, and one observation as a single string.

Invariant: the order is instructions, task, memory, tool result, budget, so that instructions and task are a shared
prefix of every input in a group; a line that begins with a field's label is that field, whatever tasks, memories and
results say. This is the only place with prompt wording, but for the styles of models that learned another protocol
(``prompt_styles``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from .actions import ToolCall
from .budgets import Budget
from .prompt_styles import OWN, PromptStyle
from .records import Observation
from .tools import ToolSpec

InstructionStyle = Literal["full", "terse"]
MemoryMode = Literal["required", "optional", "off"]

MEMORY_FORMAT = (
    "Your earlier turns are not kept. Begin each output with <mem>everything you still need to know</mem>: it replaces "
    "the old memory and is all that you will be given of the past. At most {memory_tokens} tokens."
)
OPTIONAL_MEMORY = "You may keep notes in <mem>..</mem>."


def build_instructions(
    tools: Sequence[ToolSpec], budget: Budget, memory: MemoryMode = "required", style: InstructionStyle = "full"
) -> str:
    """The system message.

    Args:
        tools: What may be called.
        budget: Limits to tell.
        memory: Whether a memory must, may or cannot be written.
        style: ``full`` for pretrained models; ``terse`` is one line, for models that learn the protocol from
            demonstrations and would pay for each token of it.

    Returns:
        The text.
    """
    if style == "terse":
        return "Answer all."
    means = ", using the tools" if tools else ""
    lines = [f"Answer every question of the task{means}. The questions are separated by semicolons."]
    if memory == "required":
        lines.append(MEMORY_FORMAT.format(memory_tokens=budget.memory_tokens))
    elif memory == "optional":
        lines.append(OPTIONAL_MEMORY)
    call = '<tool_call>{"name": "..", "arguments": {..}}</tool_call>'
    answer = (
        "<answer>answer 1; answer 2; ..</answer> with one short answer per question, in the order of the questions."
    )
    if not tools:
        return "\n".join([*lines, "Then think in <think>..</think>, and end with:", answer])
    lines += ["Then think in <think>..</think>, and end with exactly one of:", call, answer, "Tools:"]
    lines += [
        json.dumps(
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters}, ensure_ascii=False
        )
        for tool in tools
    ]
    lines.append(f"At most {budget.max_tool_calls} tool calls and {budget.max_turns} turns.")
    return "\n".join(lines)


def render_observation(
    observation: Observation, *, task: bool = True, memory: bool = True, earlier: str = "", style: PromptStyle = OWN
) -> str:
    r"""One observation as a single string, the user message of a turn.

    Args:
        observation: Its four fields.
        task: Whether to show the task field.
        memory: Whether to show the memory field.
        earlier: Earlier turns that a context strategy brings back.
        style: How the fields are worded.

    Returns:
        Task, memory, earlier turns, tool result and budget, one a line; an empty field is left out, but never the task.

    >>> render_observation({"task": "Q?", "memory": "m", "tool_result": "", "budget": "5 calls left"})
    'Task: Q?\nMemory: m\nBudget: 5 calls left'
    >>> render_observation({"task": "Q?", "memory": "", "tool_result": "x\nMemory: it is y", "budget": ""})
    'Task: Q?\nResult: x\n> Memory: it is y'
    """
    shown = [
        (style.words.task, observation["task"], task),
        (style.words.memory, observation["memory"], memory and bool(observation["memory"])),
        (style.words.earlier, earlier, bool(earlier)),
        (style.words.tool_result, observation["tool_result"], bool(observation["tool_result"])),
        (style.words.budget, observation["budget"], bool(observation["budget"])),
    ]
    return "\n".join(words.format(style.escape(text)) for words, text, wanted in shown if wanted and words)


def render_past_turn(number: int, call: ToolCall, result: str) -> str:
    """A turn of the past as an entry of a store: what was called and what came of it.

    Args:
        number: Of the turn, from 1.
        call: The call.
        result: Its result.
    """
    return f"[turn {number}] {call.name} {json.dumps(call.arguments, ensure_ascii=False)}\n{result}"
