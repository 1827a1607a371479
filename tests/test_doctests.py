"""Runs the examples in the docstrings of the installed package, module by module.

The package is walked by its installed name: pytest's own collection would take each of the four folders for a package
of its own and fail on their relative imports.
"""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"mempo_env": "mempo_env", "envs": "mempo_env.envs", "agents": "mempo_env.agents", "algos": "mempo_env.algos"}
TRAIN_EXTRA = ("torch", "transformers", "peft", "accelerate", "safetensors", "tensorboard", "matplotlib")
LEAST_EXAMPLES = 20


def walk() -> list[str]:
    """Names of all installed modules; in an editable install three folders are not below ``mempo_env.__path__``."""
    names: set[str] = set()
    for package_name in FOLDERS.values():
        package = importlib.import_module(package_name)
        names.add(package_name)
        names.update(module.name for module in pkgutil.walk_packages(package.__path__, prefix=f"{package_name}."))
    return sorted(names)


def source_modules() -> set[str]:
    """Names that the files in the repository must be installed under."""
    names = set()
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            names.add(".".join([package, *(part for part in parts if part != "__init__")]))
    return names


MODULES = walk()


def test_the_walk_sees_every_source_file() -> None:
    assert set(MODULES) == source_modules()


def test_there_are_examples_to_run() -> None:
    sources = [path.read_text(encoding="utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert sum(len(re.findall(r"^\s*>>> ", source, re.MULTILINE)) for source in sources) >= LEAST_EXAMPLES


def failures(module: ModuleType) -> int:
    """Runs a module's examples; doctest prints those that fail."""
    return doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed


def test_a_planted_wrong_example_fails() -> None:
    assert failures(ModuleType("planted", ">>> 1 + 1\n3\n>>> 1 + 1\n2\n")) == 1


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith(".__main__")])
def test_examples(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        extra = (missing.name or "").partition(".")[0]
        if extra in TRAIN_EXTRA and importlib.util.find_spec(extra) is None:
            pytest.skip(f"needs '{extra}', which the extra 'train' brings")
        raise
    assert failures(module) == 0
