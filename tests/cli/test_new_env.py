"""``mempo new-env``: what it writes works at once, as it is; what exists is left alone; names are checked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from mempo_env.cli.new_env import FILES

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "mempo_env" / "cli" / "new_env"
NAME, ENV = "night_market", "night_market:NightMarket-v0"
Mempo = Callable[..., Any]


@pytest.fixture
def package(mempo: Mempo, tmp_path: Path) -> Iterator[Path]:
    """The skeleton, as it was written."""
    result = mempo("new-env", NAME, "--out", tmp_path / "new")
    assert result.code == 0, result.err
    assert f"mempo train --env {ENV} --algo mempo" in result.out
    yield tmp_path / "new" / NAME
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]
    gym.registry.pop("NightMarket-v0", None)


def here(package: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs this interpreter in the package's folder, with its source on the import path and nothing installed."""
    path = os.pathsep.join([str(package / "src"), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=package, env=environment, capture_output=True, text=True, check=False
    )


def test_its_own_tests_pass_and_find_what_is_broken(package: Path) -> None:
    run = here(package, "pytest", "-q", "-p", "no:cacheprovider")
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\b8 passed", run.stdout), run.stdout
    source = package / "src" / NAME / "env.py"
    text = source.read_text()
    source.write_text(text.replace("rng.permutation(len(BOXES))", "np.random.permutation(len(BOXES))"))
    assert source.read_text() != text
    run = here(package, "pytest", "-q", "-p", "no:cacheprovider", "-k", "conforms")
    assert run.returncode == 1
    assert "Mend: draw from self.np_random" in run.stdout


def test_it_is_clean(package: Path) -> None:
    for command in (("ruff", "check", "."), ("ruff", "format", "--check", ".")):
        run = here(package, *command)
        assert run.returncode == 0, run.stdout + run.stderr


def test_it_trains(package: Path, mempo: Mempo, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(package / "src")
    run = package / "runs" / "first"
    result = mempo("train", "--env", ENV, "--algo", "mempo", "--out", run, "--steps", "2", *small)
    assert result.code == 0, result.err
    assert (run / "summary.json").exists()
    assert mempo("check-env", ENV).code == 0


def test_every_word_of_the_templates_was_filled_in(package: Path) -> None:
    written = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert written == {path.format(package=NAME) for path in FILES}
    for path in written:
        text = (package / path).read_text()
        assert "$" not in text, path
        assert "{package}" not in text, path
    project = tomllib.loads((package / "pyproject.toml").read_text())
    assert project["project"]["name"] == NAME
    assert project["project"]["dependencies"][0].startswith("mempo-env>=")


def test_every_template_is_used_and_is_package_data() -> None:
    there = {path.name for path in TEMPLATES.glob("*.tmpl")}
    assert there == set(FILES.values())
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "mempo_env.cli.new_env" in tools["packages"]
    assert tools["package-data"]["mempo_env.cli.new_env"] == ["*.tmpl"]


def test_nothing_is_overwritten(package: Path, mempo: Mempo) -> None:
    marked = package / "src" / NAME / "env.py"
    marked.write_text("mine")
    complaint = mempo("new-env", NAME, "--out", package.parent).complaint
    assert complaint == f"{package} exists; choose another name or --out"
    assert marked.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_one_line(mempo: Mempo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written: Not a directory" in mempo("new-env", NAME, "--out", tmp_path / "file").complaint
    assert mempo("new-env").complaint.startswith("mempo new-env needs NAME")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Night-Market", "a letter first; write night_market"),
        ("night market", "write night_market"),
        ("9lives", "a letter first"),
        ("../up", "a letter first; write up"),
        ("class", "'class' cannot name a package"),
        ("marché", "cannot name a package"),
        ("", "'' cannot name a package"),
        ("json", "a module called 'json'"),
        ("numpy", "a module called 'numpy'"),
        ("mempo_env", "a module called 'mempo_env'"),
        ("tests", "a module called 'tests'"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(mempo: Mempo, tmp_path: Path, name: str, says: str) -> None:
    complaint = mempo("new-env", name, "--out", tmp_path / "new").complaint
    assert says in complaint
    assert not (tmp_path / "new").exists()
