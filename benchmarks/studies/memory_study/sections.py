"""Which tables there are, in the order in which they are read: ``--table`` and docs/study.md show these.

Invariant: a table without a row is left out, every other one is in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from .cause_tables import causes, causes_by_goals, signal
from .claim_tables import distances, history_decline, token_distances
from .cost_tables import costs_of, curves, tokens
from .headline_tables import overview, training_differences
from .memory_tables import memories, readings
from .replication_table import clipped, replication
from .study import OTHERS, Study
from .tables import Table, differences, gaps, right_number, scores, within_seeds
from .training_tables import collapse, estimator_table, tuning


def real_sections(study: Study) -> list[Table]:
    """The tables of the study on a language model. Causes are not among them: its notes are seldom word for word."""
    found = []
    for regime in (one.name for one in study.regimes):
        makers = (scores, differences, memories, readings, signal, tokens, curves, costs_of)
        found += [make(study, regime) for make in makers]
        found += [scores(study, regime, "em"), within_seeds(study, regime)]
    return [table for table in found if table.rows]


def sections(study: Study, others: Sequence[str] = OTHERS) -> list[Table]:
    """All tables that have a row, in the order in which they are read; differences are from ``others``, too."""
    less, training = partial(differences, others=others), partial(training_differences, others=others)
    each: Sequence[Callable[[Study, str], Table]] = (scores, less, training, memories, readings)
    more: Sequence[Callable[[Study, str], Table]] = (causes, gaps, right_number, signal, tokens, estimator_table)
    found = [overview(study), replication(study), clipped(study), distances(study), token_distances(study)]
    found += [history_decline(study)]
    for regime in (one.name for one in study.regimes):
        found += [make(study, regime) for make in (*each, *more, collapse, curves, costs_of)]
        found += [memories(study, regime, pooled=True), causes(study, regime, pooled=True)]
        found += [scores(study, regime, "em"), causes_by_goals(study, regime), within_seeds(study, regime, others)]
    return [table for table in [*found, tuning(study)] if table.rows]
