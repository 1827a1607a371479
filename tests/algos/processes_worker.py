"""What test_processes.py does alone and in two processes, to compare: each scenario gives plain values and tensors.

Run as a script by a launcher, it loads its input from a folder and writes there what its process found.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mempo_env.agents.models import add_lora
from mempo_env.agents.policy import LoraPolicy
from mempo_env.agents.rollout import EnvPool
from mempo_env.agents.row_batches import TokenRow, collate
from mempo_env.agents.settings import LoraSettings
from mempo_env.algos.algorithm_config import GRPOConfig, MemPOConfig
from mempo_env.algos.config import OptimConfig
from mempo_env.algos.grpo import GRPO
from mempo_env.algos.guards import NonFiniteError
from mempo_env.algos.memory_reward import AnswerScorer
from mempo_env.algos.mempo import MemPO
from mempo_env.algos.optim import Optimizer, trainable
from mempo_env.algos.processes import Processes, connect, digest
from mempo_env.algos.trainer import Trainer
from mempo_env.algos.update import Updater
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.errors import UserError
from mempo_env.records import Group


def _conftest() -> Any:
    spec = importlib.util.spec_from_file_location("algos_conftest", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


conftest = _conftest()
GROUPS_PLAYED = 3


@dataclasses.dataclass
class Given:
    """Input of the scenarios: recorded groups, and weights that have learnt the format of an output."""

    groups: list[Group]
    weights: dict[str, torch.Tensor]

    def policy(self) -> LoraPolicy:
        policy = conftest.small_policy(adapter=False, max_new_tokens=32)
        policy.model.load_state_dict(self.weights)
        model = add_lora(policy.model, LoraSettings(rank=4, alpha=8))
        return LoraPolicy(model, policy.codec, policy.context, policy.sampling)


def parameters(policy: LoraPolicy) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainable(policy.model)}


def updates(
    given: Given, processes: Processes, groups: list[Group], algorithm: Any, count: int, **settings: Any
) -> Any:
    """Updates on recorded groups; the parameters after each, and the last metrics."""
    policy = conftest.small_policy()
    optimizer = Optimizer(trainable(policy.model), OptimConfig(lr=1e-3), 20)
    updater = Updater(policy, algorithm, optimizer, processes=processes, micro_batch_tokens=2000, **settings)
    scorer = AnswerScorer(policy, conftest.INSTRUCTIONS, processes=processes)
    states = []
    for _ in range(count):
        metrics = updater.update(groups, algorithm.advantages(groups, scorer))
        states.append(parameters(policy))
    return {"parameters": states, "metrics": metrics, "digest": digest(policy.model), "steps": optimizer.step_count}


def recorded(given: Given, processes: Processes) -> Any:
    """Three groups, one episode with a fault, several minibatches and epochs, KL that matters."""
    groups = [(*given.groups[0][:3], given.groups[0][3].replace(error="down")), *given.groups[1:]]
    return updates(given, processes, groups, MemPO(MemPOConfig(beta=0.1)), 3, epochs=2, minibatches=2)


def a_process_without_rows(given: Given, processes: Processes) -> Any:
    return updates(given, processes, given.groups[:1], GRPO(), 2)


def no_gradient_anywhere(given: Given, processes: Processes) -> Any:
    equal = [tuple(group[0].replace(rollout_id=i) for i in range(3)) for group in given.groups]
    return updates(given, processes, equal, GRPO(GRPOConfig(beta=0.0)), 1)


def played(given: Given, processes: Processes) -> Any:
    """What a step plays, and what its metrics say."""
    policy = given.policy()
    algorithm = MemPO()

    def make() -> MultiGoalEnv:
        return MultiGoalEnv(goals=1, instructions="terse", outcome="fraction", format_penalty=0.1)

    with EnvPool(make) as pool:
        trainer = Trainer(
            policy,
            algorithm,
            pool,
            AnswerScorer(policy, pool.memory_env.instructions, processes=processes),
            Updater(policy, algorithm, Optimizer(trainable(policy.model), OptimConfig(), 9), processes=processes),
            groups_per_step=GROUPS_PLAYED,
            group_size=2,
            seed=3,
            processes=processes,
        )
        result = trainer.step()
    return {"groups": result.groups, "metrics": result.metrics}


class BrokenAt(GRPO):
    """Its loss is not finite where a group of index 1 has its third episode, nowhere else."""

    def advantages(self, groups: Any, scorer: Any) -> Any:
        found = super().advantages(groups, scorer)
        found.tokens[1, 2, 0][3] = float("nan")
        return found


def broken(given: Given, processes: Processes) -> Any:
    """A number that is not finite, in a row of the last process."""
    policy, algorithm = conftest.small_policy(), BrokenAt()
    optimizer = Optimizer(trainable(policy.model), OptimConfig(), 20)
    updater = Updater(policy, algorithm, optimizer, processes=processes)
    before, ended = digest(policy.model), ""
    try:
        updater.update(given.groups, algorithm.advantages(given.groups, None))
    except NonFiniteError as error:
        ended = f"{error.what} {error.key} {error.values['advantages'][3]}"
    except SystemExit as stop:
        ended = f"exit {stop.code}"
    return {"ended": ended, "untouched": digest(policy.model) == before}


def other_weights(given: Given, processes: Processes) -> Any:
    policy = conftest.small_policy()
    processes.check_equal(policy.model)
    with torch.no_grad():
        next(policy.model.parameters()).view(-1)[0] += processes.rank
    try:
        processes.check_equal(policy.model)
    except (UserError, SystemExit) as error:
        refused = str(error)
    else:
        refused = ""
    processes.send(policy.model.parameters())
    processes.check_equal(policy.model)
    return refused


def sums(given: Given, processes: Processes) -> Any:
    """Gradients that some processes have, and one that none has; items that are shared."""
    everywhere, first, nowhere = (nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
    everywhere.grad = torch.full((2, 3), 1.0 + processes.rank)
    first.grad = torch.ones(2, 3) if processes.is_first else None
    processes.sum_gradients([everywhere, first, nowhere])
    shared = [processes.share(range(n), lambda items: [item**2 for item in items]) for n in (0, 1, 5)]
    return {
        "gradients": [None if p.grad is None else p.grad[0, 0].item() for p in (everywhere, first, nowhere)],
        "shared": shared,
        "first": processes.first(lambda: f"from {processes.rank}"),
    }


def refused(given: Given, processes: Processes) -> Any:
    """Input that the first process finds it cannot use."""

    def check() -> None:
        raise UserError("choose another --out")

    try:
        processes.first(check)
    except (UserError, SystemExit) as error:
        return f"{type(error).__name__} {error}"
    return "accepted"


def sharded(given: Given, processes: Processes) -> Any:
    """Loss and gradients of a model, sharded (FSDP2) by the layer that configs/fsdp_qwen2.5_7b.yaml names if several.

    Each process takes its share of the rows.
    """
    policy = conftest.small_policy(adapter=False)
    model = policy.model
    turns = [turn for group in given.groups[:2] for episode in group for turn in episode.turns][:8]
    rows = [TokenRow(turn.prompt_ids, turn.output_ids) for turn in turns]
    if processes.size > 1:
        mesh = init_device_mesh("cpu", (processes.size,))
        for layer in [module for module in model.modules() if type(module).__name__ == "Qwen2DecoderLayer"]:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        fully_shard(model, mesh=mesh)
    batch = collate(rows[processes.rank :: processes.size], policy.codec.pad_id)
    table = model(input_ids=batch.input_ids).logits.log_softmax(-1)  # (B, T, V)
    found = table[torch.arange(len(table))[:, None], batch.positions].gather(-1, batch.targets[..., None]).squeeze(-1)
    loss = -(found * batch.mask).sum()
    (loss * processes.size).backward()  # FSDP takes the mean over processes
    gradients = {
        name: parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        for name, parameter in model.named_parameters()
    }
    kinds = {type(parameter).__name__ for parameter in model.parameters()}
    return {"loss": sum(processes.gather(loss.item())), "gradients": gradients, "kinds": kinds}


SCENARIOS: list[Callable[[Given, Processes], Any]] = [
    recorded,
    a_process_without_rows,
    no_gradient_anywhere,
    played,
    broken,
    other_weights,
    sums,
    refused,
    sharded,
]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    given = Given(*torch.load(folder / "given.pt", weights_only=False))
    with connect() as processes:
        found = {scenario.__name__: scenario(given, processes) for scenario in SCENARIOS}
        torch.save(found, folder / f"found-{processes.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
