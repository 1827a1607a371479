"""Checks the types of the package as it is installed, and of the benchmarks and the tests against it.

Run naively, mypy goes falsely green here: from inside the repository it takes `mempo_env` for the one folder of that
name and never sees `mempo_env.envs`, `mempo_env.agents` and `mempo_env.algos`, which lie beside it. So the package is
built and installed, not editable, into a temporary folder; mypy runs by package name from another folder outside the
repository; and the number of files it reports must be the number of source files there are. Benchmarks import one
another by bare name, from their own folders, so they are checked by name, too. The tests are checked in a copy, so that
neither `tests/mempo_env` nor the folder beside `tests` can stand for the package; each is a module of `tests`, under
which they import one another, and they import the benchmarks as these import one another.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"mempo_env": "mempo_env", "envs": "mempo_env/envs", "agents": "mempo_env/agents", "algos": "mempo_env/algos"}
"""Folder in the repository, and where it is installed."""
BENCHMARKS = (ROOT / "benchmarks", ROOT / "benchmarks" / "studies")
NOT_IMPORTED = {"conftest.py"}
"""Files of the benchmarks that have a name twice in the repository; nothing imports them."""
TESTS = "tests"
"""The folder in the repository, and in the copy that is checked."""


def sources() -> set[str]:
    """Installed paths of all source files."""
    return {
        f"{installed}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, installed in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }


def install(site: Path, build: Path) -> None:
    """Builds from a copy, so that no leftover of an earlier build is picked up and none is left, and installs it."""
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, build / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, build / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(site), str(build)], check=True, cwd=build)


def main() -> int:
    """Installs, checks and counts; returns the exit status."""
    expected = sources()
    with tempfile.TemporaryDirectory(prefix="mempo-types-") as name:
        site, build, elsewhere = (Path(name, part) for part in ("site", "build", "elsewhere"))
        elsewhere.mkdir()
        install(site, build)
        seen = {path.relative_to(site).as_posix() for path in site.rglob("*.py")}
        if seen != expected:
            print(f"error: not installed: {sorted(expected - seen)}; installed beyond: {sorted(seen - expected)}")
            print("       name every folder with code under [tool.setuptools] packages in pyproject.toml")
            return 1
        package = check(["-p", "mempo_env"], [site], elsewhere, len(expected))
        benchmarks = check_benchmarks(site, elsewhere)
        return check_tests(site, Path(name, "copy"), elsewhere) or benchmarks or package


def check_benchmarks(site: Path, elsewhere: Path) -> int:
    """Every script of the benchmarks, and the packages beside them, against the installed package."""
    scripts = [path for folder in BENCHMARKS for path in folder.glob("*.py") if path.name not in NOT_IMPORTED]
    packages = [path.parent for folder in BENCHMARKS for path in folder.glob("*/__init__.py")]
    names = [part for path in scripts for part in ("-m", path.stem)]
    names += [part for path in packages for part in ("-p", path.name)]
    count = len(scripts) + sum(len(list(path.rglob("*.py"))) for path in packages)
    return check(names, [site, *BENCHMARKS], elsewhere, count)


def check_tests(site: Path, copy: Path, elsewhere: Path) -> int:
    """Every file of the tests, against the installed package and the benchmarks."""
    shutil.copytree(ROOT / TESTS, copy / TESTS, ignore=shutil.ignore_patterns("__pycache__"))
    count = len(list((ROOT / TESTS).rglob("*.py")))
    return check(["--explicit-package-bases", str(copy / TESTS)], [site, copy, *BENCHMARKS], elsewhere, count)


def check(what: list[str], places: list[Path], folder: Path, expected: int) -> int:
    """Runs mypy in a folder; returns the exit status, 1 too where it checked another number of files."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *what]
    run = subprocess.run(
        [*command, "--cache-dir", str(ROOT / ".mypy_cache"), "--no-color-output"],
        cwd=folder,
        env=os.environ | {"MYPYPATH": os.pathsep.join(map(str, places))},
        capture_output=True,
        text=True,
        check=False,
    )
    output = run.stdout + run.stderr
    for source, installed in reversed(FOLDERS.items()):  # messages name the file to edit, not the installed copy
        output = re.sub(rf"^\S*?site/{installed}/", f"{source}/", output, flags=re.MULTILINE)
    output = re.sub(rf"^\S*?copy/{TESTS}/", f"{TESTS}/", output, flags=re.MULTILINE)
    print(output, end="")
    count = re.search(r"no issues found in (\d+) source files|\(checked (\d+) source files", output)
    checked = int(count[1] or count[2]) if count else 0
    if checked != expected:
        print(f"error: mypy checked {checked} files, but there are {expected}")
        return 1
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
