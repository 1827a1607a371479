"""``mempo view RUN``: writes stored episodes as one HTML file, to be looked at turn by turn.

Invariants:
    * needs no torch and no network; the file needs neither a server nor anything beside it;
    * only a file that this command wrote before is replaced.
"""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mempo_env.cli.flags import parse_flags
from mempo_env.errors import UserError


@dataclass(frozen=True)
class ViewFlags:
    """Flags of ``mempo view``.

    Attributes:
        run: Run folder, folder of an evaluation, or a file of episodes.
        out: File to write; by default view.html in the folder, or beside the file.
        limit: Episodes of each evaluation; 0: all.
        open: Show the file in the browser.
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    out: str = ""
    limit: int = 0
    open: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise UserError(f"limit={self.limit} must be at least 0")


def run(argv: Sequence[str]) -> None:
    """Writes the file and says where it is.

    Args:
        argv: Flags.

    Raises:
        UserError: There are no episodes, or the file cannot be written.
    """
    flags = parse_flags(
        ViewFlags, argv, command="mempo view", description="Write episodes as one HTML file, to be stepped through."
    )
    from rich.console import Console

    from mempo_env.agents.viewer.page import write_page
    from mempo_env.agents.viewer.sources import describe, find_sources

    place = Path(flags.run).expanduser()
    sources = find_sources(place)
    out = Path(flags.out).expanduser() if flags.out else _default_out(place)
    title = sources[0].name if place.is_file() else place.resolve().name
    episodes = write_page(out, title, describe(place), sources, flags.limit)
    size = out.stat().st_size / 1e6
    many = "1 episode" if episodes == 1 else f"{episodes:,} episodes"
    Console().print(f"{many}, {size:.1f} MB: {out}", markup=False, highlight=False, soft_wrap=True)
    if flags.open and not webbrowser.open(out.resolve().as_uri()):
        raise UserError(f"no browser was found for {out}; open it yourself")


def _default_out(place: Path) -> Path:
    """``view.html`` in a folder, ``after.html`` beside ``after.episodes.jsonl.gz``."""
    return place / "view.html" if place.is_dir() else place.with_name(f"{place.name.split('.')[0]}.html")
