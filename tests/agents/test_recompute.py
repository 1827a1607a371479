"""Gradient checkpointing as a block: when it acts, that it ends, and that it warns of nothing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mempo_env.agents.models import add_lora
from mempo_env.agents.recompute import layers_recomputed
from mempo_env.agents.row_batches import TokenRow, collate
from mempo_env.agents.scoring import causal_lm, output_logprobs, score_rows
from mempo_env.agents.settings import LoraSettings
from mempo_env.errors import UserError

ROWS = [TokenRow(tuple(range(20, 60)), (7, 8, 9)), TokenRow(tuple(range(20, 45)), (5, 6))]


def layer_calls(model: nn.Module) -> list[int]:
    """Counts the calls of the first layer's feed-forward part."""
    calls = [0]
    layer: Any = causal_lm(model).get_decoder().layers[0]  # type: ignore[operator]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    return calls


def gradients(model: nn.Module, share: bool = True) -> list[Tensor]:
    model.zero_grad()
    output_logprobs(model, collate(ROWS, 0, share=share))[0].sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.fixture
def model(tiny_model: Any) -> nn.Module:
    made: nn.Module = add_lora(tiny_model, LoraSettings(rank=4, alpha=8), seed=0)
    return made.train()


@pytest.mark.parametrize("share", [False, True])
def test_layers_run_again_within_the_block_and_only_there(model: nn.Module, share: bool) -> None:
    calls = layer_calls(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = gradients(model, share)
        assert calls == [1]
        with layers_recomputed(model):
            within = gradients(model, share)
        assert calls == [3]
        gradients(model, share)
        assert calls == [4]
    assert len(before) == len(within) > 0
    assert all(float((one - two).abs().max()) < 1e-6 for one, two in zip(before, within, strict=True))


def test_scoring_within_the_block_keeps_its_cache_and_warns_of_nothing(
    model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    expected = score_rows(model.eval(), ROWS, 0, max_tokens=1000)
    causal_lm(model).config._attn_implementation = "eager"  # type: ignore[union-attr]
    calls = layer_calls(model.train())
    with layers_recomputed(model):
        model.eval()
        found = score_rows(model, ROWS, 0, max_tokens=1000)
    assert calls == [2]  # the prefix, and the suffixes after its cache: without a cache there would be one pass
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(expected, found, strict=True))
    assert not caplog.records


def test_dropout_is_drawn_once(tiny_model: Any) -> None:
    model = add_lora(tiny_model, LoraSettings(rank=4, alpha=8, dropout=0.5), seed=0).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    found = []
    for on, seed in ((False, 3), (True, 3), (False, 4)):
        with torch.random.fork_rng(), layers_recomputed(model, on):
            torch.manual_seed(seed)
            found.append(torch.cat([gradient.flatten() for gradient in gradients(model, share=False)]))  # (n,)
    scale = float(found[0].abs().max())
    assert float((found[1] - found[0]).abs().max()) < 1e-6 * scale
    assert float((found[2] - found[0]).abs().max()) > 1e-2 * scale


def test_it_ends_when_the_block_fails(model: nn.Module) -> None:
    calls = layer_calls(model)
    with pytest.raises(RuntimeError), layers_recomputed(model):
        raise RuntimeError
    gradients(model)
    assert calls == [1]


def test_what_cannot_recompute_is_refused(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="training mode"), layers_recomputed(model.eval()):
        pass
    monkeypatch.setattr(type(causal_lm(model)), "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match=r"--train\.no-gradient-checkpointing"), layers_recomputed(model.train()):
        pass
    with layers_recomputed(model, on=False):
        pass
