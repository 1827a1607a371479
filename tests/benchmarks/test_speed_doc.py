"""The tables in docs/speed.md are those that the cost model makes of the stored results."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from cost_formulas import QWEN
from cost_machines import H100, memory_of
from cost_model import MARK, TABLES, page, stored

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "speed.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_stored_results() -> None:
    assert {found[2] for found in MARK.finditer(TEXT)} == set(TABLES)
    assert page(TEXT, stored()) == TEXT, "run: python benchmarks/cost_model.py --page docs/speed.md"


def test_a_table_is_written_between_its_marks_and_nowhere_else() -> None:
    empty = (
        "A.\n\n<!-- made: decoding -->\n\n<!-- end -->\n\nB.\n\n<!-- made: memory -->\n\nold\n\n<!-- end -->\n\nC.\n"
    )
    written = page(empty, stored())
    assert [part in written for part in ("A.\n", "\n\nB.\n\n", "\n\nC.\n", "old")] == [True, True, True, False]
    assert TABLES["decoding"](stored()) in written
    assert page(written, stored()) == written


def test_a_changed_number_is_found() -> None:
    changed = re.sub(r"\| weights \| 15\.2 GB \|", "| weights | 14.2 GB |", TEXT)
    assert changed != TEXT
    assert page(changed, stored()) == TEXT


def test_what_the_text_says_of_the_preset_is_so() -> None:
    from mempo_env.algos.presets import get_preset

    found = memory_of(QWEN, H100)
    for name in ("qwen2.5-7b", "qwen2.5-7b-paper"):
        asked = get_preset(name).train.micro_batch_tokens
        assert asked == 16_384
        assert found["tokens of a micro-batch"] < asked < found["tokens of a micro-batch, checkpointing"]


def test_what_the_text_says_of_kept_bytes_is_so() -> None:
    from dataclasses import replace

    from cost_formulas import saved_bytes

    plain, cast = saved_bytes(replace(QWEN, adapter_bytes=2)), saved_bytes(QWEN)
    assert 0.3 < 1 - plain / cast < 0.4
