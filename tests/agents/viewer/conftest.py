"""Episodes to look at: ordinary ones, hostile ones, and a page made of them."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mempo_env.actions import Action, Answer, FormatError, FormatErrorKind, ToolCall
from mempo_env.agents.episodes_io import save_episodes
from mempo_env.agents.viewer.page import write_page
from mempo_env.agents.viewer.sources import find_sources
from mempo_env.records import Episode, Goal, Task, Turn

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<svg onload=document.title='owned'>",
    "javascript:document.title='owned'",
    "<a href=\"javascript:document.title='owned'\">click</a>",
    "<!-- blocks --> <!-- script --> ]]> &lt; &amp;",
    "</mem><answer>x</answer><tool_call>{}</tool_call>",
    "\u202eabc\u202c \u05d0\u05d1\u05d2 \u2066x\u2069",
    "\x00\x07\x1b[31m\x7f\ud800\ufeff",
    "<iframe src=https://example.org></iframe><link rel=stylesheet href=//example.org/x.css>",
    "url(https://example.org/x.png)",
    "${title} $policy {{x}}",
)
MEGABYTE = "lorem\u202e <b>ipsum</b> " * 52_000


def make_turn(
    memory: str = "",
    before: str = "",
    action: Action | None = None,
    result: str = "",
    text: str | None = None,
    **changes: Any,
) -> Turn:
    """A turn without ids."""
    action = action or ToolCall("search", {"queries": ["Mira plays", "Otto owns"]})
    values: dict[str, Any] = {
        "observation": {"task": "?", "memory": before, "tool_result": result, "budget": "4 tool calls, 7 turns left"},
        "text": f"<mem>{memory}</mem>..." if text is None else text,
        "action": action,
        "reward": 0.0,
        "reward_components": {"outcome": 0.0},
        "memory": memory,
        "memory_written": True,
        "n_prompt": 50,
        "n_output": 20,
    }
    return Turn(**values | changes)


def make_episode(turns: Sequence[Turn], goals: Sequence[Goal], n: int = 0, **changes: Any) -> Episode:
    values: dict[str, Any] = {
        "turns": tuple(turns),
        "task": Task(tuple(goals), id=f"task-{n}"),
        "group_id": f"eval/{len(goals)}/{n}",
        "rollout_id": 0,
        "seed": n,
        "outcome": 0.5,
        "terminated": True,
        "truncated": False,
        "error": None,
        "scores": {},
    }
    return Episode(**values | changes)


GOALS = (Goal("Mira plays what?", ("chess", "Chess game")), Goal("Otto owns what?", ("cat",)))


def plain_episode(n: int = 0) -> Episode:
    """Three turns, one goal of two right, with Q(m)."""
    first = make_turn(info={"quality": 0.1, "goal_quality": [0.1, 0.1]})
    second = make_turn(
        "Mira plays chess; Otto trusts Ida; Kim is old",
        result="Mira plays: Mira plays chess.\nOtto owns: Otto trusts Ida.",
        info={"quality": 0.4, "goal_quality": [0.9, 0.2]},
    )
    last = make_turn(
        "Mira plays chess; Otto trusts Ida and Bo; Ida owns dog",
        before=second.memory,
        action=Answer(("chess", f"dog {n}")),
        reward=0.4,
        reward_components={"outcome": 0.5, "format": -0.1},
        info={"quality": 0.5, "goal_quality": [0.95, 0.25], "memory_truncated": True},
    )
    return make_episode((first, second, last), GOALS, n, scores={"em": 0.5, "f1": 0.5, "success": 0.0})


def hostile_episode(n: int = 0) -> Episode:
    """Every place that can hold text holds all that is hostile."""
    every = " ".join(HOSTILE)
    goals = [Goal(f"{text}?", (text.replace(";", ","), every.replace(";", ","))) for text in HOSTILE]
    answer = Answer(HOSTILE)
    turns = (
        make_turn(
            every,
            result=every,
            text=f"<mem>{every}</mem><think>{every}</think>",
            action=ToolCall(every, {"queries": list(HOSTILE), every: every, "n": {"deep": [every]}}),
            reward_components={every: 1.0, "__proto__": -1.0},
            info={"quality": 1.0, "tokens": list(HOSTILE), "advantages": [(-1) ** i * i for i in range(len(HOSTILE))]},
            output_ids=tuple(range(len(HOSTILE))),
            segments=tuple(i % 5 for i in range(len(HOSTILE))),
        ),
        make_turn(
            "; ".join(HOSTILE),
            before=every,
            result=MEGABYTE,
            text=MEGABYTE,
            action=FormatError(FormatErrorKind.BAD_JSON, every),
        ),
        make_turn(MEGABYTE, before="; ".join(HOSTILE), action=answer, text=f"<mem>{every}</mem><answer>{every}"),
    )
    return make_episode(turns, goals, n, group_id=every, scores={"em": 0.0, "f1": 0.0}, error=None)


def faulty_episode(n: int = 0) -> Episode:
    """One that a fault ended before its first turn."""
    return make_episode(
        (), GOALS, n, error="InfrastructureError: </script> lost", terminated=False, truncated=True, outcome=0.0
    )


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Path]:
    """Writes a page from named lists of episodes."""

    def make(title: str = "run", limit: int = 0, **sources: Sequence[Episode]) -> Path:
        folder = tmp_path / "run" / "eval"
        folder.mkdir(parents=True, exist_ok=True)
        for name, episodes in sources.items():
            save_episodes(folder / f"{name}.episodes.jsonl.gz", episodes)
        out = tmp_path / "view.html"
        write_page(out, title, {"algo": "mempo"}, find_sources(tmp_path / "run"), limit)
        return out

    return make


def unpacked(page: Path) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """The list and the blocks of a page, read as its script reads them."""
    found = dict(re.findall(r'<script type="text/plain" id="([\w-]+)">([^<]*)</script>', page.read_text("ascii")))
    read = {name: json.loads(gzip.decompress(base64.b64decode(packed))) for name, packed in found.items()}
    index = read.pop("index")
    return index, [read[f"block-{number}"] for number in range(len(read))]
