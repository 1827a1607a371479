"""What a training step costs on a machine: seconds by part, bytes, and how far more machines help.

Each part is a roofline (Williams et al., CACM 52(4), 2009): the slower of computing and of moving bytes; decoding also
has the time to start its kernels. The rates of GPUs are a data sheet's, and the shares of them that are reached are
assumptions, named as such in the machine. **No GPU was measured.**

Invariant: pure functions of numbers; a part that is not modelled is not in the sum, and the docstring says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from cost_episodes import Context, EpisodeShape, episode_bytes, group_work, scoring_work
from cost_formulas import (
    ModelShape,
    Work,
    backward_flops,
    forward_flops,
    kv_bytes,
    logits_bytes,
    row,
    saved_bytes,
    training_bytes,
    weight_bytes,
)

from mempo_env.agents.head import chunk_size


@dataclass(frozen=True)
class Machine:
    """GPUs in nodes. Rates are per GPU.

    Attributes:
        name: What it is called.
        flops: FLOP/s of matrix products in the model's type.
        bandwidth: Bytes/s of memory.
        memory: Bytes of memory.
        link: Bytes/s to the other GPUs of a node, one way.
        network: Bytes/s to other nodes, one way.
        per_node: GPUs of a node.
        learn_share: Assumed share of ``flops`` that learner and scoring reach.
        prefill_share: The same of reading prompts.
        bandwidth_share: Assumed share of ``bandwidth``, ``link`` and ``network``.
        launch: Assumed seconds to start a kernel from Python; 0: a captured graph.
        hop: Assumed seconds of latency of a message between nodes.
        memory_share: Assumed share of ``memory`` that can be filled.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    link: float
    network: float
    per_node: int
    learn_share: float = 0.35
    prefill_share: float = 0.4
    bandwidth_share: float = 0.6
    launch: float = 6e-6
    hop: float = 1e-5
    memory_share: float = 0.9


# NVIDIA's data sheet of the H100 SXM5: 989 TFLOP/s dense bfloat16, 3.35 TB/s, 80 GB, NVLink 900 GB/s both ways
# together. Of the DGX H100: eight GPUs, a 400 Gb/s adapter for each.
H100 = Machine("H100 SXM", 989e12, 3.35e12, 80e9, 450e9, 50e9, 8)


@dataclass(frozen=True)
class Plan:
    """What a step does beside its episodes.

    Attributes:
        groups: Tasks per step.
        group_size: Episodes per task.
        context: What the policy is shown.
        share: Whether the learner computes shared prefixes once.
        checkpointing: Whether the update computes its layers again; on a GPU it shares no prefixes then.
        tail: Longest output of a batch over the mean: rows that are done wait for it.
        tool_seconds: A tool call, of the slowest episode of a turn.
        kernels: Kernels per layer of decoding one token, the adapter's among them; counted by ``cost_check.py``.
        scope: Of Q(m).
        reference: Whether a reference pass is made.
        batch: Most rows decoded side by side.
    """

    groups: int = 8
    group_size: int = 16
    context: Context = "memory"
    share: bool = True
    checkpointing: bool = False
    tail: float = 2.0
    tool_seconds: float = 0.2
    kernels: float = 60.0
    scope: Literal["joint", "per_goal"] = "joint"
    reference: bool = True
    batch: int = 64


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step by part; a step's parts follow one another in the trainer.

    Attributes:
        prefill: Reading prompts.
        decode: Writing outputs.
        tools: Waiting for tools.
        scoring: Q(m).
        reference: The reference pass.
        update: Forward and backward.
        communication: Summing gradients, and handing episodes round.
        busy: Share of the GPUs that have a group.
    """

    prefill: float
    decode: float
    tools: float
    scoring: float
    reference: float
    update: float
    communication: float
    busy: float

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by part."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "busy"}

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(self.parts.values())

    @property
    def dominant(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=self.parts.__getitem__)


def decode_bound(model: ModelShape, machine: Machine, rows: float, context: float, kernels: float) -> dict[str, float]:
    """Seconds of one decoding step of a batch, by what would bound it alone.

    Args:
        model: The model, its adapter not merged.
        machine: Where.
        rows: Rows side by side.
        context: Positions of each.
        kernels: Per layer.
    """
    work = Work(rows, rows * context, rows)
    moved = weight_bytes(model) + model.adapter * model.adapter_bytes + rows * context * kv_bytes(model)
    return {
        "compute": forward_flops(model, work) / (machine.flops * machine.prefill_share),
        "bandwidth": moved / (machine.bandwidth * machine.bandwidth_share),
        "launch": model.layers * kernels * machine.launch,
    }


def sampling_seconds(
    model: ModelShape, shape: EpisodeShape, plan: Plan, machine: Machine, groups: int
) -> tuple[float, float]:
    """Prefill and decode seconds of one GPU that plays so many groups side by side, turn by turn.

    Of a prompt only instructions and task are read once per group, as the embedded sampler does from turn to turn.
    """
    rows, common = groups * plan.group_size, shape.frame + shape.task
    batches = math.ceil(rows / plan.batch)
    prefill = decode = 0.0
    for prompt, output in zip(shape.prompts(plan.context), shape.outputs(), strict=True):
        rest = row(max(prompt - common, 0), 0, common)
        work = Work(groups * common + rows * rest.tokens, rows * rest.pairs + groups * common**2 / 2, rows)
        prefill += forward_flops(model, work) / (machine.flops * machine.prefill_share)
        bound = max(decode_bound(model, machine, rows / batches, prompt + output / 2, plan.kernels).values())
        decode += batches * plan.tail * output * bound
    return prefill, decode


def all_reduce_seconds(machine: Machine, gpus: int, size: float) -> float:
    """Summing ``size`` bytes over all GPUs in rings: within nodes, then each GPU its share between nodes."""
    inside = min(gpus, machine.per_node)
    nodes = math.ceil(gpus / machine.per_node)
    within = 2 * (inside - 1) / inside * size / (machine.link * machine.bandwidth_share)
    between = 2 * (nodes - 1) / nodes * size / inside / (machine.network * machine.bandwidth_share)
    return within + between + 2 * math.log2(max(nodes, 1)) * machine.hop


def broadcast_seconds(machine: Machine, size: float) -> float:
    """Sending ``size`` bytes to all nodes in a pipeline: as long as one of them takes to receive it."""
    return size / (machine.network * machine.bandwidth_share)


def step_cost(model: ModelShape, shape: EpisodeShape, plan: Plan, machine: Machine, gpus: int) -> StepCost:
    """Seconds of a step of the trainer as it is: a group is played and learned from whole on one GPU.

    Not modelled: starting kernels outside decoding, Python, environments beside their tools, padding.
    """
    owners = min(gpus, plan.groups)
    groups = math.ceil(plan.groups / gpus)
    prefill, decode = sampling_seconds(model, shape, plan, machine, groups)
    one = group_work(shape, plan.context, plan.group_size, share=plan.share)
    rate = machine.flops * machine.learn_share
    forward = forward_flops(model, one)
    episodes = plan.groups * plan.group_size
    memories = math.ceil(episodes / gpus) / plan.group_size  # Q(m) is shared out by memory, not by group
    scoring = memories * forward_flops(model, scoring_work(shape, plan.group_size, plan.scope)) / rate
    gathered = episodes * episode_bytes(shape, plan.context) / (machine.network * machine.bandwidth_share)
    return StepCost(
        prefill=prefill,
        decode=decode,
        tools=plan.tool_seconds * (shape.n_turns - 1),
        scoring=scoring,
        reference=groups * forward / rate if plan.reference else 0.0,
        update=groups * update_flops(model, shape, plan) / rate,
        communication=all_reduce_seconds(machine, gpus, model.adapter * model.adapter_bytes)
        + (gathered if gpus > machine.per_node else 0.0),
        busy=owners / gpus,
    )


def update_flops(model: ModelShape, shape: EpisodeShape, plan: Plan) -> float:
    """FLOPs of a group's forward and backward passes."""
    one = group_work(shape, plan.context, plan.group_size, share=plan.share and not plan.checkpointing)
    return forward_flops(model, one) + backward_flops(model, one, checkpointing=plan.checkpointing)


def flops_per_episode(model: ModelShape, shape: EpisodeShape, plan: Plan) -> dict[str, float]:
    """FLOPs of an episode by part, as one of a group."""
    one = group_work(shape, plan.context, plan.group_size, share=plan.share)
    prompts, outputs, common = shape.prompts(plan.context), shape.outputs(), shape.frame + shape.task
    prefill = decode = 0.0
    for prompt, output in zip(prompts, outputs, strict=True):
        rest, shared = row(max(prompt - common, 0), 0, common), row(common, 0)
        prefill += forward_flops(model, replace(rest, outputs=1)) + forward_flops(model, shared) / plan.group_size
        decode += forward_flops(model, replace(row(0, output, prompt), outputs=output))
    return {
        "prefill": prefill,
        "decode": decode,
        "scoring": forward_flops(model, scoring_work(shape, plan.group_size, plan.scope)) / plan.group_size,
        "reference": forward_flops(model, one) / plan.group_size,
        "update": update_flops(model, shape, plan) / plan.group_size,
    }


def memory_of(model: ModelShape, machine: Machine) -> dict[str, float]:
    """Bytes on one GPU, and how many tokens of a micro-batch and positions of a cache fit beside them."""
    fixed = weight_bytes(model) + training_bytes(model)
    room = machine.memory * machine.memory_share - fixed
    head = logits_bytes(model, chunk_size(1024, model.vocab, "cuda"))
    return {
        "weights": weight_bytes(model),
        "adapter, gradient, optimizer": training_bytes(model),
        "logits of a chunk": head,
        "cache of a position": kv_bytes(model),
        "saved by a token": saved_bytes(model),
        "saved by a token, checkpointing": saved_bytes(model, checkpointing=True),
        "tokens of a micro-batch": (room - head) / saved_bytes(model),
        "tokens of a micro-batch, checkpointing": (room - head) / saved_bytes(model, checkpointing=True),
        "positions of the cache": room / kv_bytes(model),
    }
