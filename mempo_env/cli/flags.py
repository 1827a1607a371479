"""Flags: one parser for all commands, made from a dataclass by tyro.

Invariants:
    * help is the dataclasses' own docstrings, without their markup;
    * a flag that cannot be used is one line and exit code 2, as every other error in the input;
    * a flag that is read before the parser is built (``peek``, since ``--preset`` and ``--algo`` decide which flags
      there are) is read the same way by the parser later.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, TypeVar

from mempo_env.errors import UserError

T = TypeVar("T")

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RULE = re.compile(r"^[ │|╰╯─-]*$")
"""A line across a box, in either of tyro's two drawings."""
_FRAME = ("│", "╭", "╰")
_DROPPED = re.compile(r"``| \(default: (None|'')?\)")
"""Markup of the docstrings, and defaults that say nothing."""


def peek(argv: Sequence[str], flag: str) -> str | None:
    """The last value of ``--flag value`` or ``--flag=value``, or None.

    Raises:
        UserError: The flag has no value.

    >>> peek(["--algo", "grpo", "--seed=3"], "--algo"), peek(["--seed=3"], "--seed"), peek([], "--algo")
    ('grpo', '3', None)
    """
    value = None
    for index, argument in enumerate(argv):
        if argument == flag:
            if index + 1 == len(argv) or argv[index + 1].startswith("--"):
                raise UserError(f"{flag} needs a value")
            value = argv[index + 1]
        elif argument.startswith(flag + "="):
            value = argument.partition("=")[2]
    return value


def parse_flags(shape: type[T], argv: Sequence[str], *, command: str, description: str, default: T | None = None) -> T:
    """Parses flags into a dataclass.

    Args:
        shape: The dataclass; its docstring's Attributes are the help.
        argv: The flags.
        command: What the user typed before them, such as ``mempo eval``.
        description: Shown on top of the help.
        default: The defaults, where they are not the dataclass's own.

    Returns:
        An instance.

    Raises:
        UserError: A flag is unknown, missing or malformed.
        SystemExit: Help was asked for and shown (code 0).
    """
    import tyro

    more: dict[str, Any] = {} if default is None else {"default": default}
    shown = _Capture(sys.stdout.isatty(), codecs.lookup(sys.stdout.encoding or "ascii").name)
    complaint = _Capture(False, "utf-8")
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(complaint):
            parsed: T = tyro.cli(shape, args=list(argv), prog=command, description=description, **more)
            return parsed
    except SystemExit as end:
        if end.code not in (0, None):
            raise UserError(_one_line(complaint.getvalue(), command)) from None
        sys.stdout.write("\n".join(_squared([_tidy(line) for line in shown.getvalue().split("\n")])))
        raise


class _Capture(io.StringIO):
    """Keeps what is written; looks like the stream it stands for, so that help has its colours and frames."""

    def __init__(self, terminal: bool, encoding: str) -> None:
        super().__init__()
        self._terminal = terminal
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._terminal


def _tidy(line: str) -> str:
    """A line of help without the docstring's markup, its frames as straight as before; one without frames is wrapped.

    >>> _tidy("│ ``auto`` or ``cpu``. (default: auto) │")
    '│ auto or cpu. (default: auto)         │'
    """
    *framed, last = line.split("│")  # in a wide terminal two boxes stand side by side
    if not framed:
        return "\n".join(textwrap.wrap(last, shutil.get_terminal_size().columns))
    return "│".join([_DROPPED.sub("", part).ljust(len(part)) for part in framed] + [last])


def _squared(lines: list[str]) -> list[str]:
    """The lines with those of frames as wide as the widest: of two boxes side by side one may end a line sooner.

    >>> _squared(["usage", "│ a │╭───╮", "╰───╯"])
    ['usage', '│ a │╭───╮', '╰───╯     ']
    """
    width = max((len(line) for line in lines if line.startswith(_FRAME)), default=0)
    return [line.ljust(width) if line.startswith(_FRAME) else line for line in lines]


def _one_line(box: str, command: str) -> str:
    r"""The message in one of tyro's error boxes, with the flags it suggests.

    >>> print(_one_line("╭─ Oops ─╮\n│ Unknown: --stps │\n│ ───── │\n│ --steps INT │\n╰─────╯", "mempo x"))
    Unknown: --stps; did you mean --steps? (mempo x --help lists all flags)
    """
    lines = [_RULE.sub("", _COLOUR.sub("", line)).strip(" │|") for line in box.splitlines()[1:]]
    lines = list(itertools.dropwhile(lambda line: not line, lines))
    end = lines.index("") if "" in lines else len(lines)  # a rule between two parts, or a blank line
    first, rest = lines[:end], lines[end:]
    if first and first[0].startswith("Missing from"):
        return f"{command} needs {first[1].split()[0]} ({command} --help lists all flags)"
    message = " ".join(first).rstrip(".: ") or " ".join(box.split())
    flags = [line.split()[0].rstrip(",") for line in rest if line.startswith("--")]
    guess = "" if not flags or flags[0] in message else f"; did you mean {' or '.join(flags[:3])}?"
    return f"{message}{guess} ({command} --help lists all flags)"
