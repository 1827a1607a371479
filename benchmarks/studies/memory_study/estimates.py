"""Means with their intervals, over seeds and over tasks, and how tables write them.

Over seeds: Student's t interval of the mean, from three seeds on. Over the tasks of one seed: the bootstrap.

Invariant: an interval that cannot be given is left out, never guessed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mempo_env.metrics import bootstrap_interval

T_975 = {
    **{2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201},
    **{12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110, 18: 2.101, 19: 2.093, 20: 2.086},
}
"""Student's t at 97.5 %, by degrees of freedom."""
LEAST_SEEDS = 3
"""Two seeds have an interval of 12.7 standard errors, which says nothing."""


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95 % interval (NaN where there is none), and how many values it is of."""

    mean: float
    low: float
    high: float
    n: int

    def text(self, digits: int = 1, *, sign: bool = False) -> str:
        """As a cell of a table: ``12.3 (10.0 to 14.6)``; without an interval the mean alone, without a mean a dash.

        >>> Estimate(1.0, float("nan"), float("nan"), 2).text(), Estimate(1.0, -0.5, 2.5, 3).text(sign=True)
        ('1.0', '+1.0 (-0.5 to +2.5)')
        """
        if math.isnan(self.mean):
            return "-"
        form = f"{{:{'+' if sign else ''}.{digits}f}}"
        shown = form.format(self.mean)
        return shown if math.isnan(self.low) else f"{shown} ({form.format(self.low)} to {form.format(self.high)})"

    @property
    def excludes_zero(self) -> bool | None:
        """Whether the interval lies on one side of 0; None without an interval."""
        return None if math.isnan(self.low) else not self.low <= 0 <= self.high


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over seeds; (nan, nan) for fewer than ``LEAST_SEEDS``.

    >>> [round(bound, 3) for bound in t_interval([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    """
    if len(values) < LEAST_SEEDS:
        return math.nan, math.nan
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    return mean - T_975[len(values) - 1] * error, mean + T_975[len(values) - 1] * error


def over_seeds(values: Sequence[float]) -> Estimate:
    """From one value per seed; those that are NaN are left out, and ``n`` says how many are not."""
    known = [value for value in values if not math.isnan(value)]
    mean = statistics.fmean(known) if known else math.nan
    return Estimate(mean, *t_interval(known), len(known))


def over_tasks(values: Sequence[float]) -> Estimate:
    """From one value per task of one seed."""
    mean = statistics.fmean(values) if values else math.nan
    return Estimate(mean, *bootstrap_interval(values), len(values))


def apart(one: Estimate, two: Estimate) -> bool | None:
    """Whether two intervals do not touch; None where one is missing."""
    if math.isnan(one.low) or math.isnan(two.low):
        return None
    return one.low > two.high or two.low > one.high
