"""docs/environments.md against the code: it prints the transcripts, and every argument is told with its default."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs.registration import load_env_creator

from mempo_env import ENVIRONMENTS
from mempo_env.envs.making import env_arguments

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "environments.md"
SHOWN = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


def test_transcripts_are_what_the_code_prints() -> None:
    names: dict[str, object] = {}
    compared = 0
    for code, text in SHOWN.findall(DOCUMENT.read_text(encoding="utf-8")):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        if text:
            # Editors take white space at the end of a line away.
            assert [line.rstrip() for line in printed.getvalue().splitlines()] == text.splitlines()
            compared += 1
    assert compared == 2


EVERY = "Arguments of every environment"


def tabled(section: str, text: str) -> dict[str, Any]:
    """The arguments of a section's tables, each with the default that is told of it."""
    found: dict[str, Any] = {}
    body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    for table in re.findall(r"^\| argument \| default \| meaning \|\n\|[-|]+\n((?:\|.*\n)+)", body, re.MULTILINE):
        for row in table.splitlines():
            names, defaults, meaning = (cell.strip() for cell in row.strip("|").split("|", 2))
            assert meaning, row
            told = [None if each == "none" else ast.literal_eval(each.strip("`")) for each in defaults.split(", ")]
            found |= dict(zip(re.findall(r"`(\w+)`", names), told, strict=True))
    return found


def defaults_of(env_id: str) -> dict[str, Any]:
    """What an environment takes where nothing is said, by the nearest of its classes that names the argument."""
    entry = gym.registry[env_id].entry_point
    cls: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            found |= {name: parameter.default for name, parameter in parameters.items()}
    return {name: found[name] for name in env_arguments(env_id) or ()}


def argument_complaints(env_id: str, text: str) -> list[str]:
    """Arguments that are missing from the tables, are told with another default, or do not exist."""
    told, taken = tabled(EVERY, text) | tabled(env_id, text), defaults_of(env_id)
    complaints = [f"{name} has no row" for name in taken if name not in told]
    complaints += [f"there is no argument {name}" for name in told if name not in taken]
    wrong = [name for name in told if name in taken and told[name] != taken[name]]
    return complaints + [f"{name} is {taken[name]!r} by default, not {told[name]!r}" for name in wrong]


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_every_argument_has_a_row_with_its_default(env_id: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert {"budget", "reward_hook", "render_mode"} <= set(defaults_of(env_id))
    assert argument_complaints(env_id, text) == []


def test_a_missing_argument_and_a_wrong_default_are_found() -> None:
    text, env_id = DOCUMENT.read_text(encoding="utf-8"), "MemPO-MultiGoal-v0"
    for right, planted, complaint in (
        (next(row for row in text.splitlines(keepends=True) if row.startswith("| `hops` ")), "", "hops has no row"),
        ("| `topk` | 1 |", "| `topk` | 3 |", "topk is 1 by default, not 3"),
        ("| `topk` | 1 |", "| `topk`, `top` | 1, 1 |", "there is no argument top"),
    ):
        assert argument_complaints(env_id, text.replace(right, planted)) == [complaint]


def test_every_tool_is_named() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for env_id in ENVIRONMENTS:
        for tool in gym.make(env_id).unwrapped.tools:  # type: ignore[attr-defined]
            reading = text.partition("\n## The two that read\n")[2].partition("\n## ")[0]
            own = text.partition(f"\n## {env_id}\n")[2].partition("\n## ")[0]
            assert f"`{tool.spec.name}`" in (own if env_id == "MemPO-MultiGoal-v0" else reading)
