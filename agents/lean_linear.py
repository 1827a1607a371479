"""Linear layers while tokens are sampled on a CPU: few rows at a time, no gradient.

Two things cost there what they do not cost in training. A product of a half-precision matrix with few rows is faster as
``(W @ x.T).T`` for some numbers of rows; and peft's forward of an adapted layer takes a dozen small operators, modules
and casts, which together last half as long as the layer's own product.

Invariants:
    * a layer gives what it gave before, up to rounding: the base product in the base's type, the adapter in its own,
      their sum in the wider one and rounded once, as in peft;
    * nothing is derived from weights ahead of time: values that change while the context is open are seen;
    * a layer that is anything but plain keeps its own forward, and so does every layer while gradients are recorded;
    * on leaving, also by an exception, each module's attributes are those it came with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

_HALF = (torch.bfloat16, torch.float16)
# Beyond, the two orders take equally long, or a prompt is read.
_MOST_ROWS = 64
Forward = Callable[..., Tensor]


@contextmanager
def lean_linears(model: nn.Module) -> Iterator[None]:
    """Has a model's plain linear layers, adapted or not, compute by the short way for a while.

    Which adapter is active is looked up when the context opens; switch before, not inside. Nothing is changed where the
    weights are not on a CPU, nor under autocast.

    Args:
        model: Any, plain or under peft, in evaluation mode.
    """
    if torch.is_autocast_enabled("cpu"):
        yield
        return
    with ExitStack() as stack:
        for module in _outermost(model):
            short = _adapted(module) if isinstance(module, LoraLinear) else _plain(module)
            if short is not None:
                stack.enter_context(_replaced(module, short))
        yield


def turns(rows: int, dtype: torch.dtype) -> bool:
    """Whether ``(W @ x.T).T`` is the faster order of a product.

    Median CPU ms of one thread with AVX-512 BF16 and no AMX, plain against turned, for the (1536, 576) matrix of
    SmolLM2 in bfloat16: 8 rows .58/.61, 12 rows .65/.63, 16 rows .74/.64, 24 rows .94/1.03, 32 rows 1.13/.92, 48 rows
    1.50/1.32, 64 rows 1.86/1.67. Turned, rows come in blocks of 16, and the last one costs the same full or not. In
    float32 neither order is ahead for all shapes.

    Args:
        rows: Of the input.
        dtype: Of input and weights.
    """
    return dtype in _HALF and 0 < rows <= _MOST_ROWS and (rows - 1) % 16 >= 11


def product(states: Tensor, weight: Tensor) -> Tensor:
    """The product of a linear layer, in the faster order.

    Args:
        states: (n, K).
        weight: (N, K), of the same type.

    Returns:
        (n, N), where turned as a view whose rows lie side by side.
    """
    if turns(states.shape[0], states.dtype):
        return torch.mm(weight, states.t()).t()  # (n, N)
    return torch.mm(states, weight.t())  # (n, N)


def _outermost(model: nn.Module) -> Iterator[nn.Module]:
    """Linear layers, adapted or plain; not those inside of an adapted one."""
    for module in model.children():
        if isinstance(module, (LoraLinear, nn.Linear)):
            yield module
        elif not hasattr(module, "base_layer"):  # another kind of adapted layer looks after its own parts
            yield from _outermost(module)


def _hooked(*modules: nn.Module) -> bool:
    """Whether someone listens to a module or has replaced its forward, so that it must be called."""
    return any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in modules)


def _simple(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.weight.device.type == "cpu" and layer.weight.layout == torch.strided


def _plain(layer: nn.Module) -> Forward | None:
    if not _simple(layer) or layer.weight.dtype not in _HALF or "forward" in vars(layer):
        return None
    assert isinstance(layer, nn.Linear)
    own, weight, bias = layer.forward, layer.weight, layer.bias

    def forward(states: Tensor) -> Tensor:
        rows = states.numel() // states.shape[-1]
        if torch.is_grad_enabled() or states.dtype != weight.dtype or not turns(rows, states.dtype):
            found: Tensor = own(states)
            return found
        out = product(states.reshape(rows, -1), weight).contiguous()  # (n, N)
        return (out if bias is None else out.add_(bias)).view(*states.shape[:-1], -1)  # (..., N)

    return forward


def _adapted(layer: LoraLinear) -> Forward | None:
    """The short forward of a layer with one plain active adapter, or with none; None where it is anything else."""
    base = layer.base_layer
    if type(layer) is not LoraLinear or not _simple(base) or layer.merged or _hooked(base) or "forward" in vars(layer):
        return None
    if layer.disable_adapters or not any(name in layer.lora_A for name in layer.active_adapters):
        return _plain_base(layer)
    if len(layer.active_adapters) != 1:
        return None
    (name,) = layer.active_adapters
    down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    drops = not isinstance(dropout, nn.Identity) and dropout.training
    if (
        name in layer.lora_variant
        or drops
        or _hooked(down, up, dropout)
        or not (_simple(down) and _simple(up))
        or down.bias is not None
        or up.bias is not None
        or down.weight.dtype != up.weight.dtype
        or not layer.cast_input_dtype_enabled
    ):
        return None
    own, weight, bias, scaling = layer.forward, base.weight, base.bias, float(layer.scaling[name])
    low, high = down.weight, up.weight
    wide = torch.promote_types(weight.dtype, low.dtype)

    def forward(states: Tensor, *args: object, **kwargs: object) -> Tensor:
        rows = states.numel() // states.shape[-1]
        if args or kwargs or rows > _MOST_ROWS or states.dtype != weight.dtype or torch.is_grad_enabled():
            found: Tensor = own(states, *args, **kwargs)
            return found
        flat = states.reshape(rows, -1)  # (n, K)
        out = product(flat, weight)  # (n, N)
        if bias is not None:
            out = out + bias  # (n, N)
        inner = torch.mm(flat.to(low.dtype), low.t())  # (n, r)
        # One operator widens the base's product and, where it was turned, lays it straight.
        total = torch.empty((rows, out.shape[1]), dtype=wide).copy_(out)  # (n, N)
        if wide == high.dtype:
            total.addmm_(inner, high.t(), alpha=scaling)
        else:
            total.add_(torch.mm(inner, high.t()), alpha=scaling)
        return total.to(weight.dtype).view(*states.shape[:-1], -1)  # (..., N)

    return forward


def _plain_base(layer: LoraLinear) -> Forward | None:
    """The short forward of a layer whose adapters are off."""
    short, own = _plain(layer.base_layer), layer.forward

    def forward(states: Tensor, *args: object, **kwargs: object) -> Tensor:
        if short is None or args or kwargs:
            found: Tensor = own(states, *args, **kwargs)
            return found
        return short(states)

    return None if short is None else forward


@contextmanager
def _replaced(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Gives one module another forward for a while."""
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
