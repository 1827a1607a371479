"""Episodes as JSON lines.

Invariant: what is loaded equals what was saved: text to the character (lone surrogates too), ids and floats exactly. A
file appears whole or not at all.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from mempo_env.actions import Action, Answer, FormatError, FormatErrorKind, ToolCall
from mempo_env.errors import UserError
from mempo_env.records import Episode, Evidence, Goal, Passage, Task, Turn

VERSION = 1
ROW = "row"
"""What a line may hold beside its episode: the key of the row of an evaluation that it belongs to."""
_ID_FIELDS = ("prompt_ids", "output_ids", "logprobs", "segments")


def save_episodes(path: str | Path, episodes: Iterable[Episode]) -> int:
    """Writes episodes, one a line; gzipped if the name ends in ``.gz``.

    Args:
        path: The file; an existing one is replaced.
        episodes: Any number.

    Returns:
        How many were written.

    Raises:
        UserError: The folder does not exist or the file cannot be written.
    """
    path, count = Path(path), 0
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _open(aside, "wt", path.suffix == ".gz") as file:
            for episode in episodes:
                file.write(episode_line(episode))
                count += 1
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    finally:
        aside.unlink(missing_ok=True)
    return count


def load_episodes(path: str | Path) -> list[Episode]:
    """Reads what ``save_episodes`` wrote.

    Args:
        path: The file.

    Returns:
        The episodes in order.

    Raises:
        UserError: The file is missing, or a line is no episode; names file and line.
    """
    return list(iterate_episodes(path))


def iterate_episodes(path: str | Path) -> Iterator[Episode]:
    """Reads episodes one by one; for files that should not be held in memory whole.

    Args:
        path: The file.

    Yields:
        The episodes in order.

    Raises:
        UserError: As ``load_episodes``.
    """
    path, number = Path(path), 0
    try:
        with _open(path, "rt", path.suffix == ".gz") as file:
            for number, line in enumerate(file, start=1):
                yield read_episode_line(line, f"{path}:{number}")[0]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; save episodes there first") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}:{number + 1}: cannot be read: {error}") from error


def episode_to_dict(episode: Episode) -> dict[str, Any]:
    """An episode as JSON values; empty id fields are left out."""
    turns = []
    for turn in episode.turns:
        values = {name: value for name, value in vars(turn).items() if name not in _ID_FIELDS or value}
        turns.append(values | {"action": _action_to_dict(turn.action)})
    return vars(episode) | {"task": asdict(episode.task), "turns": turns}


def episode_from_dict(data: dict[str, Any]) -> Episode:
    """The inverse of ``episode_to_dict``, from parsed JSON.

    Raises:
        KeyError: A field is missing.
        TypeError: A field is unknown or of a wrong type.
        ValueError: A value is not possible.
    """
    task = data["task"]
    goals = tuple(
        Goal(**goal | {"answers": tuple(goal["answers"]), "evidence": tuple(Evidence(**e) for e in goal["evidence"])})
        for goal in task["goals"]
    )
    passages = tuple(Passage(**passage) for passage in task["passages"])
    turns = tuple(
        Turn(
            **turn
            | {"action": _action_from_dict(turn["action"])}
            | {name: tuple(turn[name]) for name in _ID_FIELDS if name in turn}
        )
        for turn in data["turns"]
    )
    return Episode(**data | {"task": Task(goals, task["id"], passages), "turns": turns})


def episode_line(episode: Episode, beside: Mapping[str, Any] | None = None) -> str:
    """An episode as a line of a file, its line break included.

    Args:
        episode: The episode.
        beside: What the line holds beside it, by the names that ``read_episode_line`` gives back.
    """
    # ASCII only: a lone surrogate has no UTF-8 form, but has a JSON escape.
    return json.dumps({"version": VERSION} | dict(beside or {}) | episode_to_dict(episode)) + "\n"


def read_episode_line(line: str, where: str) -> tuple[Episode, dict[str, Any]]:
    """The inverse of ``episode_line``.

    Args:
        line: The line.
        where: File and line, for messages.

    Returns:
        The episode, and what the line holds beside it.

    Raises:
        UserError: It is no episode.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(data, dict) or data.pop("version", None) != VERSION:
        raise UserError(f"{where}: not an episode of format version {VERSION}; was it written by another program?")
    beside = {ROW: data.pop(ROW)} if ROW in data else {}
    try:
        return episode_from_dict(data), beside
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: not a whole episode: {type(error).__name__}: {error}") from None


def _action_to_dict(action: Action) -> dict[str, Any]:
    return {"type": type(action).__name__} | asdict(action)


def _action_from_dict(data: dict[str, Any]) -> Action:
    kind = data["type"]
    if kind == "ToolCall":
        return ToolCall(data["name"], data["arguments"])
    if kind == "Answer":
        return Answer(tuple(data["answers"]))
    if kind == "FormatError":
        return FormatError(FormatErrorKind(data["kind"]), data["message"])
    raise ValueError(f"unknown action type {kind!r}")


@contextmanager
def _open(path: Path, mode: str, zipped: bool) -> Iterator[TextIO]:
    if zipped:
        with gzip.open(path, mode, encoding="ascii", newline="\n") as file:
            yield file  # type: ignore[misc]
    else:
        with path.open(mode, encoding="ascii", newline="\n") as file:
            yield file  # type: ignore[misc]
