"""The pages of the study are those of the kept results, and every table stands on one of them."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

from memory_study.document import DOCS, results, shared_out
from memory_study.store import RESULTS
from memory_study.tables import Table
from rich.console import Console

PAGES = ("study.md", "study_tables.md")


def test_the_pages_are_those_of_the_kept_results(tmp_path: Path) -> None:
    for name in PAGES:
        shutil.copy(DOCS / name, tmp_path)
    importlib.import_module("memory_reward").document(RESULTS, Console(quiet=True), tmp_path)
    for name in PAGES:
        assert (tmp_path / name).read_text("utf-8") == (DOCS / name).read_text("utf-8"), (
            f"docs/{name} is out of date; run benchmarks/studies/memory_reward.py --document"
        )
    assert len(list((tmp_path / "images").iterdir())) == 3


def test_every_table_stands_on_one_page_and_long_ones_are_folded() -> None:
    main_keys = ["distances-tokens", "f1-easy", "causes-easy", "tuning"]
    keys = [*main_keys, "goals-causes-easy", "seeds-easy", "tokens-easy"]
    tables = [Table(key, key.upper(), ("a",), [("1",)]) for key in keys]
    main, others = shared_out(tables)
    assert [table.key for table in main] == main_keys
    assert [table.key for table in others] == ["goals-causes-easy", "seeds-easy", "tokens-easy"]
    shown = results(others)
    assert shown.count("<details>") == shown.count("</details>") == 2
    assert "**TOKENS-EASY**" in shown
