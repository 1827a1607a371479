"""``mempo new-env``: the skeleton of an environment of one's own, a package that works as it is written.

Invariants:
    * nothing that exists is changed;
    * what is written passes its own tests, the conformance kit included (``tests/cli/test_new_env.py``).
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import tyro

from mempo_env.cli.flags import parse_flags
from mempo_env.errors import UserError

FILES = {
    "pyproject.toml": "pyproject.toml.tmpl",
    "README.md": "README.md.tmpl",
    "src/{package}/__init__.py": "init.py.tmpl",
    "src/{package}/env.py": "env.py.tmpl",
    "src/{package}/expert.py": "expert.py.tmpl",
    "tests/test_{package}.py": "test.py.tmpl",
}
"""What is written, and the template beside this file that it is made from."""
_TAKEN = ("mempo_env", "src", "test", "tests")


@dataclass(frozen=True)
class NewEnvFlags:
    """Flags of ``mempo new-env``.

    Attributes:
        name: Name of the package, and so of its folder: lower-case letters, digits and ``_``.
        out: Folder to write the package's folder into.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    out: str = "."

    def __post_init__(self) -> None:
        check_name(self.name)


def run(argv: Sequence[str]) -> None:
    """Writes the skeleton and says what to do with it.

    Args:
        argv: Flags.

    Raises:
        UserError: The name cannot be used, or the folder exists or cannot be written.
    """
    flags = parse_flags(
        NewEnvFlags,
        argv,
        command="mempo new-env",
        description="Write the skeleton of an environment of your own: a package with its expert and its test.",
    )
    folder = write(flags.name, Path(flags.out))
    env_id = f"{flags.name}:{camel_case(flags.name)}-v0"
    sys.stdout.write(
        f"{folder}: an environment that works as it is, to be changed. From there:\n"
        f"  pip install -e '.[test]' && pytest\n"
        f"  mempo play --env {env_id}\n"
        f"  mempo train --env {env_id} --algo mempo --out runs/first\n"
    )


def check_name(name: str) -> None:
    """Refuses what cannot name a package of one's own.

    Args:
        name: The name.

    Raises:
        UserError: It is malformed, reserved, or there is such a module.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        near = re.sub(r"\W+", "_", name.strip().lower(), flags=re.ASCII).strip("_")
        usable = re.fullmatch(r"[a-z][a-z0-9_]*", near) and not keyword.iskeyword(near)
        guess = f"; write {near}" if usable else ""
        raise UserError(f"'{name}' cannot name a package: use lower-case letters, digits and _, a letter first{guess}")
    if name in _TAKEN or name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise UserError(f"there is a module called '{name}' already, which the package would hide; choose another name")


def camel_case(name: str) -> str:
    """The name as classes have it.

    >>> camel_case("night_market2")
    'NightMarket2'
    """
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def write(name: str, out: Path) -> Path:
    """Writes the package.

    Args:
        name: Its name, see ``check_name``.
        out: Folder to write into; it is made if there is none.

    Returns:
        The package's folder, ``out/name``.

    Raises:
        UserError: The folder exists, or cannot be written.
    """
    from mempo_env.versions import versions

    title = camel_case(name)
    words = {
        "package": name,
        "env_id": f"{title}-v0",
        "env_class": f"{title}Env",
        "expert_class": f"{title}Expert",
        "version": versions()["mempo-env"],
    }
    templates = files(__name__)
    texts = {
        path.format(package=name): Template((templates / template).read_text(encoding="utf-8")).substitute(words)
        for path, template in FILES.items()
    }
    folder = out / name
    try:
        folder.mkdir(parents=True)
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except FileExistsError:
        raise UserError(f"{folder} exists; choose another name or --out") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}; choose another --out") from error
    return folder
