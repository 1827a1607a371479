"""The yardstick of the suites: a fixed piece of plain Python, none of it ours, in whose time the others are compared.

Invariant: it never changes; whoever changes it stores ``results/quick.json`` anew.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

TEXT = json.dumps([{"name": f"Mira {n}", "likes": ["tea", "chess", n]} for n in range(60)])


def work() -> int:
    """Parses, matches, counts and sorts: what the contract spends its time on."""
    rows = json.loads(TEXT)
    counts: dict[str, int] = {}
    for word in re.findall(r"\w+", TEXT):
        counts[word] = counts.get(word, 0) + len(word)
    return len(sorted(counts, key=lambda word: (counts[word], word))) + len(rows)


def test_yardstick_of_plain_python(benchmark: BenchmarkFixture) -> None:
    """Well under a millisecond."""
    assert benchmark(work) == 125
