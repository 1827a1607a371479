"""What says which agent is measured: plain settings, from which ``make_agent`` builds it. Imports no torch.

Invariant: a spec that was constructed is consistent: each setting belongs to its kind of agent, and no number is out of
range. What needs the model, the server or the environment to be known is checked by ``make_agent``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from mempo_env.errors import UserError, unknown_name

Kind = Literal["run", "model", "expert", "random", "chat"]
SystemRole = Literal["auto", "keep", "fold"]
DEFAULT_KEY_ENV = "OPENAI_API_KEY"

_POLICIES = ("run", "model")
_KINDS: dict[str, tuple[str, ...]] = {
    "run": ("run",),
    "model": ("model", "chat"),
    "gguf_file": ("model",),
    "adapter": ("model",),
    "dtype": ("model",),
    "device": _POLICIES,
    "truncate_tool_result": ("model",),
    "base_url": ("chat",),
    "api_key_env": ("chat",),
    "concurrency": ("chat",),
    "timeout": ("chat",),
    "retries": ("chat",),
    "stop_at_action": ("chat",),
    "send_seed": ("chat",),
    "system_role": ("model", "chat"),
    "prompt_style": ("model", "chat"),
    "greedy": (*_POLICIES, "chat"),
    "temperature": (*_POLICIES, "chat"),
    "max_new_tokens": (*_POLICIES, "chat"),
    "batch_size": _POLICIES,
}
"""Which kinds of agent a setting is for; a setting that is not listed is for all."""


@dataclass(frozen=True)
class AgentSpec:
    """Which agent is measured, and how it plays.

    Attributes:
        kind: ``run`` (a run folder), ``model`` (weights of your own), ``expert`` (scripted), ``random`` (random text)
            or ``chat`` (a server that speaks the chat-completions protocol).
        run: Run folder, for ``run``.
        model: For ``model``: ``smollm2``, hub id, folder or ``.gguf`` file. For ``chat``: the server's name of it.
        gguf_file: Name of a GGUF file in the folder or hub repository.
        adapter: Folder or hub id of a PEFT adapter to put on the model.
        base_url: Of the server, such as ``http://localhost:8000/v1``; empty: the client's own default.
        api_key_env: Environment variable that holds the key; a server of your own needs none.
        concurrency: Most requests under way at a time.
        timeout: Seconds without an answer after which a request has failed.
        retries: How often a failed request is sent again, with growing pauses.
        stop_at_action: Whether the server is asked to stop where an action block closes.
        send_seed: Whether a seed, derived from the turn, is sent.
        system_role: ``keep`` the instructions in a system message, ``fold`` them into the first user message, or
            ``auto``: fold where the model or server refuses the system role.
        context: What the model is shown at a turn: a context strategy, such as ``memory`` or ``window-3``.
        prompt_style: How prompts and outputs are worded; empty: ``mem1`` under the context of that name, else ``own``.
        greedy: Take the likeliest token.
        temperature: Divides the logits, where decoding is not greedy.
        max_new_tokens: Longest output.
        batch_size: Most rows decoded side by side.
        truncate_tool_result: Whether a prompt that is too long is shortened at the tool result, or is an error.
        dtype: Type of the weights.
        device: Where the model runs.
        name: How tables call the agent; empty: made from kind and model.

    Raises:
        UserError: A setting is missing, out of range, or not for this kind of agent.
    """

    kind: Kind
    run: str = ""
    model: str = ""
    gguf_file: str = ""
    adapter: str = ""
    base_url: str = ""
    api_key_env: str = DEFAULT_KEY_ENV
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 4
    stop_at_action: bool = True
    send_seed: bool = True
    system_role: SystemRole = "auto"
    context: str = "memory"
    prompt_style: str = ""
    greedy: bool = True
    temperature: float = 1.0
    max_new_tokens: int = 512
    batch_size: int = 128
    truncate_tool_result: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    name: str = ""

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_fields_of_kind()
        self._check_numbers()
        if self.gguf_file and self.model.endswith(".gguf"):
            raise UserError(f"model={self.model} is a GGUF file already; drop gguf_file={self.gguf_file}")
        if not self.context:
            raise UserError("context is empty; choose a context strategy, such as memory or history")

    @property
    def style(self) -> str:
        """The prompt style that is meant: an explicit one, else the context's own."""
        return self.prompt_style or ("mem1" if self.context == "mem1" and self.kind in ("model", "chat") else "own")

    @property
    def label(self) -> str:
        """How tables call the agent."""
        if self.name:
            return self.name
        if self.kind == "run":
            return self.run
        named = self.model + (f":{self.gguf_file}" if self.gguf_file else "")
        return named + (f"+{self.adapter}" if self.adapter else "") if named else self.kind

    def _check_choices(self) -> None:
        choices = {
            "kind": (self.kind, ("run", "model", "expert", "random", "chat")),
            "system_role": (self.system_role, ("auto", "keep", "fold")),
            "dtype": (self.dtype, ("float32", "bfloat16")),
            "device": (self.device, ("auto", "cpu", "cuda")),
        }
        for what, (value, known) in choices.items():
            if value not in known:
                raise unknown_name(what, value, known)

    def _check_fields_of_kind(self) -> None:
        for field in dataclasses.fields(self):
            kinds = _KINDS.get(field.name)
            if kinds is not None and self.kind not in kinds and getattr(self, field.name) != field.default:
                raise UserError(
                    f"{field.name} does not go with an agent of kind {self.kind}; it is for: {', '.join(kinds)}"
                )
        needed = {
            "run": ("run", "a run folder"),
            "model": ("model", "a hub id, a folder or a .gguf file"),
            "chat": ("model", "the server's name of the model"),
        }.get(self.kind)
        if needed and not getattr(self, needed[0]):
            raise UserError(f"an agent of kind {self.kind} needs {needed[0]}: {needed[1]}")

    def _check_numbers(self) -> None:
        for name, least in (("concurrency", 1), ("retries", 0), ("max_new_tokens", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in ("timeout", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name}={getattr(self, name)} must be a positive number")
        if self.greedy and self.temperature != 1.0:
            raise UserError(f"temperature={self.temperature} has no effect where decoding is greedy; set greedy=False")
