"""A baseline of your own for MemPO's memory reward: what keeping everything would have been worth.

    b_t = Q(m_{t-1} and the result that turn t was shown, word for word)

So R^M_t = Q(m_t) - b_t says what the rewriting lost or won, whatever was in the result. That text is longer than a
memory may be; it is only scored. From the repository, in the place of ``--algo mempo``:

    PYTHONPATH=examples mempo train --algo own_baseline:KeepAll --keep-all.weight 0.5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mempo_env.algos.algorithm_config import MemPOPaperConfig
from mempo_env.algos.base import MemoryScorer
from mempo_env.algos.memory_baselines import GroupMemories, MemoryScores, compare_with_texts
from mempo_env.algos.mempo import MemPO
from mempo_env.records import Episode


@dataclass(frozen=True)
class KeepAllConfig(MemPOPaperConfig):
    """The paper's settings, z-scored over the group, with this one baseline: run folders tell what was compared."""

    baseline: Literal["keep_all"] = "keep_all"  # type: ignore[assignment]  # another name than MemPO's own


class KeepAll(MemPO):
    """MemPO against a memory that drops nothing and chooses nothing."""

    name, config_class, source = "keep-all", KeepAllConfig, "an example"

    def memory_scores(self, memories: Sequence[GroupMemories], scorer: MemoryScorer) -> list[MemoryScores]:
        return compare_with_texts(memories, scorer, everything)


def everything(episode: Episode, t: int) -> str:
    """The old memory, and the result that was shown beside it."""
    shown = episode.turns[t].observation
    return f"{shown['memory']}; {shown['tool_result']}"
