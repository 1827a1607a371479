"""Finds the files of episodes that belong to a run folder or an evaluation's folder, and what to call them.

Invariant: a file is found by its name alone, wherever in the folder it lies, so that run folders and evaluation folders
of older and newer layouts are read alike; hidden files (those still being written) are left out.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mempo_env.errors import UserError

SUFFIXES = (".jsonl.gz", ".jsonl")
_ORDER = ("before", "after", "imitation", "expert")
"""Evaluations of a training run, in the order in which they are wanted; others follow by name."""


@dataclass(frozen=True)
class Source:
    """One file of episodes.

    Attributes:
        path: The file.
        name: What the viewer calls it: ``after``, ``evaluation``, ``training/step-000020``.
    """

    path: Path
    name: str


def find_sources(place: Path) -> list[Source]:
    """The files of episodes at a place, training steps last.

    Args:
        place: A run folder, an evaluation's folder, or one file.

    Returns:
        At least one.

    Raises:
        UserError: There is no such place, or it holds no episodes.
    """
    if place.is_file():
        if not place.name.endswith(SUFFIXES):
            raise UserError(
                f"{place} is no file of episodes; give a run folder or a file such as after.episodes.jsonl.gz"
            )
        return [Source(place, _bare(place.name))]
    if not place.is_dir():
        raise UserError(f"{place} does not exist; give a run folder, an evaluation's folder or a file of episodes")
    found = [
        Source(path, _name(path.relative_to(place)))
        for path in sorted(place.rglob("*"))
        if path.is_file() and _holds_episodes(path.relative_to(place))
    ]
    if not found:
        raise UserError(f"{place} holds no episodes (*.episodes.jsonl.gz); play some: mempo eval RUN --out FOLDER")
    return sorted(found, key=lambda source: _rank(source.name))


def describe(place: Path) -> dict[str, Any]:
    """What is known about the run at a place, for the head of the page; empty where there is no ``config.json``."""
    path = place / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # the page says less, but shows the episodes
    stored = config if isinstance(config, dict) else {}
    run = stored.get("run", stored.get("environment"))  # of a run, or of an evaluation
    wanted = ("algo", "preset", "model", "env", "dataset", "budget", "context", "seed")
    return {name: str(run[name]) for name in wanted if isinstance(run, dict) and name in run}


def _holds_episodes(path: Path) -> bool:
    if any(part.startswith(".") for part in path.parts) or not path.name.endswith(SUFFIXES):
        return False
    return ".episodes." in path.name or path.parent.name == "episodes"


def _bare(name: str) -> str:
    return re.sub(r"(\.episodes)?\.jsonl(\.gz)?$", "", name)


def _name(path: Path) -> str:
    """The path without what every evaluation has: ``eval/after.episodes.jsonl.gz`` is ``after``."""
    folders = [part for part in path.parts[:-1] if part not in ("eval", "episodes")]
    return "/".join([*folders, _bare(path.name)])


def _rank(name: str) -> tuple[bool, int, str]:
    return name.startswith("training/"), _ORDER.index(name) if name in _ORDER else len(_ORDER), name
