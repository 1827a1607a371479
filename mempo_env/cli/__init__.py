"""The command line: ``mempo train | eval | play | env``.

Invariant: this file imports nothing heavy, so that ``mempo --help`` answers at once; a command's modules load when it
runs. A ``UserError`` becomes one line and exit code 2.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from mempo_env.errors import UserError, unknown_name

COMMANDS = {
    "train": "Train a policy: warm start by imitation, then --algo mempo, grpo, or your own; or go on with a run.",
    "eval": "Measure a trained run or the scripted expert at several numbers of goals.",
    "play": "Play an episode yourself, in the terminal.",
    "env": "Print versions and machine, for bug reports.",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command.

    Args:
        argv: Arguments after ``mempo``; None takes the process's.

    Raises:
        SystemExit: With code 2 after an error in the input.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return
    if arguments[0] == "--version":
        from mempo_env.versions import versions

        sys.stdout.write(versions()["mempo-env"] + "\n")
        return
    command, rest = arguments[0], arguments[1:]
    try:
        if command not in COMMANDS:
            raise unknown_name("command", command, COMMANDS)
        importlib.import_module(f"mempo_env.cli.{command}").run(rest)
    except UserError as error:
        sys.stderr.write(f"mempo: error: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("mempo: interrupted\n")
        raise SystemExit(130) from None


def usage() -> str:
    """What ``mempo --help`` prints."""
    lines = ["usage: mempo COMMAND [flags]", "", "Language agents that manage their own memory.", "", "commands:"]
    lines += [f"  {name:6} {purpose}" for name, purpose in COMMANDS.items()]
    lines += ["", "mempo COMMAND --help lists a command's flags."]
    return "\n".join(lines) + "\n"
