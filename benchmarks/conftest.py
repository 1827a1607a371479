"""The yardstick of the suites: a fixed piece of plain Python, none of it ours, timed right before and after each test.

``quick.py`` divides a test's time by it, so that how fast the machine is just then falls out.

Invariant: the yardstick never changes; whoever changes it stores ``results/quick.json`` anew.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

TEXT = json.dumps([{"name": f"Mira {n}", "likes": ["tea", "chess", n]} for n in range(60)])
WORDS = 125
REPEATS = 50


def work() -> int:
    """Parses, matches, counts and sorts: what the contract spends its time on."""
    rows = json.loads(TEXT)
    counts: dict[str, int] = {}
    for word in re.findall(r"\w+", TEXT):
        counts[word] = counts.get(word, 0) + len(word)
    return len(sorted(counts, key=lambda word: (counts[word], word))) + len(rows)


def yardstick() -> float:
    """Least CPU seconds of the work over some repeats."""
    least = float("inf")
    for _ in range(REPEATS):
        begun = time.process_time()
        assert work() == WORDS
        least = min(least, time.process_time() - begun)
    return least


@pytest.fixture(autouse=True)
def _beside_a_yardstick(request: pytest.FixtureRequest) -> Iterator[None]:
    """Notes the yardstick beside the benchmark's statistics."""
    if "benchmark" not in request.fixturenames:
        yield
        return
    extra = request.getfixturevalue("benchmark").extra_info
    before = yardstick()
    yield
    extra["yardstick_s"] = min(before, yardstick())
