"""Builds the agent that a spec names, for an environment.

Invariant: whatever can be known to be wrong before the first turn is a ``UserError`` here, not an episode's error
later. Runs are loaded by the layer above, which knows their configuration.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mempo_env.env import MemoryEnv
from mempo_env.errors import UserError
from mempo_env.prompt_styles import get_style

from .agent_spec import DEFAULT_KEY_ENV, AgentSpec
from .base import Agent
from .contexts import ContextStrategy, get_context, memory_mode
from .scripted import RandomTextAgent
from .scripted_expert import make_expert
from .textual import Tokens
from .wording import Wording

if TYPE_CHECKING:
    from .codec import ChatCodec


def make_agent(spec: AgentSpec, env: MemoryEnv, *, tokens: Tokens | None = None) -> Agent:
    """Builds an agent.

    Args:
        spec: Which one.
        env: An environment of the kind it will play in: its tools, budget and memory mode word the instructions.
        tokens: Prices the texts of agents without a model, and of a server that reports no usage; by default the
            regex counter. Give the codec of the policy that they are compared with.

    Returns:
        The agent.

    Raises:
        UserError: The spec's model, adapter, key, context or style cannot be used here, or its kind is ``run``.
    """
    context = get_context(spec.context)
    fits = memory_mode(context, env.memory_mode)
    if fits != env.memory_mode:
        raise UserError(
            f"the context {context.name} goes with an environment whose memory is {fits}; "
            f"this one has memory={env.memory_mode}"
        )
    wording = Wording.of(get_style(spec.style), env)
    if getattr(context, "needs_memory", False) and not wording.style.has_memory:
        raise UserError(
            f"prompt style {wording.style.name} has no memory to show under the context {context.name}; "
            "use the context history"
        )
    if spec.kind == "expert":
        return make_expert(env, tokens=tokens, context=context, memory_counter=env.token_counter)
    if spec.kind == "random":
        return RandomTextAgent(env.budget, tokens=tokens, context=context)
    if spec.kind == "chat":
        from .chat import ChatAgent

        return ChatAgent(spec, context, wording, tokens=tokens, api_key=_api_key(spec))
    if spec.kind == "model":
        return _policy(spec, context, wording)
    raise UserError(f"{spec.run} is a run folder; mempo_env.algos.job.load_run_policy loads it")


def _api_key(spec: AgentSpec) -> str:
    """The key from the environment; a server of one's own mostly asks for none, but the client demands some text."""
    key = os.environ.get(spec.api_key_env, "")
    if key:
        return key
    if not spec.base_url or spec.api_key_env != DEFAULT_KEY_ENV:
        raise UserError(
            f"${spec.api_key_env} is not set; put the server's key there, or name a server with base_url (--base-url)"
        )
    return "none"


def _policy(spec: AgentSpec, context: ContextStrategy, wording: Wording) -> Agent:
    """A policy that nobody trains: a model, with an adapter if one is named."""
    import torch

    from .adapters import attach_adapter
    from .models import load_model, make_codec
    from .policy import LoraPolicy
    from .settings import SamplingConfig

    if spec.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: this torch sees no CUDA device; use device=cpu or install a CUDA build of torch")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if spec.device == "auto" else spec.device
    model, tokenizer = load_model(spec.model, dtype=spec.dtype, gguf_file=spec.gguf_file or None, device=device)
    codec = make_codec(model, tokenizer)
    if spec.system_role == "fold" or (spec.system_role == "auto" and not _takes_system(codec)):
        wording = wording.folded()
    policy = LoraPolicy(
        attach_adapter(model, spec.adapter) if spec.adapter else model,
        codec,
        context,
        SamplingConfig(spec.temperature, spec.max_new_tokens, spec.greedy, spec.batch_size),
        truncate_tool_result=spec.truncate_tool_result,
        wording=wording,
    )
    policy.name = spec.label
    return policy


def _takes_system(codec: ChatCodec) -> bool:
    """Whether the model's chat template has a system role."""
    try:
        codec.encode_chat([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
    except UserError:
        return False
    return True
