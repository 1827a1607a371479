"""What benchmark scripts share: the command, versions and machine of a result, and how it is written and read.

Invariant: a result that is written says by which command, versions and machine it was measured, and holds no number
that is not finite.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from machine import describe

from mempo_env.errors import UserError
from mempo_env.versions import versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def parser_for(docstring: str | None) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring, with ``--out``."""
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write; by default the result is printed only")
    return parser


def command_line(argv: list[str] | None = None) -> str:
    """The command as it can be typed in the repository; the script's place is given from there.

    >>> command_line([str(ROOT / "benchmarks" / "startup.py"), "--rounds", "3"])
    'python benchmarks/startup.py --rounds 3'
    """
    script, *rest = sys.argv if argv is None else argv
    path = Path(script).resolve()
    named = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return f"python {shlex.join([named, *rest])}"


def facts() -> dict[str, Any]:
    """Command, machine and versions; call it before measuring, so that the load is what others make."""
    return {"command": command_line(), "machine": describe(), "versions": versions()}


def write(result: dict[str, Any], out: Path | None) -> None:
    """Adds the load at the end, prints a result, and writes it where asked.

    Args:
        result: With what ``facts`` gave in it.
        out: File to write; None: none.

    Raises:
        ValueError: It says not how it was measured, or holds a number that is not finite.
    """
    if missing := [name for name in ("command", "machine", "versions") if name not in result]:
        raise ValueError(f"a result must hold {missing[0]}: put what facts() gives into it")
    result["machine"] |= {"load_average_after": [round(value, 2) for value in os.getloadavg()]}
    text = as_text(result)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def as_text(result: Any) -> str:
    """JSON with a list of numbers, or of short names, on one line.

    >>> as_text({"a": [1, 2], "b": [{"c": "x y"}]}).splitlines()
    ['{', '  "a": [1, 2],', '  "b": [', '    {', '      "c": "x y"', '    }', '  ]', '}']
    """
    text = json.dumps(result, indent=2, allow_nan=False)
    plain = re.compile(r"\[\n\s+((?:-?[\d.e+-]+|\"\w+\")(?:,\n\s+(?:-?[\d.e+-]+|\"\w+\"))*)\n\s+\]")
    return plain.sub(lambda found: "[" + re.sub(r",\n\s+", ", ", found[1]) + "]", text) + "\n"


def read(path: Path) -> dict[str, Any]:
    """A result.

    Raises:
        UserError: The file is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); measure it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object; measure it again")
    return found
