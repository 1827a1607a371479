"""Reads question answering data sets from the hub, through ``datasets``: ``data="hub:hotpotqa"``.

Invariants:
    * a row from the hub is read by the same code as a row of the published file (``envs/qa_formats.py``);
    * without the package, the network or a copy in the cache it is a ``UserError`` that says what to do instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mempo_env.errors import UserError, unknown_name

from .qa_files import ORDER, SplitRows, question_texts, read_entries, without_repeats
from .records_io import Row

PREFIX = "hub:"
_SPLITS = {"train": "train", "dev": "validation"}
_FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"


@dataclass(frozen=True)
class HubDataset:
    """Where a data set is on the hub.

    Attributes:
        repository: ``owner/name``.
        config: Name of the configuration; None where there is only one.
        splits: From our names of splits to its.
    """

    repository: str
    config: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: dict(_SPLITS))


HUB: dict[str, HubDataset] = {
    "hotpotqa": HubDataset("hotpotqa/hotpot_qa", "distractor"),
    "musique": HubDataset("dgslibisey/MuSiQue"),
    "2wikimultihopqa": HubDataset("framolfese/2WikiMultihopQA"),
    "nq": HubDataset("google-research-datasets/nq_open", "nq_open"),
    "flashrag/hotpotqa": HubDataset(_FLASHRAG, "hotpotqa", {"train": "train", "dev": "dev"}),
    "flashrag/musique": HubDataset(_FLASHRAG, "musique", {"train": "train", "dev": "dev"}),
    "flashrag/2wikimultihopqa": HubDataset(_FLASHRAG, "2wikimultihopqa", {"train": "train", "dev": "dev"}),
    "flashrag/nq": HubDataset(_FLASHRAG, "nq", {"train": "train", "dev": "dev", "test": "test"}),
}
"""What ``hub:NAME`` stands for."""


def read_hub_split(name: str, split: str) -> SplitRows:
    """Reads one split of a data set of the hub.

    Args:
        name: A name in ``HUB``.
        split: ``train``, ``dev`` or ``test``.

    Returns:
        The questions, as from the published files.

    Raises:
        UserError: The name or split is unknown, ``datasets`` is not installed, or the data set cannot be loaded.
    """
    if name not in HUB:
        raise unknown_name("hub data set", name, HUB, "Others: download the files and give their folder.")
    where = HUB[name]
    if split not in where.splits:
        raise UserError(f"hub:{name} has no split '{split}'; its splits: {', '.join(sorted(where.splits))}")
    entries = read_entries(_rows(name, where, split), name)
    if not entries:
        raise UserError(f"hub:{name} has no rows in its split '{where.splits[split]}'; use another split")
    later: set[str] = set()
    for other in ORDER[ORDER.index(split) + 1 :]:
        if other in where.splits:
            later |= set(question_texts(_rows(name, where, other, columns=("question",))))
    kept = without_repeats(entries, later)
    return SplitRows(kept, strict=False, dropped=len(entries) - len(kept))


def _rows(name: str, where: HubDataset, split: str, columns: tuple[str, ...] = ()) -> Iterator[tuple[str, Row]]:
    table = _load(name, where, where.splits[split])
    if columns:
        table = table.select_columns(list(columns))
    place = f"{PREFIX}{name} ({where.repository}, {where.splits[split]})"
    for number, row in enumerate(table, start=1):
        yield f"{place}: record {number}", dict(row)


def _load(name: str, where: HubDataset, split: str) -> Any:
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError:
        raise UserError(
            f"hub:{name} needs the package datasets; install it with: pip install 'mempo-env[hub]'"
        ) from None
    try:
        return load_dataset(where.repository, where.config, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as problem:  # offline, unknown, moved, gated, damaged
        reason = " ".join(str(problem).split())[:200]
        raise UserError(
            f"hub:{name} ({where.repository}) cannot be loaded: {type(problem).__name__}: {reason}; connect to the "
            "network once, so that it is cached, or download its files elsewhere and give their folder as data"
        ) from problem
