"""Episodes survive a file unchanged; a file that is none is refused by name and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mempo_env.actions import Action, Answer, FormatError, FormatErrorKind, ToolCall
from mempo_env.agents.episodes_io import episode_from_dict, episode_to_dict, load_episodes, save_episodes
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.rollout import group_specs, rollout
from mempo_env.agents.scripted import RandomTextAgent
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.errors import UserError
from mempo_env.records import Episode, Evidence, Goal, Task, Turn

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)
ACTIONS: st.SearchStrategy[Action] = st.one_of(
    st.builds(ToolCall, ANY_TEXT, st.dictionaries(ANY_TEXT, JSON, max_size=3)),
    st.builds(Answer, st.lists(ANY_TEXT, max_size=3).map(tuple)),
    st.builds(FormatError, st.sampled_from(FormatErrorKind), ANY_TEXT),
)


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    n = draw(st.integers(0, 4))
    floats = st.floats(allow_nan=False)
    return Turn(
        observation={name: draw(ANY_TEXT) for name in ("task", "memory", "tool_result", "budget")},
        text=draw(ANY_TEXT),
        action=draw(ACTIONS),
        reward=draw(floats),
        reward_components={"outcome": draw(floats)},
        memory=draw(ANY_TEXT),
        memory_written=draw(st.booleans()),
        n_prompt=draw(st.integers(0, 10)),
        n_output=n,
        prompt_ids=tuple(draw(st.lists(st.integers(0, 2**31), max_size=4))),
        output_ids=tuple(draw(st.lists(st.integers(0, 2**31), min_size=n, max_size=n))),
        logprobs=tuple(draw(st.lists(floats, min_size=n, max_size=n))),
        segments=tuple(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))),
        info=draw(st.dictionaries(ANY_TEXT, JSON, max_size=3)),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(turns(), max_size=3), ANY_TEXT, st.none() | ANY_TEXT)
def test_any_episode_survives(tmp_path: Path, played: list[Turn], name: str, error: str | None) -> None:
    goal = Goal(name, ("a", name), "two-hop", (Evidence(name, "n", "p", 0),), name)
    episode = Episode(tuple(played), Task((goal,), name), name, 3, 2**40, 0.1, False, True, error, {"f1": 1 / 3})
    assert save_episodes(tmp_path / "episodes.jsonl", [episode, episode]) == 2
    assert load_episodes(tmp_path / "episodes.jsonl") == [episode, episode]


@pytest.mark.parametrize("name", ["episodes.jsonl", "episodes.jsonl.gz"])
def test_played_episodes_survive(tmp_path: Path, name: str) -> None:
    episodes = rollout(RandomTextAgent(), lambda: MultiGoalEnv(goals=2), group_specs([1, 2], 4), seed=0, step=0)
    episodes += rollout(ExpertAgent(), lambda: MultiGoalEnv(goals=2), group_specs([1], 1), seed=0, step=0)
    path = tmp_path / name
    save_episodes(path, episodes)
    assert load_episodes(path) == episodes
    assert [file.name for file in tmp_path.iterdir()] == [name]
    data = path.read_bytes()
    assert (gzip.decompress(data) if name.endswith(".gz") else data).count(b"\n") == len(episodes)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    good = rollout(ExpertAgent(), MultiGoalEnv, group_specs([1], 1), seed=0, step=0)
    save_episodes(path, good)
    bad = replace(good[0], turns=(replace(good[0].turns[0], info={"object": object()}),))
    with pytest.raises(TypeError):
        save_episodes(path, [*good, bad])
    assert load_episodes(path) == good
    assert len(list(tmp_path.iterdir())) == 1


def line(**changes: object) -> str:
    episode = rollout(ExpertAgent(), MultiGoalEnv, group_specs([1], 1), seed=0, step=0)[0]
    return json.dumps({"version": 1} | episode_to_dict(episode) | changes)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: "{not json", "not valid JSON"),
        (lambda: "[1]", "not an episode"),
        (lambda: line(version=2), "format version 1"),
        (lambda: line(turns=[{}]), "KeyError"),
        (lambda: line(task={"goals": [], "id": ""}), "passages"),
        (lambda: line(surplus=1), "surplus"),
        (lambda: line(turns=7), "not a whole episode"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, broken: Callable[[], str], message: str) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text(f"{line()}\n{broken()}\n", encoding="ascii")
    with pytest.raises(UserError, match=rf"episodes\.jsonl:2: .*{message}"):
        load_episodes(path)


def test_unreadable_and_unwritable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.jsonl is missing"):
        load_episodes(tmp_path / "missing.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(line().encode())[:-20])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz:\d: cannot be read"):
        load_episodes(tmp_path / "cut.jsonl.gz")
    with pytest.raises(UserError, match="cannot write"):
        save_episodes(tmp_path / "no folder" / "episodes.jsonl", [])


def test_an_unknown_action_is_refused() -> None:
    data = json.loads(line())
    data.pop("version")
    data["turns"][0]["action"]["type"] = "Dance"
    with pytest.raises(ValueError, match="Dance"):
        episode_from_dict(data)
