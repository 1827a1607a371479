"""One draw: ``choose`` inverts the distribution at the noise it is given, and the noise is keyed by the row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mempo_env.agents.drawing import choose, row_noise


@settings(deadline=None)
@given(
    logits=st.lists(st.one_of(st.floats(-50, 50), st.just(-math.inf), st.just(-1e4)), min_size=1, max_size=12).filter(
        lambda values: max(values) > -1e4
    ),
    noise=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1 - 2**-53, 0.5])),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
)
def test_choose_inverts_the_distribution(logits: list[float], noise: float, temperature: float) -> None:
    row = torch.tensor([logits])
    (index,), (logprob,) = choose(row, torch.tensor([noise], dtype=torch.float64), temperature)
    exact = (row.double() / temperature).softmax(-1)[0]
    assert (row.float() / temperature).softmax(-1)[0, index] > 0  # never a token of probability 0
    assert logprob.item() == pytest.approx(math.log(exact[index]), abs=1e-4)
    low, high = exact[:index].sum().item(), exact[: index + 1].sum().item()
    assert low - 1e-6 <= noise <= high + 1e-6


def test_choose_at_the_ends() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).repeat(4, 1)
    noise = torch.tensor([0.0, 0.5 - 1e-9, 0.5, 1 - 2**-53], dtype=torch.float64)
    ids, logprobs = choose(logits, noise)
    assert ids.tolist() == [1, 1, 3, 3]
    assert logprobs.tolist() == pytest.approx([-math.log(2)] * 4)
    assert choose(logits, torch.ones(4, dtype=torch.float64))[0].tolist() == [3] * 4  # beyond what the noise can be
    ids, logprobs = choose(torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.bfloat16), None, temperature=0.1)
    assert ids.tolist() == [1]
    assert logprobs.dtype == torch.float32
    assert logprobs.item() == pytest.approx(torch.tensor([0.0, 2.0, 1.0]).log_softmax(0)[1].item())


@pytest.mark.parametrize("size", [255, 256, 257, 2000])
def test_choose_finds_the_place_in_any_block(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    row = torch.randn(size, generator=generator) * 4
    row[torch.rand(size, generator=generator) < 0.3] = -math.inf
    row[: size // 3] = -math.inf  # whole blocks of nothing
    row[size - size // 8 :] = -math.inf
    exact = row.double().softmax(-1)
    sums = exact.cumsum(-1)
    noise = torch.rand(4000, generator=generator, dtype=torch.float64)
    noise[:3] = torch.tensor([0.0, 1 - 2**-53, 1.0])
    ids, logprobs = choose(row.expand(len(noise), -1), noise)
    assert (exact[ids] > 0).all()
    assert (sums[ids] - exact[ids] - 1e-7 <= noise).all()
    assert (noise <= sums[ids] + 1e-7).all()
    assert float((logprobs.double() - exact[ids].log()).abs().max()) < 1e-5
    assert len(ids.unique()) > 20


def test_noise_is_keyed() -> None:
    first = row_noise((1, 2, "g", 3, 4), 50)
    assert first.dtype == torch.float64
    assert ((first >= 0) & (first < 1)).all()
    assert torch.equal(row_noise((1, 2, "g", 3, 4), 20), first[:20])
    # Stable across processes and versions: a change would make old runs impossible to repeat.
    assert row_noise((0, 1, "g", 2, 3), 2).tolist() == [0.42067862362938147, 0.6636512418538417]
    for other in ((1, 2, "g", 34), (1, 2, "g", 3, 5), (12, "g", 3, 4), (1, 2, "g,3", 4), ("1", 2, "g", 3, 4)):
        assert not torch.equal(row_noise(other, 50), first)
