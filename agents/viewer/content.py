"""What the viewer shows of an episode: a row for the list, and the whole for the screen, as JSON values.

Invariants:
    * every number is one that was stored or that ``mempo_env.metrics`` computes; nothing is estimated;
    * ids, log-probabilities and the task's corpus stay out: the file is for looking, the episodes are the record.
"""

from __future__ import annotations

import math
from typing import Any

from mempo_env.actions import Answer, FormatError, ToolCall, encode_text, parse, scan
from mempo_env.metrics import AnswerScores, score_answers
from mempo_env.records import Episode, Turn

RIGHT, WRONG, UNKNOWN = "1", "0", "?"


def index_row(episode: Episode) -> dict[str, Any]:
    """What the list shows and searches; short keys, since there is one per episode.

    Args:
        episode: Any.

    Returns:
        ``g`` group, ``r`` rollout, ``m`` one mark per goal, ``f`` F1 in [0, 100] (None after a fault), ``R`` return,
        ``e`` how it ended, ``t`` turns, ``k`` tokens, ``x`` format errors, ``q`` Q(m) of the last memory (or None),
        ``p`` what can be searched.
    """
    marks = goal_marks(episode)
    given = given_answers(episode)
    golds = [answer for goal in episode.task.goals for answer in goal.answers[:4]]
    questions = [goal.question for goal in episode.task.goals]
    return {
        "g": episode.group_id,
        "r": episode.rollout_id,
        "m": marks,
        "f": None if episode.error is not None else _percent(episode.scores.get("f1")),
        "R": _short(episode.episode_return),
        "e": ending(episode),
        "t": len(episode.turns),
        "k": sum(turn.n_prompt + turn.n_output for turn in episode.turns),
        "x": sum(turn.format_error is not None for turn in episode.turns),
        "q": next(
            (q for turn in reversed(episode.turns) if (q := _number(turn.info.get("quality"))) is not None), None
        ),
        "p": "\n".join(text[:400] for text in [*questions, *golds, *given, episode.error or ""]),
    }


def body(episode: Episode) -> dict[str, Any]:
    """All that the screen shows of an episode."""
    scores = _scores(episode)
    given = given_answers(episode)
    matched = len(given) == len(episode.task.goals)
    goals = [
        {
            "question": goal.question,
            "gold": list(goal.answers),
            "kind": goal.kind,
            "given": given[k] if matched else None,
            "f1": None if scores is None else _short(scores.f1_per_goal[k]),
        }
        for k, goal in enumerate(episode.task.goals)
    ]
    return {
        "task": episode.task.id,
        "seed": episode.seed,
        "outcome": _short(episode.outcome),
        "scores": {name: _short(value) for name, value in episode.scores.items()},
        "error": episode.error,
        "ended": ending(episode),
        "goals": goals,
        "given": None if matched or not given else list(given),
        "turns": [_turn(turn) for turn in episode.turns],
    }


def goal_marks(episode: Episode) -> str:
    """One of ``RIGHT``, ``WRONG``, ``UNKNOWN`` per goal, by exact match."""
    scores = _scores(episode)
    if scores is None:
        return UNKNOWN * len(episode.task.goals)
    return "".join(RIGHT if score == 1.0 else WRONG for score in scores.em_per_goal)


def given_answers(episode: Episode) -> tuple[str, ...]:
    """The answers of the last turn; none where it gave none."""
    action = episode.turns[-1].action if episode.turns else None
    return action.answers if isinstance(action, Answer) else ()


def ending(episode: Episode) -> str:
    """``error``, ``answered`` or ``truncated``."""
    if episode.error is not None:
        return "error"
    return "answered" if episode.terminated else "truncated"


def _scores(episode: Episode) -> AnswerScores | None:
    """Scores per goal; None where they are not what was stored: after a fault, or where an environment has its own."""
    if episode.error is not None:
        return None
    scores = score_answers(given_answers(episode), episode.task.goals)
    stored = episode.scores.get("em")
    return scores if stored is None or math.isclose(stored, scores.em, abs_tol=1e-6) else None


def _turn(turn: Turn) -> dict[str, Any]:
    info = turn.info
    shown = {
        "before": turn.observation.get("memory", ""),
        "result": turn.observation.get("tool_result", ""),
        "budget": turn.observation.get("budget", ""),
        "memory": turn.memory,
        "written": turn.memory_written,
        "think": parse(turn.text).think,
        "action": _action(turn),
        "reward": _short(turn.reward),
        "parts": {name: _short(value) for name, value in turn.reward_components.items()},
        "input": turn.n_prompt,
        "output": turn.n_output,
        "cut": bool(info.get("memory_truncated")),
        "stop": info.get("stop_reason", ""),
        "q": _number(info.get("quality")),
        "goals": _numbers(info.get("goal_quality")),
    }
    tokens, advantages = info.get("tokens"), info.get("advantages")
    if isinstance(tokens, list) and isinstance(advantages, list):
        shown["tokens"] = list(map(str, tokens))
        shown["advantages"] = _numbers(advantages)
        shown["segments"] = list(turn.segments)
    else:
        shown["text"] = _by_segment(turn.text)
    return {name: value for name, value in shown.items() if value not in (None, "", False)}


def _action(turn: Turn) -> dict[str, Any]:
    action = turn.action
    if isinstance(action, ToolCall):
        return {"type": "call", "name": action.name, "arguments": action.arguments}
    if isinstance(action, FormatError):
        return {"type": "error", "kind": str(action.kind), "message": action.message}
    return {"type": "answer", "answers": list(action.answers)}


def _by_segment(text: str) -> list[list[Any]]:
    """The output as [segment, text] pieces; joined they are the output."""
    data, position = encode_text(text), 0
    pieces: list[tuple[int, bytes]] = []
    for block in scan(data):
        pieces += [(0, data[position : block.start]), (int(block.segment), data[block.start : block.end])]
        position = block.end
    pieces.append((0, data[position:]))
    return [[segment, part.decode("utf-8", errors="replace")] for segment, part in pieces if part]


def _short(value: float) -> float | None:
    """Six significant digits; None for a number that JSON does not have."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _number(value: object) -> float | None:
    return _short(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _numbers(values: object) -> list[float | None] | None:
    return [_number(value) for value in values] if isinstance(values, list | tuple) else None


def _percent(value: float | None) -> float | None:
    return None if value is None else _short(100 * value)
