"""``MemPO-LongDocument-v0``: a document read chunk by chunk, of which only the memory stays.

Invariant: what an episode asks is a function of the reset seed and the environment's arguments; the policy's tokenizer
has no part in it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mempo_env.budgets import Budget
from mempo_env.records import Task, goal_range
from mempo_env.tools import Tool
from mempo_env.vector import ThreadPoolVectorEnv

from .closed_world import closed_world_vocabulary
from .document_files import load_documents
from .document_world import MAX_CHUNK_TOKENS, MAX_CHUNKS, MIN_CHUNKS, DocumentConfig, sample_document_task
from .filler import SENTENCE_TOKENS, filler_vocabulary
from .reading import PartReader, ReadingEnv, check_memory_room, check_whole, fitted_budget, size_range

DOCUMENT_TASK = "Read the whole document; the questions come with its last chunk."
READ = "read"
_DESCRIPTION = (
    "Shows the next chunk of the document; no chunk is shown twice. Where two statements differ, the later one counts."
)


class LongDocumentEnv(ReadingEnv):
    """Answers questions about a document of 4 to 400 chunks with a tool that reads on.

    Args:
        goals: Number of questions, or the two ends of a range to draw it from at every reset.
        chunks: Chunks of a drawn document, 4 to 400, or the two ends of a range.
        chunk_tokens: Longest chunk, by the regex counter.
        questions: ``"end"``: they come with the last chunk; ``"start"``: they are known from the start (MemAgent,
            arXiv 2507.02259).
        facts: Facts of a drawn document, all of which may be asked about; twice the goals at least.
        updates: Share of facts that an earlier sentence states otherwise.
        two_hop_share: Share of two-hop questions.
        comparison_share: Share of comparisons; the rest is one-hop.
        score_step: Distance between possible scores: 1 allows 10, 11, .., 99.
        documents: Folder with ``documents.SPLIT.jsonl`` to be read instead of drawn documents (``document_files``);
            ``chunks``, ``facts`` and the shares then have no effect.
        split: ``"train"``, ``"dev"`` or ``"test"``; for files whatever ``documents.SPLIT.jsonl`` there is.
        budget: What may be spent beside reading: the calls and turns of the longest document stand on top.
        **memory_env: Arguments of ``mempo_env.env.MemoryEnv``.

    Raises:
        UserError: An argument is unknown or out of range, the facts do not fit into the memory, or a file is missing
            or malformed.
    """

    expert = "mempo_env.agents.expert_document:DocumentExpert"

    def __init__(
        self,
        goals: int | Sequence[int] = 4,
        chunks: int | Sequence[int] = 8,
        chunk_tokens: int = 64,
        questions: str = "end",
        facts: int = 32,
        updates: float = 0.25,
        two_hop_share: float = 0.25,
        comparison_share: float = 0.1,
        score_step: int = 1,
        documents: str | Path | None = None,
        split: str = "train",
        budget: str | Budget | Mapping[str, str | int] = "brief",
        **memory_env: Any,
    ) -> None:
        self.files = None
        if documents is None:
            self.config = DocumentConfig(
                size_range("chunks", chunks, MIN_CHUNKS, MAX_CHUNKS),
                chunk_tokens,
                facts,
                updates,
                two_hop_share,
                comparison_share,
                score_step,
            )
            self.config.check_goals(goal_range(goals)[1])
            parts = self.config.chunks[1]
        else:
            check_whole("chunk_tokens", chunk_tokens, SENTENCE_TOKENS, MAX_CHUNK_TOKENS)
            self.files = load_documents(Path(documents), split, chunk_tokens)
            parts = self.files.longest
        super().__init__(goals=goals, split=split, budget=fitted_budget(budget, parts), **memory_env)
        if self.files is None:
            check_memory_room(
                self.config.longest_notes, self.budget, self.token_counter, "lower facts, or raise memory_tokens"
            )
        self._set_up_reading(PartReader(READ, "chunk", _DESCRIPTION), parts, questions, DOCUMENT_TASK)

    @property
    def tools(self) -> Sequence[Tool]:
        """The one that reads on."""
        return (self._reader,)

    def sample_task(self, rng: np.random.Generator) -> Task:
        """Draws the number of goals, where it is a range, and a document."""
        goals = self.draw_goals(rng)
        if self.files is not None:
            return self.files.sample(rng, goals)
        return sample_document_task(rng, goals, self.config, self.split)

    @property
    def vocabulary(self) -> Sequence[str]:
        """The words of drawn documents and their results; a model built in place reads others letter by letter."""
        return [*super().vocabulary, *closed_world_vocabulary(), *filler_vocabulary()]


vector_env = functools.partial(ThreadPoolVectorEnv, env_id="mempo_env:MemPO-LongDocument-v0")
"""What ``gym.make_vec`` makes for this environment."""
