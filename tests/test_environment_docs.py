"""The transcripts in docs/environments.md are what the code before them prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "environments.md"
SHOWN = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


def test_transcripts_are_what_the_code_prints() -> None:
    names: dict[str, object] = {}
    compared = 0
    for code, text in SHOWN.findall(DOCUMENT.read_text(encoding="utf-8")):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        if text:
            # Editors take white space at the end of a line away.
            assert [line.rstrip() for line in printed.getvalue().splitlines()] == text.splitlines()
            compared += 1
    assert compared == 2
