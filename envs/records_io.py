"""Reads rows from files of data sets: JSON lines, one JSON array or tab-separated columns, plain or gzipped; Parquet.

Invariant: every row comes with its place (``file:line``, or ``file: record n`` of an array), and what cannot be read is
a ``UserError`` that begins with it; nothing is skipped or guessed. A row is handed out as soon as it is parsed, so that
of a file of many passages no more than its text and one row are in memory.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from mempo_env.errors import UserError

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".tsv", ".tsv.gz", ".parquet")
"""Endings of the files that ``read_rows`` reads."""
_BLANK = " \t\r\n"


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yields the rows of a file with their places.

    A ``.json`` file may hold an array of objects or, as 2WikiMultihopQA's aliases do, one object a line. Blank lines
    are allowed.

    Args:
        path: A file with one of the endings in ``SUFFIXES``.

    Yields:
        ``(place, row)``.

    Raises:
        UserError: The file is missing, cannot be read, or holds something else.
    """
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        yield from _parquet(path)
    elif kind == "tsv":
        yield from _columns(path)
    elif kind == "json" and _begins_with(path, b"["):
        yield from _array(path)
    else:
        yield from _lines(path)


def text(row: Row, field: str, where: str, *, empty: bool = False) -> str:
    """A field that must be a string.

    Raises:
        UserError: It is missing, no string, or blank although ``empty`` is false.
    """
    value = present(row, field, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: '{field}' must be a string, not {type(value).__name__}")
    if not empty and not value.strip():
        raise UserError(f"{where}: '{field}' is empty")
    return value


def texts(row: Row, field: str, where: str) -> tuple[str, ...]:
    """A field that must be a list of strings, none of them blank.

    Raises:
        UserError: It is missing or something else.
    """
    value = present(row, field, where)
    if not is_list(value) or not all(map(_is_text, value)):
        raise UserError(f"{where}: '{field}' must be a list of strings that are not empty")
    return tuple(value)


def answers(row: Row, field: str, where: str) -> tuple[str, ...]:
    """Gold answers: a list of strings with at least one.

    Raises:
        UserError: It is missing, empty or something else.
    """
    found = texts(row, field, where)
    if not found:
        raise UserError(f"{where}: '{field}' is empty; give at least one gold answer")
    return found


def objects(row: Row, field: str, where: str) -> list[Row]:
    """A field that must be a list of objects.

    Raises:
        UserError: It is missing or something else.
    """
    value = present(row, field, where)
    if not is_list(value) or not all(isinstance(item, Mapping) for item in value):
        raise UserError(f"{where}: '{field}' must be a list of objects")
    return [dict(item) for item in value]


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a list, as JSON and Arrow give them."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def present(row: Row, field: str, where: str) -> Any:
    """A field that must be there.

    Raises:
        UserError: It is missing.
    """
    if field not in row:
        raise UserError(f"{where}: the field '{field}' is missing; the row has {', '.join(sorted(row)) or 'no fields'}")
    return row[field]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in _decoded(path):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise UserError(f"{where}: not valid JSON ({problem}); each line must be one JSON object") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: a {type(row).__name__}; each line must be one JSON object")
        yield where, row


def _columns(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a table as DPR publishes its passages: a first line with names, fields quoted where they hold quotes."""
    names: list[str] | None = None
    for number, line in _decoded(path):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            # One line at a time: a passage whose quote is never closed must not swallow the passages after it.
            fields = next(csv.reader(io.StringIO(line), delimiter="\t", strict=True))
        except (csv.Error, StopIteration) as problem:
            raise UserError(f"{where}: not a row of tab-separated fields ({problem}); fetch the file again") from None
        if names is None:
            names = fields
        elif len(fields) != len(names):
            raise UserError(
                f"{where}: {len(fields)} fields, the first line names {len(names)}: {', '.join(names)}; "
                "each line must be one row"
            )
        else:
            yield where, dict(zip(names, fields, strict=True))


def _array(path: Path) -> Iterator[tuple[str, Row]]:
    content = "".join(line for _, line in _decoded(path))
    decoder, number, at = json.JSONDecoder(), 0, _skip(content, content.index("[") + 1)
    while at < len(content) and content[at] != "]":
        number += 1
        where = f"{path}: record {number}"
        try:
            row, at = decoder.raw_decode(content, at)
        except (ValueError, RecursionError) as problem:
            raise UserError(f"{where}: not valid JSON ({problem}); the file must be one JSON array") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: a {type(row).__name__}; each record must be a JSON object")
        yield where, row
        at = _skip(content, at)
        if content[at : at + 1] == ",":
            at = _skip(content, at + 1)
            if content[at : at + 1] == "]":
                raise UserError(f"{where}: a comma before the end of the array; the file must be one JSON array")
        elif content[at : at + 1] != "]":
            raise UserError(f"{where}: the array goes on without a comma or breaks off; fetch the file again")
    if at >= len(content):
        raise UserError(f"{path}: the array breaks off after record {number}; fetch the file again")
    if content[at + 1 :].strip():
        raise UserError(f"{path}: text follows the end of the array; the file must be one JSON array")


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise UserError(f"{path}: Parquet needs pyarrow; install it with: pip install 'mempo-env[hub]'") from None
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: record {number}", row
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path of the data folder") from None
    except (OSError, ArrowException) as problem:
        reason = " ".join(str(problem).split())
        raise UserError(f"{path}: cannot be read after record {number} ({reason}); fetch the file again") from None


def _skip(content: str, at: int) -> int:
    while at < len(content) and content[at] in _BLANK:
        at += 1
    return at


def _begins_with(path: Path, mark: bytes) -> bool:
    return next((line.lstrip().startswith(mark) for _, line in _raw(path) if line.strip()), False)


def _decoded(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in _raw(path):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as problem:
            raise UserError(f"{path}:{number}: not UTF-8 ({problem.reason}); save the file as UTF-8") from None


def _raw(path: Path) -> Iterator[tuple[int, bytes]]:
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path of the data folder") from None
    except (OSError, EOFError, zlib.error) as problem:
        raise UserError(f"{path}: cannot be read after line {number} ({problem}); fetch the file again") from None
