"""The scripted expert, which plays from the gold evidence, and the imperfect demonstrators made from it.

The expert writes real memories: at every turn it may rely on the memory and the tool result it is shown, as a policy
must; the gold evidence only tells it what is worth asking and noting.

Invariants:
    * ``write`` is a function of the request (with noise keyed by its slot, where there are flaws);
    * a note is written only if its fact was seen (see ``notes``), and a goal is answered only if the memory written in
      the same turn holds every note that the answer rests on;
    * nothing is asked twice, and nothing beyond the budget.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from mempo_env.actions import ToolCall
from mempo_env.records import Evidence, Goal, Task

from .base import TurnRequest
from .notes import SEPARATOR, fact_seen, fit_notes, garble, irrelevant_sentences, note_forms, split_memory
from .scripted_expert import ScriptedExpert
from .textual import slot_rng

UNKNOWN = "unknown"


class ExpertAgent(ScriptedExpert):
    """Asks for every gold evidence once, notes what it sees, answers from its notes.

    Where the budget cannot hold all queries, the goals that need fewest come first, so that as many as possible are
    finished.

    Its arguments are those of ``ScriptedExpert``.
    """

    def decide(self, request: TurnRequest, notes: list[str]) -> tuple[str, str]:
        """A search call, or the answer."""
        queries = self._next_queries(request, set(notes))
        if queries:
            call = {"name": "search", "arguments": {"queries": queries}}
            return f"ask {', '.join(queries)}", f"<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>"
        return "answer now", f"<answer>{_answers(request.task, set(notes))}</answer>"

    def answers(self, task: Task, memory: str) -> str:
        """Gold where all that an answer rests on is noted, else "unknown"."""
        return _answers(task, set(split_memory(memory)))

    def remember(self, request: TurnRequest) -> list[str]:
        """The notes of the new memory: what the old one holds and what the result shows, in task order."""
        memory, result = request.observation["memory"], request.observation["tool_result"]
        shown = split_memory(memory)
        rng, flaws = slot_rng(request.key, "flaws"), self.flaws
        entries: list[tuple[str, ...]] = []
        for goal, evidence, forms in _evidence(request.task):
            held = [level for level, form in enumerate(forms) if form in shown]
            ready = evidence.after < 0 or _is_noted(goal, evidence.after, set(shown))
            if held:
                forms = forms[held[0] :]
            elif not (ready and fact_seen(evidence, result)):
                continue
            if forms in entries or rng.random() < flaws.forget:
                continue
            if rng.random() < flaws.garble:
                forms = garble(forms, evidence.query, goal.answers[0], f"{result}\n{memory}", rng)
            entries.append(forms)
        ours = {form for _, _, forms in _evidence(request.task) for form in forms}
        entries += [(note,) for note in shown if note not in ours and rng.random() >= flaws.forget]
        if rng.random() < flaws.bloat:
            full = [forms[0] for _, _, forms in _evidence(request.task)]
            sentences = irrelevant_sentences(result, _asked(request), full)
            if sentences:
                entries.append((sentences[int(rng.integers(len(sentences)))],))
        return fit_notes(entries, self.memory_counter, self.budget.memory_tokens)

    def _next_queries(self, request: TurnRequest, notes: set[str]) -> list[str]:
        """What to ask now: nothing if all is asked or no call is left."""
        calls = sum(isinstance(turn.action, ToolCall) for turn in request.history)
        if calls >= self.budget.max_tool_calls or len(request.history) >= self.budget.max_turns - 1:
            return []
        asked = set(_asked(request))
        first, later = self._by_priority(request.task)
        queries: list[str] = []
        for goals in (first, later):
            for dependent in (False, True):
                for goal in goals:
                    for evidence in goal.evidence:
                        if (evidence.after >= 0) is not dependent or evidence.query in asked:
                            continue
                        if dependent and not _is_noted(goal, evidence.after, notes):
                            continue
                        if notes.isdisjoint(note_forms(evidence, goal)):
                            queries.append(evidence.query)
        return list(dict.fromkeys(queries))[: self.budget.queries_per_call]

    def _by_priority(self, task: Task) -> tuple[list[Goal], list[Goal]]:
        """Goals that the budget can finish, and the others, each in task order."""
        room = min(self.budget.max_tool_calls, self.budget.max_turns - 1) * self.budget.queries_per_call
        chosen = set()
        for index in sorted(range(len(task.goals)), key=lambda i: (len(task.goals[i].evidence), i)):
            room -= len(task.goals[index].evidence)
            if room >= 0:
                chosen.add(index)
        first = [goal for index, goal in enumerate(task.goals) if index in chosen]
        return first, [goal for index, goal in enumerate(task.goals) if index not in chosen]


def _answers(task: Task, notes: set[str]) -> str:
    return SEPARATOR.join(_answer(goal, notes) for goal in task.goals)


def _evidence(task: Task) -> Iterator[tuple[Goal, Evidence, tuple[str, ...]]]:
    """All evidence of a task in order, with the forms of its note."""
    for goal in task.goals:
        for evidence in goal.evidence:
            yield goal, evidence, note_forms(evidence, goal)


def _is_noted(goal: Goal, index: int, notes: set[str]) -> bool:
    return not notes.isdisjoint(note_forms(goal.evidence[index], goal))


def _asked(request: TurnRequest) -> list[str]:
    """The queries of the episode so far, read from its own calls."""
    asked: list[str] = []
    for turn in request.history:
        if isinstance(turn.action, ToolCall) and turn.action.name == "search":
            asked += turn.action.arguments.get("queries", [])
    return asked


def _answer(goal: Goal, notes: set[str]) -> str:
    """The gold answer, if all that it rests on is noted; a goal without evidence cannot be known."""
    known = goal.evidence and all(_is_noted(goal, index, notes) for index in range(len(goal.evidence)))
    return goal.answers[0] if known else UNKNOWN
