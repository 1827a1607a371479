"""The tool contract: what an environment's tool is, to the environment and to the agent.

Invariant: ``call`` is a function of its arguments and of what ``reset`` set up (and, where the environment says that it
is ``stateful``, of the calls before it); it raises ``ToolArgumentError`` for what the agent did wrong (a format error
it can read) and ``InfrastructureError`` for what nobody in the episode did.
Results are data: the environment escapes our tags in them before the agent sees them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .actions import TAGS, encode_text
from .errors import UserError


class ToolArgumentError(Exception):
    """The arguments of a call cannot be used; the message is shown to the agent."""


class ToolResultError(UserError):
    """A tool returned something that is no text; its author mends it, whatever the agent wrote."""


def checked_result(tool: str, result: object) -> str:
    """What a tool returned, if it is text.

    Args:
        tool: Name of the tool.
        result: What its ``call`` returned.

    Returns:
        The result.

    Raises:
        ToolResultError: It is no ``str``.

    >>> checked_result("count", 7)
    Traceback (most recent call last):
    mempo_env.tools.ToolResultError: tool 'count' returned 7, of type int; its call(arguments) must return a str
    """
    if isinstance(result, str):
        return result
    text = repr(result)
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}.."
    raise ToolResultError(
        f"tool '{tool}' returned {shown}, of type {type(result).__name__}; its call(arguments) must return a str"
    )


_SHOWN = 100  # characters of a result in a message


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


# Looser than the grammar, which takes "<mem>" alone: what merely looks like a tag (another case, white space, an
# attribute, no end) is copied by a model as readily. Look-alikes in Unicode are left alone: they are other tokens, and
# text in their own right. Possessive, so that a megabyte of white space costs no more than its length.
_OWN_TAG = re.compile(r"<(?=\s*+(?:/\s*+)?(?:" + "|".join(TAGS.values()) + r")\b)", re.IGNORECASE)


def escape_tags(text: str) -> str:
    """Escapes our own tags inside text that is data, so that it can never look like an action.

    Lone surrogates, which a call's JSON escapes can carry and no tokenizer can encode, become ``?``.

    >>> escape_tags("a <b> </answer> < MEM x=1>")
    'a <b> &lt;/answer> &lt; MEM x=1>'
    """
    encodable = encode_text(text).decode()
    return _OWN_TAG.sub("&lt;", encodable) if "<" in encodable else encodable


def printable(text: str) -> str:
    r"""Text for a terminal: whatever would act there or not be seen is written as an escape.

    That is: control characters but for line feed and tab (a terminal obeys ``ESC``), format characters (they reorder or
    hide what stands around them), lone surrogates, and Unicode's own line separators.

    >>> printable("a\x1b[2Jb\u202ec\n")
    'a\\x1b[2Jb\\u202ec\n'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        sign if sign in "\n\t" or unicodedata.category(sign) not in _ACTING else _escape(sign) for sign in text
    )


_ACTING = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
