"""What the study reads off played episodes: facts kept and lost, precision of memories, signs of collapse.

A fact is one evidence of a goal; a memory holds it if one of the note's forms stands in it as a note. All are counts
per episode, so that means over facts can be given intervals over episodes.

Invariant: pure functions of stored episodes; no model, no tokenizer but the counter that is handed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mempo_env.actions import Answer, ToolCall
from mempo_env.agents.eval_rows import QUALITY, episode_metrics, memory_metric
from mempo_env.agents.expert import UNKNOWN
from mempo_env.agents.notes import clean, fact_seen, has_phrase, note_forms, split_memory
from mempo_env.records import Episode, Evidence, Goal, Task
from mempo_env.tokens import TokenCounter

Fact = tuple[int, int]
"""Goal and evidence, by index."""

COUNTS = (
    *("facts", "facts_shown", "facts_final", "had", "kept", "new", "noted"),
    *("notes", "notes_right", "notes_invented", "notes_repeated", "memories", "memories_same", "memories_full"),
    *("early", "goals_unknown", "wrong_number"),
)
"""Counts of ``episode_facts``, in order."""


def facts_of(task: Task) -> dict[Fact, tuple[Goal, Evidence]]:
    """The facts of a task."""
    return {(g, k): (goal, evidence) for g, goal in enumerate(task.goals) for k, evidence in enumerate(goal.evidence)}


def facts_held(memory: str, task: Task) -> set[Fact]:
    """The facts of the task that a memory holds, word for word."""
    notes = set(split_memory(memory))
    return {
        fact for fact, (goal, evidence) in facts_of(task).items() if not notes.isdisjoint(note_forms(evidence, goal))
    }


def facts_shown(result: str, task: Task) -> set[Fact]:
    """The facts of the task that a tool result shows."""
    return {fact for fact, (_, evidence) in facts_of(task).items() if fact_seen(evidence, result)}


def episode_facts(episode: Episode) -> dict[str, int]:
    """Counts over an episode that ended without a fault.

    Returns:
        ``facts`` of the task; ``facts_shown`` by any result that a turn saw; ``facts_final`` held at the end. Over the
        rewrites: facts the memory before ``had``, and those of them that were ``kept``; facts shown that it did not
        have (``new``), and those of them that were ``noted``. ``notes`` written in all, those that are a fact of the
        task (``notes_right``), that stand neither in what was shown nor in the memory before (``notes_invented``),
        that stand twice in one memory (``notes_repeated``). ``memories`` written, equal to the one before though it
        was not empty (``memories_same``), cut at the cap (``memories_full``). ``early``: 1 if it answered before all
        facts had been shown. ``goals_unknown``: answers "unknown". ``wrong_number``: 1 if the number of answers is not
        that of the goals.
    """
    task, before, shown_ever = episode.task, "", set[Fact]()
    right = {form for goal, evidence in facts_of(task).values() for form in note_forms(evidence, goal)}
    counts: Counter[str] = Counter()
    for turn in episode.turns:
        result = turn.observation["tool_result"]
        shown, had = facts_shown(result, task), facts_held(before, task)
        shown_ever |= shown
        if turn.memory_written:
            held, notes, old = facts_held(turn.memory, task), split_memory(turn.memory), split_memory(before)
            seen = clean(result)
            counts["had"] += len(had)
            counts["kept"] += len(had & held)
            counts["new"] += len(shown - had)
            counts["noted"] += len((shown - had) & held)
            counts["notes"] += len(notes)
            counts["notes_right"] += sum(note in right for note in notes)
            counts["notes_invented"] += sum(note not in old and not has_phrase(seen, note) for note in notes)
            counts["notes_repeated"] += len(notes) - len(set(notes))
            counts["memories"] += 1
            counts["memories_same"] += bool(before) and turn.memory == before
            counts["memories_full"] += bool(turn.info.get("memory_truncated"))
        before = turn.memory
    last = episode.turns[-1].action
    answers = last.answers if isinstance(last, Answer) else ()
    counts["facts"] = len(facts_of(task))
    counts["facts_shown"] = len(shown_ever)
    counts["facts_final"] = len(facts_held(before, task))
    counts["early"] = int(isinstance(last, Answer) and len(shown_ever) < counts["facts"])
    counts["goals_unknown"] = sum(answer == UNKNOWN for answer in answers)
    counts["wrong_number"] = int(isinstance(last, Answer) and len(answers) != len(task.goals))
    return {name: counts[name] for name in COUNTS}


def columns(episodes: Iterable[Episode], counter: TokenCounter | None = None) -> dict[str, list[Any]]:
    """Scores, costs and counts of episodes, as columns in the order of the episodes.

    Args:
        episodes: Of one number of goals.
        counter: Counts the memories.

    Returns:
        Columns by name: ``seed``, ``error``, the metrics of ``eval_rows``, ``COUNTS``; and, each a list with one number
        per memory, ``memory_tokens``, ``quality`` and ``quality_turn``, the turn that wrote it. Where ``error`` is 1
        all others are None but the seed.
    """
    table: dict[str, list[Any]] = {}
    for episode in episodes:
        row: dict[str, Any] = {"seed": episode.seed, "error": int(episode.error is not None)}
        if episode.error is None:
            row |= {name: rounded(value) for name, value in episode_metrics(episode).items() if value == value}
            row["memory_tokens"] = [int(n) for n in memory_metric(episode, "memory_tokens", counter)]
            row["quality"] = [rounded(q) for q in memory_metric(episode, QUALITY)]
            row["quality_turn"] = [
                t for t, turn in enumerate(episode.turns) if turn.memory_written and QUALITY in turn.info
            ]
            row |= episode_facts(episode)
        done = max((len(column) for column in table.values()), default=0)
        for name in {**table, **row}:
            table.setdefault(name, [None] * done).append(row.get(name))
    return table


def template_share(memories: Sequence[str]) -> float:
    """Share of the last memories of different tasks that are the commonest one; near 1 is a collapse to a template.

    Args:
        memories: One per task, at least one; the empty one counts, too.

    >>> template_share(["a", "b", "a", ""])
    0.5
    """
    return Counter(memories).most_common(1)[0][1] / len(memories)


def episode_text(episode: Episode) -> dict[str, Any]:
    """An episode as a reader needs it to see why it failed."""
    return {
        "seed": episode.seed,
        "task": episode.task.text,
        "gold": [goal.answers[0] for goal in episode.task.goals],
        "f1": rounded(episode.scores.get("f1", 0.0)),
        "error": episode.error,
        "turns": [
            {
                "result": turn.observation["tool_result"],
                "text": turn.text,
                "quality": rounded(float(str(turn.info[QUALITY]))) if QUALITY in turn.info else None,
            }
            for turn in episode.turns
        ],
    }


def calls_before(episode: Episode, t: int) -> int:
    """Tool calls that were made before turn t."""
    return sum(isinstance(turn.action, ToolCall) for turn in episode.turns[:t])


def rounded(value: float) -> float:
    """Four digits after the point, so that stored numbers are short."""
    return round(float(value), 4)
