"""Several LoRA adapters on one base model: switching, frozen copies, files.

Invariants:
    * what is switched comes back as it was, active adapter and trainable parameters alike, also after an exception;
    * a frozen copy never asks for a gradient;
    * reading an adapter changes the values of its parameters, never which objects they are.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from mempo_env.errors import UserError

POLICY, REFERENCE = "policy", "reference"
ADAPTER_FILE = "adapter_model.safetensors"


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the adapters; none on a plain model."""
    return tuple(model.peft_config) if isinstance(model, PeftModel) else ()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch for a while, and puts its generators back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switches dropout off, and every module back to its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def use_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Computes with another adapter for a while. Finish a backward pass before switching.

    Args:
        model: A causal LM, plain or under peft.
        name: An adapter; None: adapters off. On a plain model None changes nothing.

    Raises:
        ValueError: There is no such adapter.
    """
    if name is not None:
        _require(model, name)
    if not isinstance(model, PeftModel):
        yield
        return
    active = model.active_adapter
    disabled = any(layer.disable_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    with _same_gradients(model):  # peft makes whatever it activates trainable
        _activate(model, active if name is None else name, disabled=name is None)
    try:
        yield
    finally:
        with _same_gradients(model):
            _activate(model, active, disabled=disabled)


def add_frozen_copy(model: nn.Module, source: str, name: str) -> None:
    """Adds an adapter with another one's weights of now, which no optimizer will touch.

    Args:
        model: A causal LM under peft.
        source: What to copy.
        name: What to call the copy.

    Raises:
        ValueError: There is one of that name, or no ``source``.
    """
    _require(model, source)
    if name in adapter_names(model):
        raise ValueError(f"there is an adapter {name!r} already")
    known = {id(parameter) for parameter in model.parameters()}
    with _same_gradients(model), seeded(0, next(model.parameters()).device):
        model.add_adapter(name, copy.deepcopy(model.peft_config[source]))  # type: ignore[operator, index]
    for parameter in model.parameters():
        if id(parameter) not in known:
            parameter.requires_grad_(False)
    set_peft_model_state_dict(model, adapter_state(model, source), adapter_name=name)


def adapter_parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters of one adapter, in the model's order.

    Raises:
        ValueError: There is no such adapter.
    """
    _require(model, name)
    found = []
    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        for container in layer.adapter_layer_names:
            adapters = getattr(layer, container)
            if name in adapters:
                part = adapters[name]
                found += [part] if isinstance(part, nn.Parameter) else [*part.parameters()]
    return found


def adapter_state(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The weights of one adapter, by peft's names."""
    return dict(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))


def save_adapter(model: nn.Module, folder: Path, name: str) -> Path:
    """Writes one adapter in peft's layout, so that ``PeftModel.from_pretrained`` reads it too.

    Args:
        model: A causal LM under peft.
        folder: Gets a folder of the adapter's name.
        name: Which one.

    Returns:
        The adapter's folder.

    Raises:
        ValueError: There is no such adapter.
    """
    _require(model, name)
    # The embeddings are not trained; peft would ask the hub whether they were resized.
    model.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)  # type: ignore[operator]
    return folder / name


def load_adapter(model: nn.Module, folder: Path, name: str) -> None:
    """Reads an adapter's weights into the adapter of that name.

    Args:
        model: A causal LM under peft.
        folder: What ``save_adapter`` was given.
        name: Which one.

    Raises:
        UserError: The file is missing or broken, or belongs to an adapter of another shape.
        ValueError: There is no such adapter on the model.
    """
    _require(model, name)
    path = folder / name / ADAPTER_FILE
    try:
        state = load_file(path, device=str(next(model.parameters()).device))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); is {folder} a folder of adapters?") from error
    shapes = {key: tuple(value.shape) for key, value in adapter_state(model, name).items()}
    if shapes != {key: tuple(value.shape) for key, value in state.items()}:
        raise UserError(f"{path} is of another adapter: rank, targets or base model differ from this policy's")
    set_peft_model_state_dict(model, state, adapter_name=name)


def attach_adapter(model: PreTrainedModel, where: str) -> PeftModel:
    """Puts a stored adapter on a plain model, as its ``policy``; nothing of it is trainable.

    Args:
        model: A plain causal LM; it is changed in place.
        where: A folder that peft wrote, or a hub id.

    Returns:
        The model under peft, in evaluation mode.

    Raises:
        UserError: There is no such adapter, it cannot be read, or it was made for another model.
    """
    if Path(where).is_dir() and not (Path(where) / "adapter_config.json").is_file():
        inside = sorted(path.parent.name for path in Path(where).glob("*/adapter_config.json"))
        hint = f"give one of its folders: {', '.join(inside)}" if inside else "give a folder that peft wrote"
        raise UserError(f"{where} holds no adapter_config.json; {hint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft only warns of layers that the model or the file lacks: see below
            wrapped = PeftModel.from_pretrained(model, where, adapter_name=POLICY, is_trainable=False)
        stored = {name for name in load_peft_weights(where, device="cpu") if ".lora_" in name}
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"adapter {where} cannot be put on this model: {reason}") from error
    differing = stored ^ {name for name in adapter_state(wrapped, POLICY) if ".lora_" in name}
    if differing:
        raise UserError(
            f"adapter {where} was made for another model: {len(differing)} layers differ, such as {min(differing)}"
        )
    return wrapped.eval()


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the base model by their own names, as if there were no adapters."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    prefixes = tuple(
        f"{path}.{container}."
        for path, layer in base.named_modules()
        if isinstance(layer, BaseTunerLayer)
        for container in layer.adapter_layer_names
    )
    return {
        key.replace(".base_layer.", "."): value
        for key, value in base.state_dict().items()
        if not key.startswith(prefixes)
    }


def _require(model: nn.Module, name: str) -> None:
    if name not in adapter_names(model):
        raise ValueError(f"there is no adapter {name!r}; there are {', '.join(adapter_names(model)) or 'none'}")


def _activate(model: PeftModel, name: str, *, disabled: bool) -> None:
    model.set_adapter(name)
    if disabled:
        model.base_model.disable_adapter_layers()
    else:
        model.base_model.enable_adapter_layers()


@contextmanager
def _same_gradients(model: nn.Module) -> Iterator[None]:
    """Leaves every present parameter as trainable as it was."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, trainable in before:
            parameter.requires_grad_(trainable)
