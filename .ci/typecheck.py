"""Checks the types of the package as it is installed.

Run naively, mypy goes falsely green here: from inside the repository it takes `mempo_env` for the one folder of that
name and never sees `mempo_env.envs`, `mempo_env.agents` and `mempo_env.algos`, which lie beside it. So the package is
built and installed, not editable, into a temporary folder; mypy runs by package name from another folder outside the
repository; and the number of files it reports must be the number of source files there are.
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
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "mempo_env"]
        environment = os.environ | {"MYPYPATH": str(site)}
        run = subprocess.run(
            [*command, "--cache-dir", str(ROOT / ".mypy_cache"), "--no-color-output"],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    output = run.stdout + run.stderr
    for folder, installed in reversed(FOLDERS.items()):  # messages name the file to edit, not the installed copy
        output = re.sub(rf"^\S*?site/{installed}/", f"{folder}/", output, flags=re.MULTILINE)
    print(output, end="")
    count = re.search(r"no issues found in (\d+) source files|\(checked (\d+) source files", output)
    checked = int(count[1] or count[2]) if count else 0
    if checked != len(expected):
        print(f"error: mypy checked {checked} files, but there are {len(expected)}")
        return 1
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
