"""The tool contract: what an environment's tool is, to the environment and to the agent.

Invariant: ``call`` is a function of its arguments and of what ``reset`` set up (and, where the environment says that it
is ``stateful``, of the calls before it); it raises ``ToolArgumentError`` for what the agent did wrong (a format error
it can read) and ``InfrastructureError`` for what nobody in the episode did.
Results are data: the environment escapes our tags in them before the agent sees them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .actions import TAGS, encode_text


class ToolArgumentError(Exception):
    """The arguments of a call cannot be used; the message is shown to the agent."""


@dataclass(frozen=True)
class ToolSpec:
    """What the agent is told about a tool: name, purpose and a JSON schema of the arguments."""

    name: str
    description: str
    parameters: dict[str, Any]

    def phrases(self) -> list[str]:
        """The JSON around the arguments of a call, piece by piece.

        >>> text = {"type": "object", "properties": {"word": {"type": "string"}}}
        >>> ToolSpec("look", "Looks a word up.", text).phrases()
        ['{"name": "look", "arguments": {"word": "', '"}}']
        """
        mark = "\x00"
        kinds: dict[str, Any] = {"string": mark, "array": [mark, mark]}
        properties = self.parameters.get("properties", {})
        arguments = {name: kinds.get(schema.get("type"), 0) for name, schema in properties.items()}
        call = json.dumps({"name": self.name, "arguments": arguments}, ensure_ascii=False)
        return call.split(json.dumps(mark)[1:-1])


@runtime_checkable
class Tool(Protocol):
    """A tool an environment offers."""

    spec: ToolSpec

    def call(self, arguments: dict[str, Any]) -> str:
        """Runs the tool.

        Args:
            arguments: The JSON object the agent wrote.

        Returns:
            Text for the next observation.

        Raises:
            ToolArgumentError: The arguments are wrong.
            InfrastructureError: The tool failed for good.
        """
        ...


_OWN_TAG = re.compile(r"<(?=/?(?:" + "|".join(TAGS.values()) + r")>)")


def escape_tags(text: str) -> str:
    """Escapes our own tags inside text that is data, so that it can never look like an action.

    Lone surrogates, which a call's JSON escapes can carry and no tokenizer can encode, become ``?``.

    >>> escape_tags("a <b> </answer>")
    'a <b> &lt;/answer>'
    """
    return _OWN_TAG.sub("&lt;", encode_text(text).decode())
