"""The command line: ``mempo train | eval | compare | view | play | new-env | check-env | reproduce | env | ..``.

Invariants:
    * this file imports nothing heavy, so that ``mempo --help`` answers at once; a command's modules load when it runs;
    * a ``UserError`` is one line on standard error and exit code 2; Ctrl-C is one line and exit code 130; any other
      exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from mempo_env.errors import UserError, unknown_name

COMMANDS = {
    "train": "Train a policy: warm start, then --algo mempo, grpo, ppo or your own; or resume.",
    "eval": "Measure runs, models, chat servers or the expert: goals, contexts, budgets in one table.",
    "compare": "Put runs or evaluations side by side, with differences over the same tasks.",
    "view": "Write the episodes of a run as one HTML file, to be stepped through in a browser.",
    "play": "Play an episode yourself, in the terminal.",
    "new-env": "Write the skeleton of an environment of your own: package, expert, test.",
    "check-env": "Check an environment, yours or ours, and its scripted expert.",
    "serve-search": "Serve a corpus to many environments over HTTP, in the protocol of Search-R1.",
    "reproduce": "Run a cell of the study of the memory reward again, beside the kept result.",
    "env": "Print versions and machine, for bug reports.",
}
EXAMPLES = (
    "mempo train --preset tiny --algo mempo --out runs/first",
    "mempo train --resume runs/first --steps 80",
    "mempo eval runs/first --goals 2 4 6 8 10",
    "mempo compare runs/first runs/second",
    "mempo view runs/first --open",
    "mempo play --goals 2",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command.

    Args:
        argv: Arguments after ``mempo``; None takes the process's.

    Raises:
        SystemExit: With code 2 after an error in the input, 130 after Ctrl-C.
    """
    # By default torch's threads spin 300,000 times while they wait; where another program has their core, small matrix
    # products become up to fifty times slower. With 2,000 an imitation step of `tiny` on two idle cores keeps its speed
    # and gets its share beside busy programs (figures in docs/demo.md). Read when torch is loaded, so set here.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(arguments)
        sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"mempo: error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"\nmempo: {stop or 'interrupted'}\n")
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader, such as `head`, has had enough. What is still in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return
    if arguments[0] == "--version":
        from mempo_env.versions import versions

        sys.stdout.write(versions()["mempo-env"] + "\n")
        return
    command = arguments[0]
    if command not in COMMANDS:
        raise unknown_name("command", command, COMMANDS, "mempo --help says what they do.")
    importlib.import_module(f"mempo_env.cli.{command.replace('-', '_')}").run(arguments[1:])


def usage() -> str:
    """What ``mempo --help`` prints."""
    width = max(map(len, COMMANDS)) + 1
    lines = ["usage: mempo COMMAND [flags]", "", "Language agents that manage their own memory.", "", "commands:"]
    lines += [f"  {name:{width}} {purpose}" for name, purpose in COMMANDS.items()]
    lines += ["", "examples:", *(f"  {example}" for example in EXAMPLES)]
    lines += ["", "mempo COMMAND --help lists a command's flags; mempo --version prints the version."]
    return "\n".join(lines) + "\n"
