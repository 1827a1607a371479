"""How fast the contract is: reading outputs, labelling tokens, looking names up. The tests hold that it is right.

Run with ``make bench``: ``quick.py`` compares each with a yardstick of plain Python, and that with the stored ratios.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mempo_env.actions import Segment, ToolCall, parse
from mempo_env.plugins import Registry
from mempo_env.segments import token_segments
from mempo_env.tokens import RegexTokenCounter

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

MEMORY = "; ".join(f"Mira likes colour {number}" for number in range(50))
OUTPUT = (
    f"<mem>{MEMORY}</mem><think>What is left to ask?</think>"
    '<tool_call>{"name": "search", "arguments": {"queries": ["Mira", "Pia", "Tom"]}}</tool_call>'
)
TOKENS = [OUTPUT[start : start + 4].encode() for start in range(0, len(OUTPUT), 4)]


def test_parse_an_output(benchmark: BenchmarkFixture) -> None:
    """A full-length output: 256 tokens of memory, a thought, a call."""
    assert isinstance(benchmark(parse, OUTPUT).action, ToolCall)


def test_label_the_tokens_of_an_output(benchmark: BenchmarkFixture) -> None:
    """The same output in tokens of four bytes."""
    assert benchmark(token_segments, TOKENS)[0] == Segment.MEMORY


def test_cut_a_memory(benchmark: BenchmarkFixture) -> None:
    """A memory beyond its limit."""
    assert len(benchmark(RegexTokenCounter().truncate, MEMORY, 128)) < len(MEMORY)


def test_look_a_name_up(benchmark: BenchmarkFixture) -> None:
    """A registered name, entry points of all installed packages included."""
    registry = Registry[type]("counter", "mempo_env.bench")
    registry.register("plain", "collections:Counter")
    assert benchmark(registry.get, "plain").__name__ == "Counter"
