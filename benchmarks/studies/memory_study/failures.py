"""Why goals were not answered: for each one the first thing that went wrong on the way to its answer.

A goal's evidence is followed in order. Was the fact shown by a result? Did a memory take it down, and in the right
words? Was it still there at the end? Then the answer itself. The first step that fails is the cause, so that every
wrong goal has exactly one. Copied questions are counted beside them, since a goal can fail for another reason.

Invariant: pure functions of episodes; causes of the goals of an episode add up to its wrong goals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from mempo_env.actions import Answer
from mempo_env.agents.expert import UNKNOWN
from mempo_env.agents.notes import clean, fact_seen, has_phrase, note_forms, split_memory
from mempo_env.metrics import exact_match, score_answers
from mempo_env.records import Episode, Evidence, Goal

CAUSES = {
    "no answer": "the episode ended without an answer",
    "not looked up": "a fact was never shown: it stopped early, or asked for something else",
    "not noted": "a fact was shown, and no memory took it down",
    "garbled": "a memory took it down with one word wrong, such as another value or another name",
    "forgotten": "a memory held it, and a later one did not",
    "gave up": "the last memory held all that was needed, and the answer was `unknown`",
    "wrong number": "the last memory held it, but the number of answers was wrong, which fails all of them",
    "misread": "the last memory held it, and another answer was given",
}
"""By name, in the order in which they are looked for (but for the first), with what each means."""


def goal_failure(episode: Episode, goal: Goal, given: str | None) -> str:
    """Why a goal was answered wrongly, as a key of ``CAUSES``.

    Args:
        episode: An episode that ended without a fault.
        goal: One of its goals, answered wrongly.
        given: The answer that stands in the goal's place; None where the number of answers was wrong.
    """
    last = episode.turns[-1]
    if not isinstance(last.action, Answer):
        return "no answer"
    for evidence in goal.evidence:
        if (cause := _lost(episode, goal, evidence)) is not None:
            return cause
    if given is None:
        return "wrong number"
    return "gave up" if given.strip().casefold() == UNKNOWN else "misread"


def _lost(episode: Episode, goal: Goal, evidence: Evidence) -> str | None:
    """What became of a fact; None if the last memory holds it."""
    forms, shown, held, garbled = set(note_forms(evidence, goal)), False, False, False
    now, results = False, ""  # whether the newest memory holds it; all that was shown
    for turn in episode.turns:
        result = turn.observation["tool_result"]
        shown, results = shown or fact_seen(evidence, result), f"{results}\n{clean(result)}"
        notes = split_memory(turn.memory)
        now = not forms.isdisjoint(notes)
        # Almost the fact, and nothing that is true of somebody else.
        wrong = any(_one_word_off(note, form) and not has_phrase(results, note) for note in notes for form in forms)
        # A value that was changed after it had been held is garbled, too, not forgotten.
        garbled = (garbled or (wrong and shown)) and not now
        held = held or now
    if now:
        return None
    if garbled:
        return "garbled"
    if held:
        return "forgotten"
    return "not noted" if shown else "not looked up"


def _one_word_off(note: str, form: str) -> bool:
    one, two = note.split(), form.split()
    return len(one) == len(two) and sum(a != b for a, b in zip(one, two, strict=True)) == 1


def episode_failures(episode: Episode) -> dict[str, int]:
    """Counts over an episode that ended without a fault.

    Returns:
        ``goals`` of the task, those answered ``wrong``, how many of these by each of ``CAUSES``; and
        ``copied_question``: 1 if a memory holds a question of the task word for word.
    """
    task, last = episode.task, episode.turns[-1].action
    answers = last.answers if isinstance(last, Answer) else ()
    right = score_answers(answers, task.goals).em_per_goal
    fits = len(answers) == len(task.goals)
    counts: Counter[str] = Counter(goals=len(task.goals))
    for index, goal in enumerate(task.goals):
        if right[index] < 1:
            counts["wrong"] += 1
            counts[goal_failure(episode, goal, answers[index] if fits else None)] += 1
    memories = [turn.memory for turn in episode.turns]
    counts["copied_question"] = int(any(goal.question in memory for goal in task.goals for memory in memories))
    return {name: counts[name] for name in ("goals", "wrong", *CAUSES, "copied_question")}


def failures(episodes: Iterable[Episode]) -> dict[str, dict[str, int]]:
    """``episode_failures`` summed by number of goals; ``episodes`` are those that ended without a fault.

    Args:
        episodes: Of any numbers of goals.
    """
    found: dict[str, Counter[str]] = {}
    for episode in episodes:
        if episode.error is None:
            counts = found.setdefault(str(len(episode.task.goals)), Counter())
            counts.update(episode_failures(episode))
            counts["episodes"] += 1
    return {goals: dict(counts) for goals, counts in sorted(found.items(), key=lambda item: int(item[0]))}


def given_anywhere(episodes: Sequence[Episode]) -> dict[str, dict[str, int]]:
    """Goals whose right answer stands among those given, at whatever place and however many were given.

    A wrong number of answers scores 0 on all goals, so that a policy which drops one answer of ten looks as if it knew
    nothing. This looks through that rule, and so rewards whoever answers at random, too: hence ``chance``, the same
    count with the goals of the next episode of as many goals.

    Args:
        episodes: Of any numbers of goals.

    Returns:
        By number of goals ``goals`` asked, ``given`` and ``chance``, over the episodes that ended without a fault.
    """
    found: dict[str, dict[str, int]] = {}
    valid = [episode for episode in episodes if episode.error is None]
    for number in sorted({len(episode.task.goals) for episode in valid}):
        some = [episode for episode in valid if len(episode.task.goals) == number]
        others = [*some[1:], some[0]]
        found[str(number)] = {
            "goals": number * len(some),
            "given": sum(_given(episode, episode.task.goals) for episode in some),
            "chance": sum(_given(one, other.task.goals) for one, other in zip(some, others, strict=True)),
        }
    return found


def _given(episode: Episode, goals: Sequence[Goal]) -> int:
    last = episode.turns[-1].action
    answers = last.answers if isinstance(last, Answer) else ()
    return sum(any(exact_match(one, gold) for one in answers for gold in goal.answers) for goal in goals)
