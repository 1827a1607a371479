"""A run's ``config.json``: written into the run folder before anything else, and read back to resume or evaluate.

Invariant: what is read equals what was written; a file that was damaged or edited into something else is refused in one
line that names the file and the key.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from pathlib import Path
from typing import Any, Literal

from mempo_env.errors import UserError
from mempo_env.versions import versions

from . import algorithm_settings
from .config import RunConfig

CONFIG = "config.json"


def config_text(config: RunConfig, algorithm_config: Any) -> str:
    """What ``config.json`` holds: the run, the algorithm's settings, versions."""
    parts = {"run": dataclasses.asdict(config), "algorithm": dataclasses.asdict(algorithm_config)}
    return json.dumps(parts | {"versions": versions()}, indent=2)


def write_config(run: Path, config: RunConfig, algorithm_config: Any) -> None:
    """Writes ``config.json`` into a run folder; an existing one is replaced in one move."""
    aside = run / f".{CONFIG}.partial"
    aside.write_text(config_text(config, algorithm_config), encoding="utf-8")
    os.replace(aside, run / CONFIG)


def read_config(run: Path) -> tuple[RunConfig, Any]:
    """The configuration a run folder was made with, and its algorithm's.

    Args:
        run: The run folder.

    Returns:
        Both configs.

    Raises:
        UserError: This is no run folder, or its ``config.json`` was damaged.
    """
    path = run / CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run} is no run folder: it has no {CONFIG}; give a folder that mempo train made") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    for part in ("run", "algorithm"):
        if not isinstance(data, dict) or not isinstance(data.get(part), dict):
            raise UserError(f"{path} has no part '{part}', so it was not written by mempo train, or damaged")
    config: RunConfig = config_from_dict(RunConfig, data["run"], f"{path}: run")
    return config, config_from_dict(algorithm_settings(config.algo)[1], data["algorithm"], f"{path}: algorithm")


def config_from_dict(cls: type[Any], data: dict[str, Any], where: str = "") -> Any:
    """Rebuilds a config dataclass from its JSON form; a key that is missing takes its default.

    Args:
        cls: The dataclass.
        data: What ``json.loads`` gave.
        where: Place for error messages.

    Returns:
        The instance.

    Raises:
        UserError: A key is unknown, or a value is of another type than its field.
    """
    where = where or cls.__name__
    if not isinstance(data, dict):
        raise UserError(f"{where} must be an object of settings, not {json.dumps(data)}")
    hints = typing.get_type_hints(cls)
    if unknown := sorted(set(data) - {field.name for field in dataclasses.fields(cls)}):
        raise UserError(f"{where} has the unknown key '{unknown[0]}'; was it written by another version?")
    values: dict[str, Any] = {}
    for name, value in data.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            values[name] = config_from_dict(hint, value, f"{where}.{name}")
            continue
        values[name] = _as_tuple(value)
        if not _fits(values[name], hint):
            raise UserError(f"{where}.{name} is {json.dumps(value)}, which no such setting can be")
    return cls(**values)


def _as_tuple(value: Any) -> Any:
    """Lists as tuples, at any depth: JSON knows no tuples, and configs hold no lists."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; what else configs of plug-ins may use is left to their own checks."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in parts
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple and isinstance(value, tuple):
        each = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        return len(each) == len(value) and all(map(_fits, value, each))
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    if hint in (str, bool, type(None)) or origin is tuple:
        return isinstance(value, origin or hint)
    return True
