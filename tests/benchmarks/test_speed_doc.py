"""The tables in docs/speed.md are those that the cost model makes of the stored results."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from cost_formulas import QWEN
from cost_machines import H100, flops_per_episode, memory_of, step_cost
from cost_model import MARK, TABLES, page, plan, shape, stored

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "speed.md").read_text(encoding="utf-8")
PROSE = " ".join(TEXT.split())


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
    plain, recomputed = (found[f"tokens of a micro-batch{mode}"] for mode in ("", ", checkpointing"))
    for name in ("qwen2.5-7b", "qwen2.5-7b-paper"):
        preset = get_preset(name)
        assert preset.train.micro_batch_tokens == 16_384
        assert preset.train.gradient_checkpointing
        longest = preset.max_prompt_tokens + preset.sampling.max_new_tokens
        assert longest == 9_216
        assert plain < longest < preset.train.micro_batch_tokens < recomputed / 6
    kept = found["saved by a token, checkpointing"] / 1e9
    assert f"Of the {recomputed * kept:.0f} GB that are free" in PROSE
    assert f"micro-batch of 16,384 tokens takes {16_384 * kept:.1f} GB" in PROSE


def test_what_the_text_says_of_checkpointing_is_so() -> None:
    check = stored()
    factors, seconds = [], []
    for budget, goals in (("brief", 2), ("paper", 2), ("paper", 10)):
        episode = shape(check, budget, goals)
        plans = [plan(check), plan(check, checkpointing=True)]
        kept, again = (flops_per_episode(QWEN, episode, made)["update"] for made in plans)
        factors.append(again / kept)
        kept, again = (step_cost(QWEN, episode, made, H100, 8).seconds for made in plans)
        seconds.append(again / kept)
    assert f"has {min(factors):.1f} to {max(factors):.1f} times the FLOPs" in PROSE
    assert f"whole step {min(seconds):.2f} to {max(seconds):.2f} times the seconds" in PROSE
    peaks = {line["what"]: line["measured"] for line in check["peak"]}
    found = [round(peaks[f"tiny: 8 rows of 512 + 128{mode}"] / 1e6) for mode in ("", ", checkpointing")]
    assert f"{found[0]} MB above what it held before, {found[1]} MB with checkpointing" in PROSE


def test_what_the_text_says_of_kept_bytes_is_so() -> None:
    from dataclasses import replace

    from cost_formulas import saved_bytes

    plain, cast = saved_bytes(replace(QWEN, adapter_bytes=2)), saved_bytes(QWEN)
    assert 0.3 < 1 - plain / cast < 0.4
