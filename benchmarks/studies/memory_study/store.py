"""Results that are kept: one gzipped JSON file per cell, in a folder that goes with the code.

A cell that is stored counts as done, so that another machine goes on where this one stopped. Weights are not stored.

Invariants:
    * a stored file is what the cell's own JSON file was, and what ``PARTS`` say of its run folder, and some episodes;
    * a stored cell is replaced only where it was made with other settings than the code has now; it is added to where
      it lacks one of ``PARTS`` and the same run's folder is at hand.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mempo_env.errors import UserError

from .cells import FOLLOWED, REPLICATED, STUDY, Cell, Scale, fingerprint

RESULTS = Path(__file__).resolve().parents[2] / "results" / "study"
"""Where results are kept in the repository."""
TEXTS = 1
"""Episodes per evaluation and number of goals whose text is kept."""
PARTS = {"failures": 1, "reading": 1, "given": 1}
"""What is read off a run folder when a cell is stored, why goals failed, last memories read by two policies and, of the
arms of the replication, right answers at any place; and the version of each. What has another version is read again
where the run folder is at hand. Version 1 is not written."""


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, gzipped where the name says so, aside and then renamed: the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).encode("utf-8")
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    os.replace(aside, path)


def read_json(path: Path) -> Any:
    """Reads what ``write_json`` wrote; None where there is no such file.

    Raises:
        UserError: The file is damaged.
    """
    if not path.exists():
        return None
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it, and the cell is run again") from error


def read_cell(out: Path, cell: Cell, scale: Scale = STUDY, stored: Path | None = None) -> dict[str, Any] | None:
    """A finished cell: from the study's folder, else from where results are kept.

    Args:
        out: Folder of the study.
        cell: Which cell.
        scale: How much.
        stored: Folder of kept results; None: only the study's own folder counts.

    Returns:
        What its JSON file holds; None where there is none, or one of other settings.
    """
    places = [out / "cells" / f"{cell.name}.json", *([stored / f"{cell.name}.json.gz"] if stored is not None else [])]
    for path in places:
        found: dict[str, Any] | None = read_json(path)
        if found is not None and found["fingerprint"] == fingerprint(cell, scale):
            return found
    return None


def found_weights(out: Path, warm: Cell, scale: Scale = STUDY) -> dict[str, Any] | None:
    """What is known of a warm start's weights in a study's folder; results that are kept come without weights.

    Args:
        out: Folder of the study.
        warm: The warm start.
        scale: How much.

    Returns:
        ``remade``: whether they were made again, and how that came out; None where they must be made (again).
    """
    if not (out / "runs" / warm.name / "base").exists():
        return None
    if read_cell(out, warm, scale) is not None:
        return {"remade": False}
    note: dict[str, Any] | None = read_json(remade_note(out, warm))
    return dict(note["warm_start"]) if note is not None and note["fingerprint"] == fingerprint(warm, scale) else None


def remade_note(out: Path, warm: Cell) -> Path:
    """Where it is said how a warm start that was made again came out."""
    return out / "remade" / f"{warm.name}.json"


def pack(cells: Iterable[Cell], out: Path, stored: Path, scale: Scale = STUDY) -> list[Path]:
    """Stores the cells that are done; what is stored already with the same settings stays.

    Args:
        cells: Which; ``tuned`` ones with their choice.
        out: Folder of the study.
        stored: Where to.
        scale: How much.

    Returns:
        The files that were written.
    """
    written = []
    for cell in cells:
        path, found = stored / f"{cell.name}.json.gz", read_cell(out, cell, scale)
        kept = read_cell(stored / "none", cell, scale, stored)
        if found is None or (kept is not None and any(kept.get(key) != found[key] for key in found)):
            continue  # nothing is here, or what is kept is another run's
        made = {name: _current(kept, name) or make(cell, out, found) for name, make in _MAKERS.items()}
        parts = {name: part for name, part in made.items() if part is not None}
        if kept is not None and all(parts.get(name) == kept.get(name) for name in PARTS):
            continue
        if later := {name: version for name, version in PARTS.items() if version > 1}:
            parts["part_versions"] = later
        texts = read_json(out / "texts" / f"{cell.name}.json.gz") or {}
        write_json(path, found | {"texts": {name: first_texts(some, TEXTS) for name, some in texts.items()}} | parts)
        written.append(path)
    return written


def _current(kept: Mapping[str, Any] | None, name: str) -> Any:
    """A part that is kept in the version that the code has; None otherwise."""
    version = (kept or {}).get("part_versions", {}).get(name, 1)
    return (kept or {}).get(name) if version == PARTS[name] else None


def _failures(cell: Cell, out: Path, found: Mapping[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    """Why goals failed, per evaluation and number of goals; an evaluation whose episodes are gone is left out."""
    from mempo_env.agents.episodes_io import load_episodes

    from .failures import failures

    folder = out / "runs" / cell.name / "eval"
    files = {name: folder / f"{name}.episodes.jsonl.gz" for name in found["evaluations"]}
    return {name: failures(load_episodes(path)) for name, path in files.items() if path.exists()}


def _reading(cell: Cell, out: Path, _: Mapping[str, Any]) -> dict[str, dict[str, list[float | None]]] | None:
    from .reading import cross_reading

    return cross_reading(cell, out)


def _given(cell: Cell, out: Path, _: Mapping[str, Any]) -> dict[str, dict[str, int]] | None:
    from mempo_env.agents.episodes_io import load_episodes

    from .failures import given_anywhere

    replicated = cell.kind == "tuned" and (cell.regime, cell.arm) in REPLICATED
    path = out / "runs" / cell.name / "eval" / "after.episodes.jsonl.gz"
    if not (replicated or (cell.regime, cell.arm) == FOLLOWED) or not path.exists():
        return None
    return given_anywhere(load_episodes(path))


_MAKERS: Mapping[str, Callable[[Cell, Path, Mapping[str, Any]], Any]] = {
    "failures": _failures,
    "reading": _reading,
    "given": _given,
}


def first_texts(episodes: Iterable[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """The first episodes of each number of goals."""
    seen: dict[int, int] = {}
    kept = []
    for episode in episodes:
        goals = len(episode["gold"])
        seen[goals] = seen.get(goals, 0) + 1
        if seen[goals] <= most:
            kept.append(episode)
    return kept


@contextmanager
def earlier_aside(cell: Cell, out: Path) -> Iterator[None]:
    """Sets aside what a cell found before, in ``earlier``, and puts it back if the new run fails.

    A new run that is stopped can go on; what it replaces stays aside until it has ended.
    """
    aside = out / "earlier" / cell.name
    places = {out / "cells" / f"{cell.name}.json": aside / "cell.json", out / "runs" / cell.name: aside / "run"}
    aside.mkdir(parents=True, exist_ok=True)
    for place, kept in places.items():
        if place.exists() and not kept.exists():
            place.rename(kept)
        _remove(place)
    try:
        yield
    except Exception:
        for place, kept in places.items():
            _remove(place)
            if kept.exists():
                kept.rename(place)
        aside.rmdir()
        raise


def _remove(place: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
