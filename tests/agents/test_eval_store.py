"""The folder of an evaluation: nothing is lost by a torn line, going on, or a full disk; other settings are refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mempo_env.agents.episodes_io import load_episodes
from mempo_env.agents.eval_rows import RowKey
from mempo_env.agents.eval_store import EvalStore, open_store, read_store
from mempo_env.errors import UserError
from mempo_env.records import Episode

from .test_eval_pairs import episode

KEY, OTHER = RowKey("a", "memory", "brief", 1), RowKey("runs/a b", "window-3", "brief*", 1)
PLAN = {"contexts": ["memory"], "budgets": ["brief"], "goals": [1]}
ENVIRONMENT = {"env": "E", "split": "dev", "topk": 1}


def add(folder: Path, episodes: list[Episode], key: RowKey = KEY, **changes: Any) -> None:
    settings: dict[str, Any] = {"environment": ENVIRONMENT, "agents": {"a": {"weights": "1"}}, "plan": PLAN}
    with open_store(folder, **settings | changes) as store:
        store.append(key, episodes)


def _store_and_fail(store: EvalStore) -> None:
    store.append(KEY, [episode(1)])
    raise UserError("something else")


def file_of(folder: Path) -> Path:
    return next(iter(folder.glob("episodes/*.gz")))


def test_what_was_stored_is_read_back_by_row_in_the_order_of_the_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "eval"
    add(folder, [episode(2), episode(1, 0.5)])
    add(folder, [episode(3)])
    add(folder, [episode(1)], OTHER)
    rows = read_store(folder)
    assert [key for key in rows] == [KEY, OTHER]  # noqa: C416
    assert rows[KEY] == [episode(1, 0.5), episode(2), episode(3)]
    with gzip.open(file_of(folder), "rt") as file:
        assert json.loads(file.readline())["row"] == vars(KEY)
    assert load_episodes(file_of(folder))[0] == episode(2), "other readers of episodes can read it"
    with open_store(folder, ENVIRONMENT, {"a": {"weights": "1"}}, PLAN) as store:
        assert store.done(KEY) == {1, 2, 3}
        assert store.done(RowKey("a", "history", "brief", 1)) == set()


def test_going_on_with_other_versions_is_said_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def going_on_with(torch: str) -> Any:
        monkeypatch.setattr("mempo_env.agents.eval_store.versions", lambda: {"python": "3.11", "torch": torch})
        caplog.clear()
        add(tmp_path / "eval", [episode(1)])
        return json.loads((tmp_path / "eval" / "config.json").read_text())

    assert going_on_with("1")["later_versions"] == []
    assert not caplog.text
    for _ in range(2):
        found = going_on_with("2")
        assert found["versions"] == {"python": "3.11", "torch": "1"}, "what the first episodes were played with"
        assert found["later_versions"] == [{"torch": "2"}]
    assert not caplog.text, "it is said once"
    going_on_with("3")
    assert "torch 1, now 3" in caplog.text


def test_two_rows_never_share_a_file(tmp_path: Path) -> None:
    keys = [RowKey(name, "memory", "brief", 1) for name in ("a/b", "a b", "a-b", "ä")]
    for key in keys:
        add(tmp_path / "eval", [episode(1)], key)
    assert set(read_store(tmp_path / "eval")) == set(keys)


@pytest.mark.parametrize("torn", [1, 5, 60])
def test_a_torn_last_line_is_dropped_and_the_others_kept(
    tmp_path: Path, torn: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "eval"
    add(folder, [episode(1), episode(2), episode(3)])
    path = file_of(folder)
    path.write_bytes(path.read_bytes()[:-torn])
    assert read_store(folder)[KEY] == [episode(1), episode(2)]
    assert "torn" in caplog.text
    add(folder, [episode(4)])
    assert read_store(folder)[KEY] == [episode(1), episode(2), episode(4)]
    assert load_episodes(path) == [episode(1), episode(2), episode(4)], "the file is whole again"


def test_a_file_torn_within_its_first_line_starts_again(tmp_path: Path) -> None:
    add(tmp_path / "eval", [episode(1)])
    path = file_of(tmp_path / "eval")
    path.write_bytes(path.read_bytes()[:20])
    assert read_store(tmp_path / "eval") == {}
    add(tmp_path / "eval", [episode(1)])
    assert read_store(tmp_path / "eval")[KEY] == [episode(1)]


def test_damage_in_the_middle_is_named_not_hidden(tmp_path: Path) -> None:
    add(tmp_path / "eval", [episode(1), episode(2)])
    path = file_of(tmp_path / "eval")
    data = bytearray(path.read_bytes())
    data[40] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"line 1 is damaged"):
        read_store(tmp_path / "eval")


def test_an_episode_that_ended_on_a_fault_is_played_again_and_the_later_one_counts(tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    add(folder, [episode(1, error="down"), episode(2)])
    with open_store(folder, ENVIRONMENT, {"a": {"weights": "1"}}, PLAN) as store:
        assert store.done(KEY) == {2}
    add(folder, [episode(1, 1.0)])
    assert [one.error for one in read_store(folder)[KEY]] == [None, None]


def test_other_settings_are_refused_and_a_plan_may_grow(tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    add(folder, [episode(1)])
    before = (folder / "config.json").read_bytes()
    with pytest.raises(UserError, match=r'environment: split = "dev", not "test"; give the same settings to go on'):
        add(folder, [], environment=ENVIRONMENT | {"split": "test"})
    with pytest.raises(UserError, match=r'a: weights = "1", not "2"'):
        add(folder, [], agents={"a": {"weights": "2"}})
    with pytest.raises(UserError, match="more = null, not 1"):
        add(folder, [], environment=ENVIRONMENT | {"more": 1})
    assert (folder / "config.json").read_bytes() == before
    grown = RowKey("b", "history", "paper", 1)
    add(
        folder,
        [episode(1)],
        grown,
        agents={"b": {}},
        plan={"contexts": ["history"], "budgets": ["paper"], "goals": [1]},
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["plan"]["contexts"] == ["memory", "history"]
    assert list(config["agents"]) == ["a", "b"]
    assert list(read_store(folder)) == [KEY, grown]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    for name, text in (("empty", None), ("run", '{"run": {}, "algorithm": {}}'), ("list", "[1]"), ("broken", "{")):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "config.json").write_text(text)
        with pytest.raises(UserError, match=f"{name} exists; choose another --out"):
            add(tmp_path / name, [])
        with pytest.raises(UserError, match="is no evaluation"):
            read_store(tmp_path / name)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text('{"kind": "evaluation", "agents": {}}')
    with pytest.raises(UserError, match="has no part 'environment'"):
        add(damaged, [])


def test_a_folder_without_an_episode_goes_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_store(tmp_path / "eval", ENVIRONMENT, {}, PLAN):
        raise RuntimeError
    assert not (tmp_path / "eval").exists()
    with pytest.raises(UserError), open_store(tmp_path / "eval", ENVIRONMENT, {}, PLAN) as store:
        _store_and_fail(store)
    assert read_store(tmp_path / "eval")[KEY] == [episode(1)]


def test_a_full_disk_keeps_what_was_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path / "eval", [episode(1)])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mempo_env.agents.eval_store.os.fsync", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        add(tmp_path / "eval", [episode(2)])
    monkeypatch.undo()
    assert read_store(tmp_path / "eval")[KEY] == [episode(1)]
