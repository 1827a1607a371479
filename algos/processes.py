"""Several processes that train as one: what they share, and how what fails in one of them ends in all.

Whoever launches (``torchrun``, ``accelerate launch``) starts the processes; this file only has them talk, by
``torch.distributed``. Every process holds the whole policy and, once a step was played, all groups of that step. What
costs time is shared out by ``index % size``: groups are played, memories scored, and rows of a group pass forward and
backward in one process each. Advantages are then computed in every process on the same numbers, so that an algorithm
does not know how many processes there are.

Invariants:
    * with one process every method gives back what it was given, and touches neither tensors nor ``torch.distributed``;
    * results are ordered by index, never by process or completion;
    * all processes take the same optimizer steps on the same summed gradient, so their weights stay equal to the bit;
    * files, logs and progress are written by the first process alone.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mempo_env.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = datetime.timedelta(days=7)
"""How long a process waits for another, which may be playing an evaluation. One that died is noticed at once."""


class Processes:
    """A process among those of a run.

    Args:
        rank: Which one this is; the first, 0, writes.
        size: How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def is_first(self) -> bool:
        """Whether this one writes files, logs and progress."""
        return self.rank == 0

    def owns(self, index: int) -> bool:
        """Whether this process plays and learns from the group of that index."""
        return index % self.size == self.rank

    def gather(self, value: T) -> list[T]:
        """The value that each process gave, in their order, in every process."""
        if self.size == 1:
            return [value]
        found: list[T | None] = [None] * self.size
        dist.all_gather_object(found, value)
        return found  # type: ignore[return-value]

    def share(self, items: Sequence[T], function: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        """Maps items, each in one process; every process gets all results, in the order of the items.

        Args:
            items: The same in every process.
            function: From items to as many results; not called for none.

        Raises:
            RuntimeError: The processes were given different numbers of items: they have drifted apart.
        """
        if self.size == 1:
            return list(function(items))
        mine = items[self.rank :: self.size]
        results: Sequence[R] = ()
        with self.together():
            results = function(mine) if mine else ()
        counts, parts = zip(*self.gather((len(items), results)), strict=True)
        if len(set(counts)) > 1:
            raise RuntimeError(f"the processes were to share {', '.join(map(str, counts))} items, not the same ones")
        return [parts[index % self.size][index // self.size] for index in range(len(items))]

    def first(self, function: Callable[[], T]) -> T:
        """Calls a function in the first process while the others wait; gives all of them what it returned."""
        if self.size == 1:
            return function()
        result = None
        with self.together():
            result = function() if self.is_first else None
        return self.gather(result)[0]  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails in one process on the way ends all of them, instead of leaving them waiting for each other.

        Raises:
            Exception: In the first process, what was raised in any; it tells. The others leave without a word.
            SystemExit: In the others, with code 0: a launcher ends all processes as soon as one fails, and the first
                must have the time to tell.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught if self.is_first else _portable(caught, self.rank)
        failed = next((told for told in self.gather(error) if told is not None), None)
        if failed is not None:
            raise failed if self.is_first else SystemExit(0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums each parameter's gradient over the processes; one that has a gradient nowhere stays without."""
        if self.size == 1:
            return
        every = list(parameters)
        held = self.gather([parameter.grad is not None for parameter in every])
        wanted = [parameter for parameter, flags in zip(every, zip(*held, strict=True), strict=True) if any(flags)]
        for kind in dict.fromkeys((parameter.dtype, parameter.device) for parameter in wanted):
            same = [parameter for parameter in wanted if (parameter.dtype, parameter.device) == kind]
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in same]
            flat = torch.cat([part.flatten() for part in parts])  # (n,), all gradients of one type in one message
            dist.all_reduce(flat)
            for parameter, part in zip(same, torch.split(flat, [p.numel() for p in same]), strict=True):
                parameter.grad = part.view_as(parameter)  # (n_p,) -> the parameter's shape

    def send(self, parameters: Iterable[nn.Parameter]) -> None:
        """Overwrites the parameters of all processes with those of the first."""
        if self.size > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, src=0)

    def check_equal(self, model: nn.Module) -> None:
        """Checks that all processes hold the same weights, to the bit.

        Raises:
            UserError: They do not.
        """
        if self.size == 1:
            return
        digests = self.gather(digest(model))
        different = [str(rank) for rank, found in enumerate(digests) if found != digests[0]]
        with self.together():
            if different:
                raise UserError(
                    f"process {', '.join(different)} holds other weights than process 0, so they cannot train as one; "
                    "start all processes on machines of one kind, with the same versions and the same files"
                )


ALONE = Processes()
"""The one process of a run that was not launched as several."""


@contextmanager
def connect() -> Iterator[Processes]:
    """Joins the processes that a launcher started; alone where there was none.

    Yields:
        This process among them.

    Raises:
        UserError: A launcher was asked for several processes, but did not say which one this is, or for FSDP.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError(
            "mempo train holds the whole model in each process and does not train from shards (FSDP); launch it "
            "without the FSDP config: torchrun --nproc-per-node N -m mempo_env.cli train .."
        )
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ:
            # So it does, without a word, where there is no MPI; the run would be one of one process.
            raise UserError(
                "accelerate launch --cpu starts a single process, whatever --num_processes says; use torchrun "
                "--nproc-per-node N, or accelerate launch --multi_gpu --num_processes N, which needs no GPU"
            )
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def digest(model: nn.Module) -> str:
    """A digest of all weights, by name."""
    found = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        found.update(name.encode())
        found.update(_bytes(parameter.data))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.cpu().contiguous().flatten()  # (n,)
    return flat.view(torch.uint8).numpy().tobytes()  # numpy knows no bfloat16


def _portable(error: Exception, rank: int) -> Exception:
    """An error that another process can raise, with the place it came from as a note."""
    note = f"in process {rank}:\n" + "".join(traceback.format_exception(error)).rstrip()
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
    except Exception:  # of a library, with arguments of its own
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(note)
    return copy
