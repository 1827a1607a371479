"""One result of a cell beside another: equal to the last digit, alike within what chance does, or different.

Equal is what the same settings, versions and kind of processor must give. Elsewhere rounding differs, training takes
another way, and two runs of one seed are as two seeds: so they are alike if the paired difference in F1 over the test
tasks has 0 in its 95 % interval, or if the mean F1 lies where one more seed of the same arm would with 95 % chance.

Invariant: times are never compared, everything else is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .estimates import T_975, Estimate, over_tasks
from .measures import mean_f1, paired

Verdict = Literal["equal", "alike", "different"]
IGNORED_VERSIONS = ("platform", "cores")
"""Of the versions, what results do not depend on."""


@dataclass(frozen=True)
class Comparison:
    """One result of a cell against another.

    Attributes:
        verdict: The sum of it.
        unequal: Names of what is not equal, such as ``after/10/f1``.
        differences: Per evaluation and number of goals, the new F1 less the old one, in points, paired by task.
        overall: Per evaluation, the same over all tasks.
        seeds: Where the F1 of one more seed would lie, from the other seeds of the arm; None with too few.
        versions: What has another version, with the old and the new one.
    """

    verdict: Verdict
    unequal: tuple[str, ...]
    differences: dict[str, dict[int, Estimate]]
    overall: dict[str, Estimate]
    seeds: tuple[float, float] | None
    versions: dict[str, tuple[str, str]]


def unequal_parts(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the columns of evaluations and training that are not the same in both; times are left out."""
    names = []
    for name, evaluation in new["evaluations"].items():
        for goals, part in evaluation.items():
            before, after = (one[goals]["episodes"] for one in (old["evaluations"][name], evaluation))
            names += [f"{name}/{goals}/{c}" for c in sorted({*before, *after}) if before.get(c) != after.get(c)]
            if old["evaluations"][name][goals]["history"] != part["history"]:
                names.append(f"{name}/{goals}/history")
    before, after = old.get("training", {}), new.get("training", {})
    names += [
        f"training/{c}"
        for c in sorted({*before, *after})
        if not c.startswith("time/") and before.get(c) != after.get(c)
    ]
    return tuple(names)


def predicted(values: Sequence[float]) -> tuple[float, float] | None:
    """Where one more value lies with 95 % chance, if it comes from where these do; None for fewer than three.

    >>> low, high = predicted([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-2.969, 6.969)
    """
    if len(values) < 3:
        return None
    mean, spread = statistics.mean(values), statistics.stdev(values) * math.sqrt(1 + 1 / len(values))
    return mean - T_975[len(values) - 1] * spread, mean + T_975[len(values) - 1] * spread


def compare_results(
    old: Mapping[str, Any], new: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()
) -> Comparison:
    """Compares two results of one cell.

    Args:
        old: What is kept.
        new: What the rerun gave; it may have fewer evaluations.
        others: Results of the same arm with other seeds.

    Returns:
        The comparison.
    """
    unequal = unequal_parts(old, new)
    differences: dict[str, dict[int, Estimate]] = {}
    overall = {}
    for name, evaluation in new["evaluations"].items():
        rows = {int(goals): paired(evaluation, old["evaluations"][name], int(goals)) for goals in evaluation}
        differences[name] = {goals: over_tasks(values) for goals, values in rows.items()}
        overall[name] = over_tasks([value for values in rows.values() for value in values])
    known = {name: (old["versions"].get(name, "-"), new["versions"].get(name, "-")) for name in new["versions"]}
    seeds = None
    if "after" in new["evaluations"]:
        seeds = predicted([mean_f1(one["evaluations"]["after"]) for one in [old, *others]])
    within = all(not one.excludes_zero for one in overall.values()) or (
        seeds is not None and seeds[0] <= mean_f1(new["evaluations"]["after"]) <= seeds[1]
    )
    return Comparison(
        "equal" if not unequal else "alike" if within else "different",
        unequal,
        differences,
        overall,
        seeds,
        {name: pair for name, pair in known.items() if name not in IGNORED_VERSIONS and pair[0] != pair[1]},
    )
