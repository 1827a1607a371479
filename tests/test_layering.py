"""Holds the shape of the code: arrows point down, names are written one way, and light commands stay light.

The rules are functions from source text to a list of complaints, so that each is also shown to find a planted breach.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("contract", "envs", "agents", "algos", "cli")
"""From the ground up; the contract is ``mempo_env/`` without ``mempo_env/cli/``."""
HEAVY = ("torch", "transformers", "peft", "accelerate", "safetensors", "tensorboard", "matplotlib", "gguf")
MOST_LINES = 500
LEAST_DOCSTRING = 30


@dataclass(frozen=True)
class Source:
    """One file: its path in the repository, its installed name, its text."""

    path: str
    text: str

    @property
    def module(self) -> str:
        """Installed name; a package keeps its ``__init__``, so that relative imports count alike."""
        parts = Path(self.path).with_suffix("").parts
        return ".".join(parts if parts[0] == "mempo_env" else ("mempo_env", *parts))

    @property
    def layer(self) -> str:
        """Which layer the file belongs to."""
        return layer_of(self.module)


@dataclass(frozen=True)
class Import:
    """One imported module, by absolute name, and how it was written."""

    module: str
    relative: bool
    line: int
    top_level: bool


def layer_of(module: str) -> str:
    """Layer of a module of ours, by its installed name."""
    part = module.split(".")[1] if "." in module else ""
    return part if part in LAYERS else "contract"


def imports_of(source: Source) -> Iterator[Import]:
    """All imports of a file, also those inside functions and under ``TYPE_CHECKING``."""
    tree = ast.parse(source.text, source.path)
    in_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        top_level = id(node) not in in_functions
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, False, node.lineno, top_level)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*source.module.split(".")[: -node.level], *([base] if base else [])])
            # What `from .. import agents` and `from mempo_env import envs` import are modules.
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "mempo_env" else [base]
            for name in names:
                yield Import(name, node.level > 0, node.lineno, top_level)


def arrow_complaints(source: Source) -> list[str]:
    """Imports that point up, and imports of ours that are not written as the import rule says.

    The command line may name the folders either way: it lies inside ``mempo_env/``, where a relative name leads to the
    installed folder but not to the one in the repository.
    """
    complaints = []
    for found in imports_of(source):
        if found.module.partition(".")[0] != "mempo_env":
            if found.module.partition(".")[0] in LAYERS:
                complaints.append(f"{source.path}:{found.line}: '{found.module}' is not an installed name")
            continue
        target, where = layer_of(found.module), f"{source.path}:{found.line}: {source.layer} imports {found.module}"
        if LAYERS.index(target) > LAYERS.index(source.layer):
            complaints.append(f"{where}, which is above it")
        elif target == "contract" and source.layer != "contract" and found.relative:
            complaints.append(f"{where} relatively; the contract goes by its absolute name")
        elif target != "contract" and source.layer != "cli" and not found.relative:
            complaints.append(f"{where} absolutely; a sibling folder goes relatively")
    return complaints


def heavy_complaints(source: Source) -> list[str]:
    """Heavy imports where there may be none: anywhere below agents/, and outside of functions in the command line."""
    if source.layer not in ("contract", "envs", "cli"):
        return []
    return [
        f"{source.path}:{found.line}: {source.layer} imports {found.module}"
        for found in imports_of(source)
        if found.module.partition(".")[0] in HEAVY and (source.layer != "cli" or found.top_level)
    ]


def file_complaints(source: Source) -> list[str]:
    """Files that are too long or do not say what they are for."""
    lines, docstring = source.text.count("\n"), ast.get_docstring(ast.parse(source.text)) or ""
    complaints = [f"{source.path}: {lines} lines; split it"] if lines >= MOST_LINES else []
    if len(docstring) < LEAST_DOCSTRING:
        complaints.append(f"{source.path}: the module docstring must say what the file is for, not {docstring!r}")
    return complaints


def defines_config(source: Source) -> bool:
    """Whether a file defines a dataclass of settings."""
    return any(
        isinstance(node, ast.ClassDef)
        and node.name.endswith(("Config", "Settings", "Preset"))
        and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        for node in ast.walk(ast.parse(source.text))
    )


def heavy_after(code: str) -> list[str]:
    """Runs code in a fresh interpreter; returns which heavy modules it loaded."""
    report = f"\nimport sys\nprint('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1].split()[1:]


FILES = [
    Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    for folder in ("mempo_env", "envs", "agents", "algos")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def test_the_files_of_all_layers_were_read() -> None:
    assert {source.layer for source in FILES} == set(LAYERS)


@pytest.mark.parametrize("rule", [arrow_complaints, heavy_complaints, file_complaints])
def test_the_sources_keep_the_rule(rule: Callable[[Source], list[str]]) -> None:
    assert [complaint for source in FILES for complaint in rule(source)] == []


@pytest.mark.parametrize(
    ("path", "line", "said"),
    [
        ("mempo_env/records.py", "from .envs.multi_goal import MultiGoalEnv", "above it"),
        ("mempo_env/records.py", "def f():\n    from mempo_env.cli import main", "above it"),
        ("mempo_env/records.py", "from mempo_env import agents", "above it"),
        ("envs/multi_goal.py", "from ..agents.policy import LoraPolicy", "above it"),
        ("agents/deep/policy.py", "from ...algos import base", "above it"),
        ("agents/__init__.py", "from ..algos.base import Algorithm", "above it"),
        ("agents/policy.py", "from ..records import Turn", "absolute name"),
        ("agents/policy.py", "from .. import records", "absolute name"),
        ("mempo_env/cli/__init__.py", "from ..errors import UserError", "absolute name"),
        ("algos/grpo.py", "from mempo_env.agents.policy import LoraPolicy", "goes relatively"),
        ("algos/grpo.py", "import mempo_env.algos.base", "goes relatively"),
        ("algos/grpo.py", "from agents.policy import LoraPolicy", "not an installed name"),
    ],
)
def test_a_planted_arrow_is_found(path: str, line: str, said: str) -> None:
    complaints = arrow_complaints(Source(path, line))
    assert len(complaints) == 1
    assert said in complaints[0]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("mempo_env/records.py", "from .actions import Action"),
        ("mempo_env/__init__.py", "from .actions import Action"),
        ("envs/multi_goal.py", "from mempo_env.records import Turn\nfrom .worlds import World"),
        ("agents/deep/policy.py", "from ...envs import multi_goal\nfrom ..base import Agent\nimport torch"),
        ("mempo_env/cli/train.py", "from mempo_env.errors import UserError\nfrom ..algos.base import Algorithm"),
        ("mempo_env/cli/train.py", "from mempo_env.algos.base import Algorithm\nfrom mempo_env.cli import main"),
    ],
)
def test_a_proper_import_is_let_pass(path: str, line: str) -> None:
    assert arrow_complaints(Source(path, line)) + heavy_complaints(Source(path, line)) == []


@pytest.mark.parametrize(
    ("path", "line", "count"),
    [
        ("mempo_env/env.py", "def f():\n    import torch", 1),
        ("envs/worlds.py", "from torch.utils import data", 1),
        ("mempo_env/cli/train.py", "import torch", 1),
        ("mempo_env/cli/train.py", "def f():\n    import torch", 0),
        ("algos/grpo.py", "import torch", 0),
    ],
)
def test_a_planted_heavy_import_is_found(path: str, line: str, count: int) -> None:
    assert len(heavy_complaints(Source(path, line))) == count


def test_a_planted_bad_file_is_found() -> None:
    assert file_complaints(Source("envs/a.py", '"""x."""\n')) != []
    assert file_complaints(Source("envs/a.py", f'"""{"Says a lot. " * 5}"""\n' + "\n" * MOST_LINES)) != []
    assert file_complaints(Source("envs/a.py", f'"""{"Says a lot. " * 5}"""\n')) == []


@pytest.mark.parametrize(
    "code",
    [
        "import mempo_env",
        "import mempo_env.plugins, mempo_env.env",
        "import gymnasium, mempo_env; gymnasium.make('MemPO-MultiGoal-v0', goals=1).reset(seed=0)",
    ],
)
def test_the_environment_loads_nothing_heavy(code: str) -> None:
    assert heavy_after(code) == []


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from mempo_env.cli import main
sys.argv = ["mempo", "--help"]
try:
    status = main()
except SystemExit as stop:
    status = stop.code
assert not status, status
"""
    assert heavy_after(code) == []


def test_modules_with_settings_load_no_torch() -> None:
    names = [source.module.removesuffix(".__init__") for source in FILES if defines_config(source)]
    assert names, "no dataclass of settings was found: is the rule for their names still right?"
    loaded = {name: heavy_after(f"import {name}") for name in names}
    assert {name: heavy for name, heavy in loaded.items() if heavy} == {}


def test_a_heavy_module_would_be_noticed() -> None:
    assert heavy_after("import sys; sys.modules['torch'] = sys") == ["torch"]
