"""The profile's shares add up, and operators are of the kind they are said to be."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from profile_phases import KINDS, OUTSIDE, Phases, kind_of, run


@pytest.mark.parametrize(
    ("name", "shapes", "kind"),
    [
        ("aten::mm", [[8, 16], [16, 4]], "matrix products"),
        ("aten::addmm", [[4], [8, 16], [16, 4]], "matrix products"),
        ("aten::mm", [[8, 16], [16, 99]], "head and softmax"),
        ("aten::_log_softmax", [[8, 5]], "head and softmax"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", [[1]], "attention"),
        ("aten::mul", [[8, 16], [8, 16]], "elementwise"),
        ("aten::silu_backward", [[8]], "elementwise"),
        ("aten::_to_copy", [[8]], "copies and indexing"),
        ("aten::t", [[8, 2]], "copies and indexing"),
        ("aten::index_put_", [[8, 2]], "copies and indexing"),
        ("aten::tanh", [[8]], "other operators"),
        ("MulBackward0", [], "other operators"),
    ],
)
def test_kinds(name: str, shapes: list[list[int]], kind: str) -> None:
    assert kind_of(name, shapes, 99) == kind


def test_shares_of_a_step_add_up() -> None:
    weight = torch.randn(64, 64, requires_grad=True)
    phases = Phases()

    class Policy:
        @contextmanager
        def other(self) -> Any:
            yield None

    policy = Policy()

    def step() -> None:
        with phases.phase("outer", timed_only=True), phases.phase("update"):
            x = torch.randn(64, 64) @ weight
            with policy.other(), torch.no_grad():
                torch.randn(64, 64) @ weight
            x.mul(2).sum().backward()

    with phases.marked(policy, "other", "reference", context=True):
        found = run(step, phases, 999)
    assert sum(found["kinds"].values()) == pytest.approx(1)
    assert set(found["kinds"]) == {*KINDS, OUTSIDE}
    assert sum(found["phases"].values()) == pytest.approx(1)
    assert set(found["phases"]) == {"outer", "update", "reference"}
    assert set(found["kinds_by_phase"]) == {"update", "reference", "update: backward"}
    for phase in ("update", "reference", "update: backward"):
        assert found["kinds_by_phase"][phase]["matrix products"] > 0
    assert found["kinds_by_phase"]["reference"]["elementwise"] == 0
    assert "other" not in vars(policy)  # the mark is gone
