"""Writes the viewer's file: one HTML page that holds its style, its script and the episodes.

The episodes lie in blocks, each JSON, gzipped, in base64; the page unpacks the list at once and a block when one of its
episodes is looked at. So a file of thousands of episodes opens at once.

Invariants:
    * base64 has no character that means anything to HTML: what an episode holds cannot leave its block;
    * the page's content security policy allows this very style and script, by their hashes, and nothing else: no
      request, no markup made from strings (trusted types), no frame, no form;
    * the same episodes give the same file, to the byte; a file appears whole or not at all.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import os
import string
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from mempo_env.errors import UserError

from ..episodes_io import iterate_episodes
from .content import body, index_row
from .sources import Source

STYLES = ("base.css", "layout.css", "parts.css")
SCRIPTS = ("text.js", "data.js", "diff.js", "charts.js", "tokens.js", "list.js", "episode.js", "turn.js", "app.js")
MARK = "<!doctype html><!-- written by mempo view -->"
"""How a file of ours begins: only such a file is replaced."""
BLOCK_BYTES = 250_000
"""A block is closed once it holds so many characters of JSON: a few milliseconds to unpack."""


def write_page(out: Path, title: str, facts: dict[str, Any], sources: Sequence[Source], limit: int = 0) -> int:
    """Writes the page.

    Args:
        out: The file; one that ``mempo view`` wrote before is replaced.
        title: Name of the run.
        facts: What is known about it, for the head of the page.
        sources: Files of episodes.
        limit: Episodes of each source; 0: all.

    Returns:
        How many episodes it holds.

    Raises:
        UserError: There are no episodes, one cannot be read, or ``out`` cannot be written or is another's.
    """
    check_out(out)
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    rows: list[dict[str, Any]] = []
    try:
        with aside.open("w", encoding="ascii", newline="\n") as file:
            head, tail = _frame(title)
            file.write(head)
            for number, block in enumerate(_blocks(sources, limit, rows)):
                file.write(f'<script type="text/plain" id="block-{number}">{_packed(block)}</script>\n')
            if not rows:
                raise UserError(f"{sources[0].path} holds no episodes yet; wait until some were played")
            index = {"title": title, "facts": facts, "sources": [source.name for source in sources], "rows": rows}
            file.write(f'<script type="text/plain" id="index">{_packed(json.dumps(index))}</script>\n')
            file.write(tail)
        os.replace(aside, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}; choose another --out") from error
    finally:
        aside.unlink(missing_ok=True)
    return len(rows)


def check_out(out: Path) -> None:
    """Refuses to write over what is not ours.

    Raises:
        UserError: ``out`` is a folder, a file of another kind, or lies in no folder.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file in it, such as --out {out / 'view.html'}")
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {out.parent}; make it, or choose another --out")
    try:
        if out.exists():
            with out.open("rb") as file:
                if file.read(len(MARK)) != MARK.encode():
                    raise UserError(f"{out} exists and was not written by mempo view; choose another --out")
    except OSError as error:
        raise UserError(f"{out} cannot be read: {error.strerror or error}; choose another --out") from error


def _blocks(sources: Sequence[Source], limit: int, rows: list[dict[str, Any]]) -> Iterator[str]:
    """JSON arrays of episodes; adds each one's row, with its source ``s`` and the block ``b`` that holds it."""
    held: list[str] = []
    number = size = 0
    for s, source in enumerate(sources):
        for n, episode in enumerate(islice(iterate_episodes(source.path), limit or None)):
            held.append(json.dumps(body(episode), separators=(",", ":")))
            rows.append({"s": s, "n": n, "b": number, "i": len(held) - 1} | index_row(episode))
            size += len(held[-1])
            if size >= BLOCK_BYTES:
                yield f"[{','.join(held)}]"
                held, size, number = [], 0, number + 1
    if held:
        yield f"[{','.join(held)}]"


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode("ascii"), 9, mtime=0)).decode("ascii")


def _frame(title: str) -> tuple[str, str]:
    """The page before and after the blocks."""
    style, script = _joined(STYLES), _joined(SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    page = string.Template(_asset("page.html")).substitute(
        mark=MARK, policy=policy, title=html.escape(title).encode("ascii", "xmlcharrefreplace").decode(), style=style
    )
    head, _, tail = page.partition("<!-- blocks -->\n")
    return head, tail.replace("<!-- script -->", f'<script type="module">{script}</script>')


def _joined(names: Sequence[str]) -> str:
    # The hash is of what stands between the tags, to the byte.
    return "\n" + "\n".join(_asset(name) for name in names)


def _asset(name: str) -> str:
    # The file is ASCII, so that it reads the same whatever a server claims its encoding to be.
    text = (files(f"{__package__}.assets") / name).read_text(encoding="ascii")
    return text.replace("\r\n", "\n")  # as a checkout on Windows may have it; a browser would hash the other


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('ascii')).digest()).decode('ascii')}"
