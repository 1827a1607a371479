"""The policy that is trained: a causal language model of transformers, with LoRA adapters, that plays turns.

Invariants:
    * a turn's ``prompt_ids`` and ``output_ids`` are what the sampler saw and produced; its text and segments are
      read off those ids' bytes, and nothing is tokenised again; under a prompt style of another grammar the text is
      that grammar read into the environment's, and ``raw_text`` what the ids say;
    * a prompt is never cut silently;
    * of the adapters on the one base, ``policy`` is the one that is trained (see ``adapters``).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from mempo_env.errors import UserError
from mempo_env.segments import token_segments

from .adapters import (
    ADAPTER_FILE,
    POLICY,
    REFERENCE,
    adapter_names,
    adapter_parameters,
    add_frozen_copy,
    evaluation_mode,
    load_adapter,
    save_adapter,
    use_adapter,
)
from .base import TurnOutput, TurnRequest
from .codec import ChatCodec, CodecTokenCounter
from .contexts import ContextStrategy
from .models import save_plain
from .sampler import EmbeddedSampler, Sampler, SampleRequest, SampleResult
from .settings import SamplingConfig
from .wording import OWN_WORDING, Wording

_LOG = logging.getLogger(__name__)


class PromptTooLongError(UserError):
    """A prompt is longer than the model or ``max_prompt_tokens`` allows, and nothing of it may be cut."""


class LoraPolicy:
    """Plays turns with a language model.

    Args:
        model: A causal LM, plain or under peft with an adapter called ``policy`` (see ``models.add_lora``).
        codec: Of the same model.
        context: What the model is shown at a turn.
        sampling: How outputs are sampled; may be exchanged at any time.
        max_prompt_tokens: Longest input; None: what the model's positions leave beside the longest output.
        truncate_tool_result: Whether to cut the tool result at its end where a prompt would be longer; each cut is
            logged and counted in ``truncated_prompts``. Without it such a prompt is an error.
        sampler: Who samples; None: an ``EmbeddedSampler`` of this model.
        wording: Prompt style of the model; by default the project's own.
    """

    name = "policy"

    def __init__(
        self,
        model: nn.Module,
        codec: ChatCodec,
        context: ContextStrategy,
        sampling: SamplingConfig | None = None,
        *,
        max_prompt_tokens: int | None = None,
        truncate_tool_result: bool = False,
        sampler: Sampler | None = None,
        wording: Wording = OWN_WORDING,
    ) -> None:
        self.model = model
        self.codec = codec
        self.context = context
        self.sampling = sampling or SamplingConfig()
        self.max_prompt_tokens = max_prompt_tokens
        self.truncate_tool_result = truncate_tool_result
        self.wording = wording
        self.sampler: Sampler = sampler or EmbeddedSampler(model, codec, wording.style.tags)
        self.truncated_prompts = 0

    # Playing ----------------------------------------------------------------------------------------------------------

    def act(self, requests: Sequence[TurnRequest]) -> list[TurnOutput]:
        """Answers each request, in order.

        Raises:
            UserError: A prompt is longer than the model or ``max_prompt_tokens`` allows.
        """
        prompts = [self.prompt_ids(request) for request in requests]
        samples = [
            SampleRequest(prompt, (key.seed, key.step, key.group_id, key.rollout_id, key.turn))
            for prompt, key in zip(prompts, (request.key for request in requests), strict=True)
        ]
        results = self.sampler.sample(samples, self.sampling)
        return [self._output(prompt, result) for prompt, result in zip(prompts, results, strict=True)]

    @property
    def prompt_limit(self) -> int | None:
        """Longest input in tokens; None where neither the model nor ``max_prompt_tokens`` sets a limit."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        limits = [] if positions is None else [int(positions) - self.sampling.max_new_tokens]
        return min([*limits, *([self.max_prompt_tokens] if self.max_prompt_tokens else [])], default=None)

    def prompt_ids(self, request: TurnRequest) -> tuple[int, ...]:
        """The prompt of a request, as ``act`` gives it to the sampler.

        Raises:
            PromptTooLongError: It is longer than the model or ``max_prompt_tokens`` allows.
        """
        ids = self.codec.encode_chat(self.wording.messages(self.context, request))
        limit = self.prompt_limit
        if limit is None or len(ids) <= limit:
            return tuple(ids)
        full, counter = request.observation["tool_result"], CodecTokenCounter(self.codec)
        length, keep = len(ids), counter.count(full)
        while self.truncate_tool_result and len(ids) > limit and keep > 0:
            keep = max(0, keep - (len(ids) - limit))
            observation = request.observation | {"tool_result": counter.truncate(full, keep)}
            shorter = replace(request, observation=observation)
            ids = self.codec.encode_chat(self.wording.messages(self.context, shorter))
        if len(ids) > limit:
            raise PromptTooLongError(
                f"turn {request.key.turn} of {request.key.group_id}: a prompt of {length} tokens exceeds {limit}; "
                "raise max_prompt_tokens or lower max_new_tokens where the model allows it, ask fewer goals, show less "
                "per query (topk, max_passage_tokens), use the memory context, or set truncate_tool_result"
            )
        self.truncated_prompts += 1
        _LOG.warning("tool result cut to %d tokens: the prompt had %d, the limit is %d", keep, length, limit)
        return tuple(ids)

    def _output(self, prompt: tuple[int, ...], result: SampleResult) -> TurnOutput:
        pieces = self.codec.token_bytes(result.output_ids)
        text, raw_text = self.wording.read(self.codec.decode(result.output_ids))
        return TurnOutput(
            text=text,
            n_prompt=len(prompt),
            n_output=len(result.output_ids),
            prompt_ids=prompt,
            output_ids=result.output_ids,
            logprobs=result.logprobs,
            segments=token_segments(pieces, self.wording.style.tags),
            stop_reason=result.stop_reason,
            weights_version=result.weights_version,
            raw_text=raw_text,
        )

    # Facts ------------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def temperature(self) -> float:
        """The temperature that the sampler's log-probabilities are of: 1 where decoding is greedy."""
        return 1.0 if self.sampling.greedy else self.sampling.temperature

    @property
    def weights_version(self) -> int:
        """Optimizer steps behind the weights that sample; setting it has the sampler take the current weights over."""
        return self.sampler.weights_version

    @weights_version.setter
    def weights_version(self, version: int) -> None:
        self.sampler.update_weights(version)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters; none on a plain model."""
        return adapter_names(self.model)

    @property
    def reference_adapter(self) -> str | None:
        """The adapter that is the reference policy: the frozen copy if there is one, else None, which is the base."""
        return REFERENCE if REFERENCE in self.adapters else None

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that ask for a gradient."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    # Modes and adapters -----------------------------------------------------------------------------------------------

    def train_mode(self) -> None:
        """Switches dropout on, where there is any."""
        self.model.train()

    def evaluating(self) -> AbstractContextManager[None]:
        """Switches dropout off for a while."""
        return evaluation_mode(self.model)

    def use_adapter(self, name: str | None) -> AbstractContextManager[None]:
        """Computes with another adapter for a while; None: adapters off. See ``adapters.use_adapter``."""
        return use_adapter(self.model, name)

    def add_frozen_copy(self, name: str = REFERENCE) -> None:
        """Adds an adapter with the policy's weights of now, which no optimizer will touch."""
        add_frozen_copy(self.model, POLICY, name)

    def add_trainable_copy(self, name: str) -> None:
        """Adds an adapter with the policy's weights of now, to be trained for another end, such as a critic."""
        add_frozen_copy(self.model, POLICY, name)
        for parameter in self.adapter_parameters(name):
            parameter.requires_grad_(True)

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters of one adapter."""
        return adapter_parameters(self.model, name)

    # Files ------------------------------------------------------------------------------------------------------------

    def save_adapter(self, folder: Path, name: str = POLICY) -> Path:
        """Writes one adapter, in peft's layout, to ``folder/name``; returns that."""
        return save_adapter(self.model, folder, name)

    def load_adapter(self, folder: Path, name: str = POLICY) -> None:
        """Reads one adapter's weights, in place.

        Raises:
            UserError: The file is missing or broken, or belongs to an adapter of another shape.
        """
        load_adapter(self.model, folder, name)

    def save_adapters(self, folder: Path) -> None:
        """Writes all adapters, each in a folder of its name."""
        for name in self.adapters:
            self.save_adapter(folder, name)

    def load_adapters(self, folder: Path) -> None:
        """Reads all adapters, in place.

        Raises:
            UserError: The folder holds other adapters than the policy has, or one of them does not fit.
        """
        found = {path.parent.name for path in folder.glob(f"*/{ADAPTER_FILE}")}
        if found != set(self.adapters):
            raise UserError(
                f"{folder} holds the adapters {', '.join(sorted(found)) or 'none'}, but this policy has "
                f"{', '.join(self.adapters) or 'none'}; was the run made with other settings?"
            )
        for name in self.adapters:
            self.load_adapter(folder, name)

    def save_base(self, folder: Path) -> None:
        """Writes the base model, without adapters, and the tokenizer; ``models.load_model`` reads them.

        Args:
            folder: Must not exist; it appears when it is complete.

        Raises:
            UserError: It exists, or the disk is full or not writable.
        """
        if folder.exists():
            raise UserError(f"{folder} exists already; choose another folder")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as aside:
                written = Path(aside) / "model"
                save_plain(self.model, self.codec.tokenizer, written)
                os.replace(written, folder)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error}; free space or choose another folder") from error
