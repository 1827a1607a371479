"""Checks that a seed decides everything: again, in a copy, in another instance, in another process.

Invariant: global random generators are left as they were found.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np

from mempo_env.env import MemoryEnv

from .outputs import call_block
from .subject import Subject, broken, difference, first_difference, play, start, step

_SEEDED = "draw from self.np_random (sample_task's rng) alone; no clock, no id(), no order of a set, nothing left over"
_CHILD = "from mempo_env.testing.replay import compare_in_child; compare_in_child()"


def any_string_is_legal(subject: Subject) -> str:
    """Plays all outputs; ``step`` checks each."""
    play(subject.fresh(), subject.outputs, subject.seed)
    return ""


def seeds_replay(subject: Subject) -> str:
    """The same episodes twice in one environment, and in a copy."""
    env = subject.fresh()
    first = play(env, subject.outputs, subject.seed)
    for again, where in ((env, "in the same environment"), (subject.fresh(), "in a copy")):
        if where_differs := first_difference(first, play(again, subject.outputs, subject.seed)):
            raise broken(f"seed {subject.seed} does not replay {where}: {where_differs}", _SEEDED)
    return ""


def global_randomness_is_left_alone(subject: Subject) -> str:
    """The same episodes whatever the global generators hold, which stay as they are."""
    records = []
    for seed in (1, 2):
        with _global_generators(seed) as states:
            before = states()
            records.append(play(subject.fresh(), subject.outputs, subject.seed))
            if difference(before, states()):
                raise broken("a global random generator was used", "use self.np_random, never random or np.random")
    if where := first_difference(*records):
        raise broken(f"episodes depend on a global random generator: {where}", "use self.np_random")
    return ""


def copies_go_on(subject: Subject) -> str:
    """A copy made in the middle of an episode, compared to the end and into the next episode."""
    for call in ["", *(call_block(tool.spec) for tool in subject.env.tools)]:
        env = subject.fresh()
        start(env, subject.seed)
        running = not any(step(env, f"<mem>kept</mem>{call}")[2:4])
        try:
            twin = cast(MemoryEnv, pickle.loads(pickle.dumps(env)))
        except Exception as error:
            raise broken(
                f"in the middle of an episode it cannot be pickled: {error}",
                "leave what prepare() makes out in __getstate__, and call prepare(self.task) in __setstate__",
            ) from error
        mend = "__getstate__ may leave out only what __setstate__ or prepare() makes again"
        for output in (f"<mem>kept</mem>{call}", "<mem>kept</mem><answer>x</answer>"):
            if not running:
                break
            ours, theirs = step(env, output), step(twin, output)
            if where := first_difference([ours], [theirs]):
                raise broken(f"a pickled copy goes on differently in the middle of an episode: {where}", mend)
            running = not (ours[2] or ours[3])
        if where := first_difference([start(env)], [start(twin)]):
            raise broken(f"a pickled copy draws another next task: {where}", mend)
    return ""


def instances_agree(subject: Subject) -> str:
    """Another instance made by ``gym.make`` with the same arguments."""
    spec = subject.env.spec
    if spec is None:
        return "it was not made by gym.make"
    other = cast(MemoryEnv, gym.make(spec, disable_env_checker=True).unwrapped)
    ours, theirs = (play(env, subject.outputs, subject.seed) for env in (subject.fresh(), other))
    if where := first_difference(ours, theirs):
        raise broken(f"another instance made with the same arguments plays differently: {where}", _SEEDED)
    return ""


def processes_agree(subject: Subject) -> str:
    """Another process, with another hash seed: what is drawn from the order of a set comes out there."""
    module = type(subject.env).__module__
    try:
        found = module != "__main__" and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        return f"another process could not import its module {module}"
    record = play(subject.fresh(), subject.outputs, subject.seed)
    with tempfile.TemporaryDirectory(prefix="mempo-check-") as folder:
        job = Path(folder) / "job.pickle"
        job.write_bytes(
            pickle.dumps((sys.path, pickle.dumps((subject.fresh(), subject.outputs, subject.seed, record))))
        )
        seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        run = subprocess.run(
            [sys.executable, "-c", _CHILD, str(job)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if run.returncode:
        says = run.stderr.strip().splitlines()[-1:] or ["no message"]
        raise broken(f"another process cannot play it: {says[0]}", "its module must import without the main program")
    if run.stdout.strip():
        raise broken(f"another process plays differently: {run.stdout.strip()}", _SEEDED)
    return ""


def compare_in_child() -> None:
    """What the other process runs: plays again and writes the first difference to standard output."""
    path, job = pickle.loads(Path(sys.argv[1]).read_bytes())
    sys.path[:] = path
    env, outputs, seed, record = cast("tuple[MemoryEnv, Sequence[str], int, list[Any]]", pickle.loads(job))
    where = first_difference(record, play(env, outputs, seed))
    sys.stdout.write(where.encode("ascii", "backslashreplace").decode())


@contextmanager
def _global_generators(seed: int) -> Iterator[Any]:
    """Seeds the global generators for a while; gives a function that reads their states."""
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002  (that nobody uses it is what is checked)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield lambda: (random.getstate(), np.random.get_state())  # noqa: NPY002
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
