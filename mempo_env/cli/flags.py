"""Reads single flags before the parser is built, since ``--preset`` and ``--algo`` decide which flags there are.

Invariant: a flag read here is read the same way by the parser later.
"""

from __future__ import annotations

from collections.abc import Sequence

from mempo_env.errors import UserError


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
