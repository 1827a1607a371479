"""The short way of linear layers gives what peft's gives, and leaves every module as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from mempo_env.agents.adapters import evaluation_mode, use_adapter
from mempo_env.agents.codec import ChatCodec
from mempo_env.agents.lean_linear import lean_linears, product, turns
from mempo_env.agents.models import add_lora
from mempo_env.agents.sampler import EmbeddedSampler, SampleRequest
from mempo_env.agents.settings import SamplingConfig


class Layers(nn.Module):
    """Two layers in a row, so that an adapter's input is another one's output."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(24, 40, bias=bias)
        self.second = nn.Linear(40, 24, bias=bias)

    def forward(self, states: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(states).tanh())
        return found


def layers(dtype: torch.dtype = torch.float32, *, bias: bool = True, **settings: Any) -> Any:
    """The layers under peft, with adapters that do something."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["first", "second"], **settings)
    model = get_peft_model(Layers(bias).to(dtype), config, adapter_name="policy")
    model.add_adapter("other", config)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def states(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn((rows, 1, 24), generator=torch.Generator().manual_seed(rows)).to(dtype)


def replaced(model: nn.Module) -> list[str]:
    """Names of the modules that have another forward than their class."""
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def snapshot(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Which objects each module holds."""
    return {name: {key: id(value) for key, value in vars(module).items()} for name, module in model.named_modules()}


@pytest.mark.parametrize("name", ["policy", "other", None])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 12, 16, 20, 64, 65])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.02)]
)
def test_it_equals_peft(name: str | None, bias: bool, rows: int, dtype: torch.dtype, tolerance: float) -> None:
    model = layers(dtype, bias=bias)
    with use_adapter(model, name), torch.inference_mode():
        expected = model(states(rows, dtype))
        with lean_linears(model):
            found = model(states(rows, dtype))
            assert bool(replaced(model)) == (name is not None or dtype == torch.bfloat16)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == dtype
    assert float((found - expected).abs().max()) < tolerance
    with use_adapter(model, "policy"), torch.inference_mode():
        if name != "policy":  # the adapter matters, so leaving it out would be seen
            assert float((model(states(rows, dtype)) - expected).abs().max()) > 5 * tolerance


@pytest.mark.parametrize("rows", [1, 12, 16, 64])
def test_a_plain_model_takes_the_faster_order(rows: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Layers()).to(torch.bfloat16).eval()
    with torch.inference_mode():
        expected = model(states(rows, torch.bfloat16))
        with lean_linears(model):
            assert replaced(model) == ["0.first", "0.second"]
            found = model(states(rows, torch.bfloat16))
    assert float((found - expected).abs().max()) < 0.02


@pytest.mark.parametrize("rows", [1, 12, 16, 17, 28, 64, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_either_order_is_the_same_product(rows: int, dtype: torch.dtype) -> None:
    weight = torch.randn((40, 24), generator=torch.Generator().manual_seed(1)).to(dtype)
    flat = states(rows, dtype)[:, 0]
    assert turns(rows, dtype) == (dtype == torch.bfloat16 and rows in (12, 16, 28, 64))
    exact = flat.double() @ weight.double().t()
    assert float((product(flat, weight).double() - exact).abs().max()) < (1e-4 if dtype == torch.float32 else 0.15)


def test_weights_that_change_meanwhile_are_seen() -> None:
    model = layers()
    with torch.inference_mode(), lean_linears(model):
        before = model(states(3))
    with torch.no_grad(), lean_linears(model):
        for key, parameter in model.named_parameters():
            if "lora_B.policy" in key:
                parameter.mul_(2)
        assert len(replaced(model)) == 2
        found = model(states(3))
    with torch.no_grad():
        expected = model(states(3))
    assert float((found - expected).abs().max()) < 1e-5
    assert float((found - before).abs().max()) > 1e-3


def test_modules_are_left_as_they_came_even_after_an_error() -> None:
    model = layers()
    before = snapshot(model)
    with lean_linears(model):
        assert len(replaced(model)) == 2
    assert snapshot(model) == before

    def fail() -> None:
        with lean_linears(model):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert snapshot(model) == before


def test_gradients_are_those_of_peft() -> None:
    model = layers()
    model(states(5)).square().sum().backward()
    expected = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    with lean_linears(model):
        model(states(5)).square().sum().backward()
    found = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    assert found.keys() == expected.keys()
    assert len(found) == 4
    for key, value in found.items():
        assert torch.equal(value, expected[key])


def _merge(model: Any) -> None:
    model.merge_adapter()


def _train(model: Any) -> None:
    model.train()


def _two(model: Any) -> None:
    model.base_model.set_adapter(["policy", "other"])


def _hook(model: Any) -> None:
    for key, module in model.named_modules():
        if key.endswith("lora_A.policy"):
            module.register_forward_hook(lambda _, __, out: out * 3)


@pytest.mark.parametrize(
    ("settings", "change"),
    [({"use_dora": True}, None), ({"lora_bias": True}, None), ({}, _merge), ({"lora_dropout": 0.5}, _train),
     ({}, _two), ({}, _hook)],
    ids=["dora", "bias", "merged", "dropout", "two adapters", "hook"],
)  # fmt: skip
def test_what_is_not_plain_keeps_its_own_forward(
    settings: dict[str, Any], change: Callable[[Any], None] | None
) -> None:
    model = layers(**settings)
    if change is not None:
        change(model)
    with torch.inference_mode():
        torch.manual_seed(7)
        expected = model(states(4))
        with lean_linears(model):
            assert not replaced(model)
            torch.manual_seed(7)
            assert torch.equal(model(states(4)), expected)


def test_dropout_that_is_off_does_not_count() -> None:
    model = layers(lora_dropout=0.5).train()
    with evaluation_mode(model), torch.inference_mode():
        expected = model(states(4))
        with lean_linears(model):
            assert len(replaced(model)) == 2
            assert float((model(states(4)) - expected).abs().max()) < 1e-5


def test_autocast_is_left_alone() -> None:
    model = layers()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(), lean_linears(model):
        assert not replaced(model)


def test_a_whole_model_gives_the_same_logits_and_is_sampled_this_way(tiny_model: Any, tiny_codec: ChatCodec) -> None:
    model = add_lora(tiny_model)
    generator = torch.Generator().manual_seed(2)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.1, generator=generator)
    ids = torch.randint(70, 300, (4, 9), generator=generator)
    with evaluation_mode(model), torch.inference_mode():
        expected = model(input_ids=ids).logits
        with lean_linears(model):
            assert float((model(input_ids=ids).logits - expected).abs().max()) < 1e-5
    seen: list[int] = []
    tiny_model.lm_head.register_forward_hook(lambda *_: seen.append(len(replaced(model))))
    request = SampleRequest(tuple(ids[0].tolist()), (0,))
    EmbeddedSampler(model, tiny_codec).sample([request], SamplingConfig(max_new_tokens=3))
    assert len(seen) == 3
    assert min(seen) > 0
    assert not replaced(model)
