"""Flags of the study's script that argparse has no type for.

Invariant: what is refused is refused in one line that says what to give instead.
"""

from __future__ import annotations

import argparse


def read_shard(text: str) -> tuple[int, int]:
    """``I/N`` as two numbers.

    Raises:
        argparse.ArgumentTypeError: It is not 1/N to N/N.
    """
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"'{text}' is no shard; give I/N, such as 1/2")
    return int(part), int(parts)


def read_threads(text: str) -> int:
    """``4``.

    Raises:
        argparse.ArgumentTypeError: It is no whole number from 1 on.
    """
    if not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of threads; give 1 or more")
    return int(text)
