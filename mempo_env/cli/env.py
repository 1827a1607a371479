"""``mempo env``: versions and machine, for bug reports.

Invariant: works with the base dependencies alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mempo_env.errors import UserError


def run(argv: Sequence[str]) -> None:
    """Prints a table.

    Raises:
        UserError: An argument was given.
    """
    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write("usage: mempo env\n\nPrint versions and machine, for bug reports.\n")
        return
    if argv:
        raise UserError(f"mempo env takes no arguments, not {' '.join(argv)}")
    from rich.console import Console
    from rich.table import Table

    from mempo_env.versions import versions

    table = Table(title="mempo env", show_header=False)
    for name, version in versions().items():
        table.add_row(name, version)
    Console().print(table)
