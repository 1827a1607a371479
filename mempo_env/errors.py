"""The errors that cross module borders, and what each of them means to a caller.

Invariant: a ``UserError`` is the user's to mend (one clear line, exit code 2); an ``InfrastructureError`` is nobody's
fault inside the episode (the episode is marked ``error`` and never scored 0). Everything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Input that cannot be used; the message says what to do next. The command line exits with code 2."""


class InfrastructureError(Exception):
    """A tool or server outside the agent's control failed for good; the episode becomes an ``error``."""


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """Builds the error for a name that is not registered, with the nearest known one.

    Args:
        kind: What the name stands for, such as ``"algorithm"``.
        name: The name that was asked for.
        known: All names that would have worked.
        hint: A sentence on what else would have worked.

    Returns:
        The error, to be raised by the caller.

    >>> str(unknown_name("algorithm", "mempro", ["grpo", "mempo"]))
    "unknown algorithm 'mempro'; did you mean 'mempo'? Known: grpo, mempo."
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f" did you mean '{near[0]}'?" if near else ""
    tail = f" {hint}" if hint else ""
    return UserError(f"unknown {kind} '{name}';{guess} Known: {', '.join(names)}.{tail}")
