"""Plays random and mutated outputs in every registered environment, a million by default, and checks every step.

What is checked is in ``mempo_env.fuzzing``; the tests play a tenth of it. A breach ends the run with the output that
caused it. Invariant: environments, settings and seeds are in the result, so that a run can be repeated.

    python benchmarks/fuzz_actions.py --actions 1000000 --out benchmarks/results/fuzz_actions.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
from rich.console import Console
from rich.progress import track

import mempo_env
from mempo_env.env import MemoryEnv
from mempo_env.fuzzing import fuzz_env
from mempo_env.versions import versions

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"memory": "optional", "budget": "paper", "format_penalty": 0.1, "outcome": "f1"},
    {"memory": "off", "instructions": "terse"},
)
SHARES = 10  # seeds per environment and setting


def run(actions: int, seed: int) -> dict[str, Any]:
    """Plays a share of the outputs in each environment under each setting.

    Args:
        actions: Outputs in all; rounded up to whole shares.
        seed: First seed; every share has its own.

    Returns:
        Counts in all and by environment.

    Raises:
        AssertionError: A promise was broken.
    """
    mempo_env.register_envs()
    names = sorted(name for name in gym.registry if name.startswith("MemPO"))
    jobs = [(name, settings, share) for name in names for settings in SETTINGS for share in range(SHARES)]
    each = -(-actions // len(jobs))
    kinds: Counter[str] = Counter()
    played: dict[str, Counter[str]] = {name: Counter() for name in names}
    longest = 0
    wall, cpu = time.perf_counter(), time.process_time()
    for place, (name, settings, _) in enumerate(track(jobs, console=Console(stderr=True))):
        env = gym.make(name, **settings).unwrapped
        assert isinstance(env, MemoryEnv), f"{name} is no MemoryEnv"
        report = fuzz_env(env, each, seed + place)
        kinds.update(report.kinds)
        longest = max(longest, report.longest)
        played[name].update({field: asdict(report)[field] for field in ("actions", "episodes", "answered")})
    return {
        "command": shlex.join(["python", "benchmarks/fuzz_actions.py", *sys.argv[1:]]),
        "actions": sum(counts["actions"] for counts in played.values()),
        "breaches": 0,  # one would have ended the run
        "longest_output": longest,
        "seconds": {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu},
        "environments": {name: dict(counts) for name, counts in played.items()},
        "settings": SETTINGS,
        "seeds": [seed, seed + len(jobs) - 1],
        "kinds": dict(kinds.most_common()),
        "versions": versions(),
    }


def main() -> None:
    """Reads the flags, plays, shows and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--actions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    result = run(flags.actions, flags.seed)
    Console().print_json(json.dumps({name: result[name] for name in ("actions", "breaches", "seconds", "kinds")}))
    if flags.out:
        flags.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
