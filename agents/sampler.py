"""Prompt ids in; output ids, log-probabilities and stop reason out.

``EmbeddedSampler`` is a decode loop of our own over the model's forward and its cache: no top-k, no top-p, no
penalties. The ``Sampler`` protocol lets an engine elsewhere take its place.

Invariants:
    * a row's noise is a function of its key alone, never of the global generators or of who else is in the batch;
    * ``logprobs[i]`` is the float32 log-probability of ``output_ids[i]`` under the distribution it was drawn from: the
      model's at the given temperature; at temperature 1 where decoding is greedy;
    * the token that stopped a row is the last of its ``output_ids``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache

from mempo_env.actions import OWN_TAGS, TagSet, action_end

from .adapters import evaluation_mode
from .attention import single_queries
from .codec import ChatCodec
from .drawing import choose, row_noise
from .kv_cache import new_cache, plain_cache
from .lean_linear import lean_linears
from .row_batches import TokenRow, prefix_batch, shared_clusters
from .settings import SamplingConfig
from .shared_prefix import SHARING_MODELS, clusters

StopReason = Literal["action", "eos", "length"]
_LAST_SIGN = b">"  # every closing tag ends in it, so a token without it cannot close a block
_ENDS_TURN, _MAY_CLOSE = 1, 2
_MAX_TOKENS = 65_536


@dataclass(frozen=True)
class SampleRequest:
    """One prompt and the key of its noise, such as (seed, step, group, rollout, turn)."""

    prompt_ids: tuple[int, ...]
    key_seed: tuple[int | str, ...]


@dataclass(frozen=True)
class SampleResult:
    """One output.

    Attributes:
        output_ids: What was sampled, the stop token included.
        logprobs: Log-probability of each.
        stop_reason: ``action`` (an action block closed), ``eos`` or ``length``.
        weights_version: Which weights sampled it.
    """

    output_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReason
    weights_version: int = 0


class Sampler(Protocol):
    """Samples outputs; knows which weights it has."""

    @property
    def weights_version(self) -> int:
        """Optimizer steps behind the weights that sample now."""
        ...

    def update_weights(self, version: int) -> None:
        """Takes over the policy's current weights, which are said to be ``version``."""
        ...

    def sample(self, requests: Sequence[SampleRequest], config: SamplingConfig) -> list[SampleResult]:
        """Answers each request, in order."""
        ...


class EmbeddedSampler:
    """Samples from a model of this process, on its device, with its active adapter.

    Rows are sorted by length and cut into batches. What prompts of a batch have in common is read once: instructions
    and task of a group, the whole prompt at its first turn (see ``shared_prefix``).

    Args:
        model: A causal LM of transformers, plain or under peft.
        codec: Of the same model: end-of-turn ids, and bytes of tokens to see where an action ends.
        tags: Tags of the outputs, of which some end an action.
        max_tokens: Most positions of a batch's cache (rows x longest prompt and output, shared prefixes included); a
            longer single row is a batch of its own.
    """

    def __init__(
        self, model: nn.Module, codec: ChatCodec, tags: TagSet = OWN_TAGS, *, max_tokens: int = _MAX_TOKENS
    ) -> None:
        self.model = model
        self.codec = codec
        self.max_tokens = max_tokens
        self._tags = tags
        self._closers = tuple(closer.encode() for closer in tags.action_closers)
        self.weights_version = 0
        self._flags = torch.zeros(0, dtype=torch.uint8)

    def update_weights(self, version: int) -> None:
        """Records the version; the weights are the model's own."""
        self.weights_version = version

    def sample(self, requests: Sequence[SampleRequest], config: SamplingConfig) -> list[SampleResult]:
        """Answers each request, in order.

        Args:
            requests: Any number; each needs a prompt.
            config: Temperature or greedy, longest output, rows per batch.

        Returns:
            One result per request.

        Raises:
            ValueError: A prompt is empty.
            FloatingPointError: The model gave a distribution that is not finite.
        """
        if any(not request.prompt_ids for request in requests):
            raise ValueError("each request needs at least one prompt id")
        results: dict[int, SampleResult] = {}
        with evaluation_mode(self.model), single_queries(self.model), lean_linears(self.model), torch.inference_mode():
            for indices in self._batches(requests, config):
                batch = [requests[index] for index in indices]
                results.update(zip(indices, self._decode(batch, config), strict=True))
        return [results[index] for index in range(len(requests))]

    def _batches(self, requests: Sequence[SampleRequest], config: SamplingConfig) -> Iterator[list[int]]:
        """Indices of rows to decode side by side, longest prompts first; those that begin alike stand together."""
        batch: list[int] = []
        longest = 0
        order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt_ids), i))
        if len(requests) > config.batch_size:
            found = clusters([request.prompt_ids for request in requests])
            place = {index: (-cluster.shared, cluster.rows[0]) for cluster in found for index in cluster.rows}
            order.sort(key=place.__getitem__)
        for index in order:
            own = len(requests[index].prompt_ids) + config.max_new_tokens
            longest = max(longest, own)  # clusters come one after another, so the first row need not be the longest
            if batch and (len(batch) == config.batch_size or longest * (len(batch) + 1) > self.max_tokens):
                yield batch
                batch, longest = [], own
            batch.append(index)
        if batch:
            yield batch

    def _decode(self, requests: Sequence[SampleRequest], config: SamplingConfig) -> list[SampleResult]:
        device = next(self.model.parameters()).device
        size, steps = len(requests), config.max_new_tokens
        noise = (
            None if config.greedy else torch.stack([row_noise(r.key_seed, steps) for r in requests]).to(device)
        )  # (B, N)
        ids = torch.zeros((size, steps), dtype=torch.long)  # (B, N)
        logprobs = torch.zeros((size, steps))  # (B, N)
        lengths, reasons = [steps] * size, ["length"] * size
        # Lines of the running batch: the row each one belongs to, and whether that row is still being written.
        rows, running = list(range(size)), [True] * size

        logits, cache, mask, position = self._prefill([request.prompt_ids for request in requests], steps, device)
        width = mask.shape[1] - steps
        padded = not bool(mask[:, :width].all())
        for step in range(steps):
            lines = torch.tensor(rows)  # (b,)
            chosen, chosen_logprobs = choose(
                logits, None if noise is None else noise[lines.to(device), step], config.temperature
            )  # (b,), (b,)
            on_cpu = chosen.cpu()
            ids[lines, step], logprobs[lines, step] = on_cpu, chosen_logprobs.cpu()
            flags = self._token_flags(logits.shape[-1])[on_cpu]  # (b,)
            for line in flags.nonzero().flatten().tolist():
                row = rows[line]
                if running[line] and (reason := self._stops(int(flags[line]), ids[row, : step + 1])):
                    running[line], lengths[row], reasons[row] = False, step + 1, reason
            n_running = sum(running)
            if not n_running or step + 1 == steps:
                break
            # Dropping lines copies the cache, so finished ones leave by the eighth, not one by one.
            if (len(rows) - n_running) * 8 >= len(rows):
                keep = [line for line, runs in enumerate(running) if runs]
                kept = torch.tensor(keep, device=device)
                cache.batch_select_indices(kept)
                chosen, mask, position = chosen[kept], mask[kept], position[kept]
                rows, running = [rows[line] for line in keep], [True] * len(keep)
            position = position + 1  # (b, 1)
            logits = self._forward(
                chosen[:, None], mask[:, : width + step + 1] if padded else None, position, cache
            )  # (b, V)
        return [
            self._result(ids[row], logprobs[row], length, reason)  # type: ignore[arg-type]
            for row, (length, reason) in enumerate(zip(lengths, reasons, strict=True))
        ]

    def _result(self, ids: Tensor, logprobs: Tensor, length: int, reason: StopReason) -> SampleResult:
        if not bool(logprobs[:length].isfinite().all()):
            raise FloatingPointError("the model's distribution is not finite: its weights have diverged")
        return SampleResult(
            tuple(ids[:length].tolist()), tuple(logprobs[:length].tolist()), reason, self.weights_version
        )

    def _prefill(
        self, prompts: Sequence[tuple[int, ...]], steps: int, device: torch.device
    ) -> tuple[Tensor, Cache, Tensor, Tensor]:
        """Reads the prompts; what they share, once.

        Args:
            prompts: B prompts.
            steps: Output positions N to leave room for in the mask.
            device: Where to compute.

        Returns:
            Logits (B, V) of the first output token, cache, attention mask (B, T + N), last position (B, 1). T is the
            longest shared prefix plus the longest rest; where there is no shared prefix, the longest prompt.
        """
        cache = new_cache(self.model.config)
        starts, before = self._read_prefixes(prompts, steps, cache, device)  # (B, P)
        rests = {prompt: prompt[start:] for prompt, start in zip(prompts, starts, strict=True)}
        distinct = {prompt: place for place, prompt in enumerate(rests)}
        width = max(map(len, rests.values()))
        ids = torch.full((len(distinct), width), self.codec.pad_id, dtype=torch.long)  # (U, S), padded on the left
        real = torch.zeros((len(distinct), width), dtype=torch.long)  # (U, S)
        for place, rest in enumerate(rests.values()):
            ids[place, width - len(rest) :] = torch.tensor(rest)
            real[place, width - len(rest) :] = 1
        first = torch.tensor([prompts.index(prompt) for prompt in distinct])  # (U,)
        if before.shape[1] and len(distinct) < len(prompts):
            cache.batch_select_indices(first.to(device))
        seen = torch.cat([before[first], real], dim=1).to(device)  # (U, T)
        positions = (seen.cumsum(-1) - 1).clamp(min=0)[:, -width:]  # (U, S)
        logits = self._forward(ids.to(device), None if bool(seen.all()) else seen, positions, cache)  # (U, V)
        mask = torch.cat([seen, seen.new_ones((len(distinct), steps))], dim=1)  # (U, T + N)
        last = positions[:, -1:]  # (U, 1)
        if len(distinct) < len(prompts):
            places = torch.tensor([distinct[prompt] for prompt in prompts], device=device)  # (B,)
            cache.batch_select_indices(places)
            logits, mask, last = logits[places], mask[places], last[places]  # (B, V), (B, T + N), (B, 1)
        return logits, cache, mask, last

    def _shares(self, cache: Cache) -> bool:
        config: Any = self.model.config
        return config.model_type in SHARING_MODELS and plain_cache(cache)

    def _read_prefixes(
        self, prompts: Sequence[tuple[int, ...]], steps: int, cache: Cache, device: torch.device
    ) -> tuple[list[int], Tensor]:
        """Reads what distinct prompts have in common into the cache of all rows, if that saves enough and fits.

        Every row's cache is as wide as the longest prefix and the longest rest together, which may be of two rows.

        Returns:
            Ids read of each prompt, and the mask (B, P) of what the cache holds, 0 where a prefix is shorter.
        """
        rows = [TokenRow(prompt, (0,)) for prompt in dict.fromkeys(prompts)]
        found = shared_clusters(rows) if len(rows) > 1 and self._shares(cache) else None
        if found is not None:
            rest = max(len(rows[index].prompt_ids) - cluster.shared for cluster in found for index in cluster.rows)
            width = max(cluster.shared for cluster in found) + rest + steps
            found = found if len(prompts) * width <= self.max_tokens else None
        if found is None:
            return [0] * len(prompts), torch.zeros((len(prompts), 0), dtype=torch.long)
        prefix = prefix_batch(rows, found, self.codec.pad_id, device)
        ids = prefix.input_ids  # (U, P)
        # No mask: padding stands on the right, where no token of a prefix sees it.
        self._forward(ids, None, torch.arange(ids.shape[1], device=device)[None], cache)
        place = {row.prompt_ids: index for index, row in enumerate(rows)}
        of_row = prefix.of_row[torch.tensor([place[prompt] for prompt in prompts], device=device)]  # (B,)
        cache.batch_select_indices(of_row)
        lengths = prefix.lengths[of_row]  # (B,)
        places = torch.arange(ids.shape[1], device=device)  # (P,)
        return lengths.tolist(), (places < lengths[:, None]).long().cpu()

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache) -> Tensor:
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            # An index, not a number: the slice a number takes is no matrix, and the product with it copies the head's
            # weights once per row (340 MB for six rows of SmolLM2).
            logits_to_keep=torch.tensor([ids.shape[1] - 1], device=ids.device),
        )
        last: Tensor = out.logits[:, -1]  # (b, V)
        return last

    def _token_flags(self, size: int) -> Tensor:
        """(V,) what to look at when a token was chosen: whether it ends the turn, or may close an action block."""
        if len(self._flags) != size:
            self._flags = torch.zeros(size, dtype=torch.uint8)
            for index, data in enumerate(self.codec.token_bytes(range(size))):
                if _LAST_SIGN in data:
                    self._flags[index] = _MAY_CLOSE
            for index in self.codec.eos_ids:
                if index < size:
                    self._flags[index] = _ENDS_TURN
        return self._flags

    def _stops(self, flag: int, ids: Tensor) -> StopReason | None:
        if flag == _ENDS_TURN:
            return "eos"
        data = b"".join(self.codec.token_bytes(ids.tolist()))
        if any(closer in data for closer in self._closers) and action_end(data, self._tags) is not None:
            return "action"
        return None
