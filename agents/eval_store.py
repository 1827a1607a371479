"""The folder of an evaluation: its settings, and every episode as soon as it has been played.

    config.json               environment and agents, which a second call must repeat; the plan, which may grow
    episodes/<row>.jsonl.gz   an episode a line, each line with its row's key; appended to, never rewritten

Each line is a gzip member of its own, so that a process that is killed tears the last line at most: it is dropped with
a notice, and played again by whoever goes on.

Invariants:
    * what was stored is never lost by going on, by an interruption, or by making the tables again;
    * all episodes of a folder were played under its settings: a call with others is refused;
    * of two lines of one task the later counts: an episode that ended on a fault is played again by the next call.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mempo_env.errors import UserError
from mempo_env.records import Episode
from mempo_env.versions import versions

from .episodes_io import ROW, episode_line, read_episode_line
from .eval_rows import RowKey

CONFIG, EPISODES = "config.json", "episodes"
KIND = "evaluation"
_CHUNK = 1 << 16
_LOG = logging.getLogger(__name__)

Settings = Mapping[str, Any]
"""Settings as JSON values."""


class EvalStore:
    """A folder of an evaluation, open for writing.

    Args:
        folder: As ``open_store`` made or found it.

    Attributes:
        stored: Episodes that were added since it was opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored = 0
        self._paths = {key: path for path, key, _ in _files(folder, mend=True)}

    def done(self, key: RowKey) -> set[int]:
        """Reset seeds of a row's episodes that need not be played again."""
        path = self._paths.get(key)
        return set() if path is None else {episode.seed for episode in _newest(path) if episode.error is None}

    def append(self, key: RowKey, episodes: Iterable[Episode]) -> None:
        """Adds episodes to a row; they are on the disk when this returns.

        Raises:
            UserError: They cannot be written.
        """
        path = self._paths.setdefault(key, self.folder / EPISODES / f"{_file_name(key)}.jsonl.gz")
        lines = [gzip.compress(episode_line(one, {ROW: asdict(key)}).encode("ascii"), mtime=0) for one in episodes]
        whole = 0
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("ab") as file:
                whole = file.tell()
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
            self.stored += len(lines)
        except OSError as error:
            with suppress(OSError):  # on a full disk what was half written goes again
                os.truncate(path, whole)
            raise UserError(f"{path} cannot be written: {error.strerror or error}; free some space") from error


@contextmanager
def open_store(
    folder: Path, environment: Settings, agents: Mapping[str, Settings], plan: Settings
) -> Iterator[EvalStore]:
    """Makes the folder of an evaluation, or opens it to go on; one that stays without an episode is removed.

    Args:
        folder: A new folder, or one that an evaluation made.
        environment: What every episode of the folder is played in.
        agents: Settings by name; agents that the folder does not know are added.
        plan: Lists and numbers that may differ from call to call; the lists grow.

    Yields:
        The store.

    Raises:
        UserError: The folder is another one, was made with other settings, or cannot be written.
    """
    new = not folder.exists()
    try:
        if new:
            folder.mkdir(parents=True)
        config = _merged(folder, read_settings(folder) if not new else {}, environment, agents, plan)
        aside = folder / f".{CONFIG}.part"
        aside.write_text(json.dumps(config, indent=2), encoding="utf-8")
        os.replace(aside, folder / CONFIG)
    except OSError as error:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"{folder} cannot be made: {error.strerror or error}; choose another --out") from error
    store = EvalStore(folder)
    try:
        yield store
    finally:
        if new and not store.stored:
            shutil.rmtree(folder, ignore_errors=True)


def is_store(folder: Path) -> bool:
    """Whether an evaluation made this folder."""
    try:
        return bool(json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("kind") == KIND)
    except (OSError, ValueError, AttributeError):
        return False


def read_settings(folder: Path) -> dict[str, Any]:
    """``config.json`` of an evaluation.

    Raises:
        UserError: The folder is no evaluation's.
    """
    if not is_store(folder):
        raise UserError(f"{folder} exists; choose another --out")
    found: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for part in ("environment", "agents", "plan"):
        if not isinstance(found.get(part), dict):
            raise UserError(f"{folder / CONFIG} has no part '{part}', so it was damaged; choose another --out")
    return found


def read_store(folder: Path) -> dict[RowKey, list[Episode]]:
    """All episodes of an evaluation by row, in the order of its plan; the episodes in the order of their tasks.

    Raises:
        UserError: The folder is no evaluation's, or a file is damaged before its last line.
    """
    if not is_store(folder):
        raise UserError(f"{folder} is no evaluation: it was not made by mempo eval --out")
    settings = read_settings(folder)
    plan = settings["plan"]
    order = {name: list(plan.get(f"{name}s", [])) for name in ("context", "budget")} | {
        "agent": list(settings["agents"])
    }

    def place(key: RowKey) -> tuple[object, ...]:
        known = [order[name].index(value) if (value := getattr(key, name)) in order[name] else 99 for name in order]
        context, budget, agent = known
        return (agent, budget, key.goals, context, key)

    rows = {key: _newest(path) for path, key, _ in _files(folder)}
    return {key: rows[key] for key in sorted(rows, key=place) if rows[key]}


def _merged(
    folder: Path, known: Mapping[str, Any], environment: Settings, agents: Mapping[str, Settings], plan: Settings
) -> dict[str, Any]:
    """The settings of this call on top of those of the folder, once they are found to agree."""
    ours = versions()
    begun = known.get("versions") or ours
    changed = {name: version for name, version in ours.items() if begun.get(name) != version}
    later = [*known.get("later_versions", [])]
    if changed and changed not in later:
        _LOG.warning(
            "%s was begun with other versions (%s): its episodes may not be comparable; a new --out keeps them apart",
            folder,
            ", ".join(f"{name} {begun.get(name, '-')}, now {version}" for name, version in changed.items()),
        )
        later.append(changed)
    environment, agents, plan = (json.loads(json.dumps(part)) for part in (environment, agents, plan))
    if known:
        _refuse_other(folder, "environment", known["environment"], environment)
        for name in agents.keys() & known["agents"].keys():
            _refuse_other(folder, name, known["agents"][name], agents[name])
    before = known.get("plan", {})
    grown = {
        name: [*before.get(name, []), *(one for one in value if one not in before.get(name, []))]
        if isinstance(value, list)
        else value
        for name, value in plan.items()
    }
    return {
        "kind": KIND,
        "environment": environment,
        "agents": known.get("agents", {}) | agents,
        "plan": grown,
        "versions": begun,
        "later_versions": later,
    }


def _refuse_other(folder: Path, what: str, stored: Settings, given: Settings) -> None:
    for name in [*stored, *given]:
        if stored.get(name) != given.get(name):
            raise UserError(
                f"{folder} was measured with {what}: {name} = {json.dumps(stored.get(name))}, not "
                f"{json.dumps(given.get(name))}; give the same settings to go on, or choose another --out"
            )


def _files(folder: Path, *, mend: bool = False) -> Iterator[tuple[Path, RowKey, int]]:
    """The files of episodes with their rows and lengths in bytes; a torn end is reported, and cut off if asked to."""
    for path in sorted((folder / EPISODES).glob("*.jsonl.gz")):
        first, whole, torn = None, 0, False
        for line, end in _members(path):
            if line is None:
                torn = True
                break
            first, whole = first if first is not None else line, end
        if torn:
            _LOG.warning("%s: its last line was torn and is dropped; the next call plays that task again", path)
            if mend:
                os.truncate(path, whole)
        if first is not None:
            yield path, _row_key(first, path), whole
        elif mend:
            path.unlink()


def _members(path: Path) -> Iterator[tuple[str | None, int]]:
    """Each line with the place where its gzip member ends; a last line that was torn is None.

    Raises:
        UserError: Something before the last line is damaged, or the file cannot be read.
    """
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    at, number = 0, 0
    while at < len(data):
        number += 1
        member, text, end = zlib.decompressobj(wbits=31), b"", at
        try:
            while not member.eof and end < len(data):
                text += member.decompress(data[end : end + _CHUNK])
                end = min(end + _CHUNK, len(data))
        except zlib.error as error:
            raise UserError(f"{path}: line {number} is damaged ({error}); restore the file, or remove it") from error
        if not member.eof:
            yield None, at
            return
        at = end - len(member.unused_data)
        yield text.decode("ascii"), at


def _newest(path: Path) -> list[Episode]:
    """The episodes of a file, the later line of each task, in the order of the seeds."""
    found: dict[int, Episode] = {}
    for number, (line, _) in enumerate(_members(path), start=1):
        if line is not None:
            episode, _ = read_episode_line(line, f"{path}:{number}")
            found[episode.seed] = episode
    return [found[seed] for seed in sorted(found)]


def _row_key(line: str, path: Path) -> RowKey:
    _, extra = read_episode_line(line, f"{path}:1")
    try:
        return RowKey(**extra[ROW])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}:1: its episode names no row; was it written by another program?") from error


def _file_name(key: RowKey) -> str:
    """Legible, and one for each row: what a file name cannot hold is replaced, and then a checksum tells rows apart."""
    parts = (key.agent, key.context or "none", key.budget, f"{key.goals:02d}")
    safe = [re.sub(r"[^A-Za-z0-9_-]+", "-", part) for part in parts]
    name = ".".join(safe)
    return name if safe == list(parts) else f"{name}.{zlib.crc32(repr(parts).encode()):08x}"
