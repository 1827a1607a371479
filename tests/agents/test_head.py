"""Log-probabilities by chunks equal the plain path's, with their gradient, whatever the head and the temperature."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mempo_env.agents.head import MAX_SCORES, token_logprobs

VOCABULARY, WIDTH = 50, 12


def draw(count: int, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """States (N, D), ids (N,) and what arrives from above (N,)."""
    generator = torch.Generator().manual_seed(seed)
    states = (torch.randn((count, WIDTH), generator=generator) * scale).requires_grad_()
    ids = torch.randint(VOCABULARY, (count,), generator=generator)
    return states, ids, torch.randn(count, generator=generator)


def make_head(*, bias: bool = False, learns: bool = False) -> nn.Linear:
    generator = torch.Generator().manual_seed(3)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head.requires_grad_(learns)


@given(st.integers(1, 20), st.integers(1, 25), st.sampled_from([1.0, 0.7, 1.9]), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_chunks_equal_the_plain_path(count: int, chunk: int, temperature: float, entropy: bool, bias: bool) -> None:
    states, ids, upstream = draw(count, seed=count)
    head = make_head(bias=bias)
    found = [token_logprobs(head, states, ids, temperature=temperature, chunk_tokens=size, entropy=entropy)
             for size in (chunk, None)]  # fmt: skip
    (ours, spread), (plain, plain_spread) = found
    assert float((ours - plain).detach().abs().max()) < 1e-5
    assert (spread is not None) is (plain_spread is not None) is entropy
    if spread is not None and plain_spread is not None:
        assert not spread.requires_grad
        assert float((spread - plain_spread).abs().max()) < 1e-5
    gradients = [torch.autograd.grad(each, states, upstream)[0] for each in (ours, plain)]
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-5 * max(1.0, float(gradients[1].abs().max()))
    with torch.no_grad():
        silent = token_logprobs(head, states, ids, temperature=temperature, chunk_tokens=chunk)[0]
    assert float((silent - plain.detach()).abs().max()) < 1e-5


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_head_that_learns_gets_its_gradient(wrapped: bool) -> None:
    states, ids, upstream = draw(9)
    linear = make_head(bias=True, learns=True)
    head = nn.Sequential(linear) if wrapped else linear
    gradients = []
    for size in (4, None):
        logprobs, _ = token_logprobs(head, states, ids, chunk_tokens=size)
        gradients.append(torch.autograd.grad(logprobs, [states, *head.parameters()], upstream))
    for ours, plain in zip(*gradients, strict=True):
        assert float((ours - plain).abs().max()) < 1e-5 * max(1.0, float(plain.abs().max()))


def test_a_nearly_certain_token_keeps_the_digits_of_its_gradient() -> None:
    states, _, upstream = draw(6, scale=0.5)
    head = make_head(bias=True)
    with torch.no_grad():
        assert head.bias is not None
        head.bias[0] += 20.0
    ids = torch.zeros(6, dtype=torch.long)
    exact_head, exact_states = copy.deepcopy(head).double(), states.detach().double().requires_grad_()
    exact = torch.log_softmax(exact_head(exact_states), -1)[:, 0]
    expected = torch.autograd.grad(exact, exact_states, upstream.double())[0]
    half, rounded = copy.deepcopy(head).bfloat16(), states.detach().bfloat16().requires_grad_()
    logprobs, _ = token_logprobs(half, rounded, ids, chunk_tokens=4)
    found = torch.autograd.grad(logprobs, rounded, upstream)[0]
    assert float(expected.abs().max()) < 1e-4  # far below the rounding of a row of the head
    assert float((found - expected).abs().max()) < 0.2 * float(expected.abs().max())


def test_the_logits_are_computed_once_for_both_passes() -> None:
    states, ids, upstream = draw(9)
    head = make_head()
    calls: list[int] = []
    head.register_forward_hook(lambda *_: calls.append(1))
    logprobs, _ = token_logprobs(head, states, ids, chunk_tokens=3, entropy=True)
    logprobs.backward(upstream)
    assert len(calls) == 3
    assert states.grad is not None
    assert bool(states.grad.any())


@pytest.mark.parametrize(("most", "sizes"), [(10**6, [7, 2]), (4 * VOCABULARY, [4, 4, 1]), (1, [1] * 9)])
def test_a_chunk_has_no_more_scores_than_allowed(most: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAX_SCORES, "cpu", most)
    states, ids, _ = draw(9)
    head, seen = make_head(), []
    head.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    token_logprobs(head, states, ids, chunk_tokens=7)
    assert seen == sizes
