"""The documents say what is true: their Python runs, their commands and flags exist, their links lead somewhere.

Each check is a function from a document's text to a list of complaints, so that each is also shown to find a planted
error. A Python block that cannot run here (it needs a download, hours, a file of the reader's) is marked on the line
before it with ``<!-- not run: the reason -->``; the blocks of one document run in order and share their names.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG_HEADINGS = ["Breaking Changes", "New Features", "Bug Fixes", "Deprecations", "Others", "Documentation"]
SHELLS = ("bash", "sh", "shell", "console")
WRITTEN_BY_HAND = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("benchmarks/**/*.md")),
]
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in WRITTEN_BY_HAND}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line its text begins on, and why it is not run, if it is not."""

    language: str
    text: str
    line: int
    not_run: str | None


def blocks(document: str) -> list[Block]:
    """All fenced blocks of a document.

    Raises:
        ValueError: A fence is never closed, or a block is exempt without a reason.
    """
    found, lines, at = [], document.splitlines(), 0
    while at < len(lines):
        fence = re.match(r"\s*(`{3,}|~{3,})\s*(\w*)", lines[at])
        if not fence:
            at += 1
            continue
        end = next((i for i in range(at + 1, len(lines)) if lines[i].strip() == fence[1]), None)
        if end is None:
            raise ValueError(f"the block that begins on line {at + 1} is never closed")
        before = next((line for line in reversed(lines[:at]) if line.strip()), "")
        exempt = re.fullmatch(r"\s*<!--\s*not run:(.*)-->\s*", before)
        if exempt and not exempt[1].strip():
            raise ValueError(f"line {at}: say why the block is not run")
        indent = len(lines[at]) - len(lines[at].lstrip())
        text = "\n".join(line[indent:] for line in lines[at + 1 : end])
        found.append(Block(fence[2].lower(), text, at + 2, exempt[1].strip() if exempt else None))
        at = end + 1
    return found


def prose(document: str) -> str:
    """A document without its fenced blocks and HTML comments, with as many lines."""
    lines, inside = [], ""
    for line in document.splitlines():
        fence = re.match(r"\s*(`{3,}|~{3,})", line)
        if inside or fence:
            lines.append("")
            if not inside and fence:
                inside = fence[1]
            elif line.strip() == inside:
                inside = ""
        else:
            lines.append(line)
    return re.sub(r"<!--.*?-->", lambda comment: "\n" * comment[0].count("\n"), "\n".join(lines), flags=re.DOTALL)


# Python --------------------------------------------------------------------------------------------------------------


def run_python(document: str, name: str) -> int:
    """Runs a document's Python blocks in order; returns how many. Errors point to the document's own lines."""
    names: dict[str, object] = {"__name__": "__main__"}
    runnable = [block for block in blocks(document) if block.language in ("python", "py") and block.not_run is None]
    for block in runnable:
        exec(compile("\n" * (block.line - 1) + block.text, name, "exec"), names)
    return len(runnable)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_python(DOCUMENTS[name], name)


def test_the_readme_has_python_to_run_and_commands_to_check() -> None:
    readme = DOCUMENTS["README.md"]
    assert any(block.language == "python" and block.not_run is None for block in blocks(readme))
    assert any(command.arguments for command in commands(readme))


def test_a_planted_python_error_is_found_on_its_line() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_python("Text.\n\n```python\nx = 0\n```\n\n```python\n\n1 / x\n```\n", "planted.md")
    assert caught.traceback[-1].lineno + 1 == 9
    assert run_python("<!-- not run: needs a GPU -->\n```python\n1 / 0\n```\n```text\n1 / 0\n```\n", "planted.md") == 0
    with pytest.raises(ValueError, match="say why"):
        run_python("<!-- not run: -->\n```python\n1 / 0\n```\n", "planted.md")
    with pytest.raises(ValueError, match="never closed"):
        run_python("```python\n1 / 0\n", "planted.md")


# Commands ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A ``mempo`` call in a document, as its arguments."""

    arguments: tuple[str, ...]

    def flags(self) -> list[str]:
        """Its long flags, without values, as the help writes them."""
        return [
            argument.partition("=")[0].replace("_", "-") for argument in self.arguments if re.match(r"--\w", argument)
        ]

    def help(self) -> tuple[str, ...]:
        """The call that prints the help it is checked against; algorithm and preset decide which flags there are."""
        kept: list[str] = []
        for at, argument in enumerate(self.arguments):
            if argument.startswith(("--algo=", "--preset=")) or argument in ("--algo", "--preset"):
                kept += [argument] if "=" in argument else self.arguments[at : at + 2]
        words = [argument for argument in self.arguments[:1] if not argument.startswith("-")]
        return (*words, *kept, "--help")


def commands(document: str) -> Iterator[Command]:
    """The ``mempo`` calls in shell blocks and in inline code."""
    shell = [block.text.replace("\\\n", " ") for block in blocks(document) if block.language in SHELLS]
    lines = [line for text in shell for line in text.splitlines()] + re.findall(r"`([^`\n]+)`", prose(document))
    for line in lines:
        call = re.match(r"\s*(?:\$\s+)?(?:\w+=\S*\s+)*(?:\S*/)?mempo((?:\s.*)?)$", line)
        if call:
            words = shlex.split(re.split(r"\s[|>&;]", call[1])[0], comments=True)
            yield Command(tuple(words))


@functools.cache
def help_of(arguments: tuple[str, ...]) -> tuple[int, str]:
    """Exit status and text of a call of the command line."""
    run = subprocess.run(
        [sys.executable, "-c", "import sys; from mempo_env.cli import main; sys.exit(main())", *arguments],
        env=os.environ | {"COLUMNS": "200"},  # a narrow help may break a long flag in two
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


def command_complaints(document: str) -> list[str]:
    """Calls of commands, algorithms, presets or flags that do not exist."""
    complaints = []
    for command in commands(document):
        status, text = help_of(command.help())
        call = " ".join(("mempo", *command.arguments))
        if status != 0:
            complaints.append(f"{call}: 'mempo {' '.join(command.help())}' fails: {text.strip()[-300:]}")
            continue
        listed = set(re.findall(r"(?<![\w-])--[\w.-]*\w", text)) | {"--help", "--version"}
        complaints += [f"{call}: there is no flag {flag}" for flag in command.flags() if flag not in listed]
    return complaints


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_and_flags_exist(name: str) -> None:
    assert command_complaints(DOCUMENTS[name]) == []


def test_planted_commands_are_read_and_refused() -> None:
    document = (
        "Call `mempo env` or `mempo fly --high`, not `mempo-env`.\n\n```bash\n# mempo comment\n"
        "$ mempo train --algo grpo \\\n    --preset=tiny --no_such_flag 3  # why\n.venv/bin/mempo env > out.txt\n"
        "CUDA_VISIBLE_DEVICES= mempo train --algo no_such_algo | tail\nls mempo\n```\n```python\nmempo = 1\n```\n"
    )
    found = [command.arguments for command in commands(document)]
    train = ("train", "--algo", "grpo", "--preset=tiny", "--no_such_flag", "3")
    assert found == [train, ("env",), ("train", "--algo", "no_such_algo"), ("env",), ("fly", "--high")]
    assert Command(train).help() == ("train", "--algo", "grpo", "--preset=tiny", "--help")
    complaints = command_complaints(document)
    assert len(complaints) == 3
    assert "no flag --no-such-flag" in complaints[0]
    assert "no_such_algo" in complaints[1]
    assert "mempo fly" in complaints[2]


def make_complaints(document: str) -> list[str]:
    """Calls of ``make`` targets that do not exist."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shell = "\n".join(block.text for block in blocks(document) if block.language in SHELLS)
    calls = re.findall(r"^(?:\$ )?make +(\w+)", shell, re.MULTILINE) + re.findall(r"`make +(\w+)", prose(document))
    return [f"make {target}: there is no such target" for target in calls if target not in targets]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_exist(name: str) -> None:
    assert make_complaints(DOCUMENTS[name]) == []
    assert len(make_complaints("`make test`, `make tset`\n\n```sh\nmake demoo ALGO=grpo\n```\n")) == 2


# Links ---------------------------------------------------------------------------------------------------------------


def anchors(document: str) -> set[str]:
    """The anchors GitHub gives a document's headings, and those written in HTML."""
    found: set[str] = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", document))
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", prose(document), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        count = sum(1 for other in found if other == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", other))
        found.add(f"{slug}-{count}" if count else slug)
    return found


def link_complaints(document: str, path: Path) -> list[str]:
    """Relative links of a document at ``path`` that lead nowhere, or out of the repository."""
    text = re.sub(r"`[^`\n]*`", "", prose(document))
    targets = re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", text)
    targets += re.findall(r"(?:src|href)=\"([^\"]+)\"", text) + re.findall(r"^\[[^\]^]+\]:\s+(\S+)", text, re.MULTILINE)
    complaints = []
    for target in targets:
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        if not place.is_relative_to(ROOT) or (file and not place.exists()):
            complaints.append(f"{target}: there is no such file in the repository")
        elif anchor and place.suffix == ".md":
            there = place.read_text(encoding="utf-8") if file else document
            if anchor not in anchors(there):
                complaints.append(f"{target}: there is no such heading")
    return complaints


@pytest.mark.parametrize("name", DOCUMENTS)
def test_relative_links_resolve(name: str) -> None:
    assert link_complaints(DOCUMENTS[name], ROOT / name) == []


@pytest.mark.parametrize(
    "link",
    ["[a](no_such.md)", "![a](no.png)", '<img src="no.png">', "[a](#no-heading)", "[a](LICENSE/../../x)", "[a]: no.md"],
)
def test_a_planted_link_is_found(link: str) -> None:
    assert len(link_complaints(f"# Some heading\n\n{link}\n", ROOT / "README.md")) == 1


def test_good_links_are_let_pass() -> None:
    document = (
        "# What it `is`, and why\n## Twice\n## Twice\n[a](LICENSE) [b](#what-it-is-and-why) [c](#twice-1) "
        '<a href="tests/">d</a> [e](https://example.org/x.md) `[f](no.md)`\n\n'
        "```md\n[g](no.md)\n```\n<!-- [h](no.md) -->\n"
    )
    assert link_complaints(document, ROOT / "README.md") == []


def path_complaints(document: str) -> list[str]:
    """Source files named in inline code that do not exist."""
    named = re.findall(r"`((?:mempo_env|envs|agents|algos|tests|benchmarks|\.ci)/[\w./-]*)`", prose(document))
    return [f"{name}: there is no such file" for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_exist(name: str) -> None:
    assert path_complaints(DOCUMENTS[name]) == []
    assert len(path_complaints("`mempo_env/records.py` and `envs/no_such_file.py`")) == 1


# Changelog -----------------------------------------------------------------------------------------------------------


def changelog_complaints(document: str, version: str) -> list[str]:
    """Headings of a changelog that are not the fixed ones in their order, and a version without an entry."""
    releases = re.split(r"^## +", prose(document), flags=re.MULTILINE)[1:]
    names = [re.split(r"[\s\]]", release.lstrip("["))[0] for release in releases]
    complaints = [] if names[:1] == [version] else [f"the first entry is {names[:1]}, the version is {version}"]
    for name, release in zip(names, releases, strict=True):
        headings = re.findall(r"^### +(.*?)\s*$", release, re.MULTILINE)
        if headings != CHANGELOG_HEADINGS:
            complaints.append(f"{name}: the headings are {headings}; each entry has {CHANGELOG_HEADINGS}")
    return complaints


def test_the_changelog_keeps_its_headings() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert changelog_complaints(DOCUMENTS["CHANGELOG.md"], version) == []


def test_a_planted_changelog_error_is_found() -> None:
    good = "# Changelog\n\n## 1.0 (2026-01-01)\n\n" + "".join(f"### {heading}\n\n" for heading in CHANGELOG_HEADINGS)
    assert changelog_complaints(good, "1.0") == []
    assert len(changelog_complaints(good, "1.1")) == 1
    assert len(changelog_complaints(good.replace("Bug Fixes", "Fixes"), "1.0")) == 1
    assert len(changelog_complaints("# Changelog\n", "1.0")) == 1
