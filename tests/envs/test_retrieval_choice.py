"""The ``retrieval`` argument of an environment, and what an environment over a server promises."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mempo_env.envs.dense import DenseIndex, DenseSettings
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.envs.retrieval import Bm25Index
from mempo_env.envs.retrieval_choice import read_retrieval
from mempo_env.envs.search_client import SearchClientSettings, shared_http_searcher
from mempo_env.envs.searcher import ScoredPassage
from mempo_env.errors import UserError
from mempo_env.records import Goal, Passage, Task
from mempo_env.testing import check_memory_env

CALL = '<mem>m</mem><tool_call>{"name": "search", "arguments": {"queries": ["T1 plays", "zzz"]}}</tool_call>'
NO_SERVER = "http://127.0.0.1:9"


@pytest.fixture
def qa_folder(tmp_path: Path) -> Path:
    rows = [{"id": f"p{i}", "title": f"T{i}", "text": f"T{i} plays chess number{i}."} for i in range(6)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    questions = [
        {"id": f"q{i}", "question": f"What plays T{i}?", "answers": [f"number{i}"], "supporting_ids": [f"p{i}"]}
        for i in range(6)
    ]
    (tmp_path / "questions.train.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return tmp_path


def qa_env(folder: Path, **arguments: Any) -> MultiGoalEnv:
    return MultiGoalEnv(goals=2, dataset="qa", data=folder, **arguments)


class Everything:
    """A searcher of one's own."""

    def retrieve(self, queries: Sequence[str], topk: int) -> list[list[ScoredPassage]]:
        return [[ScoredPassage(Passage("x", "Own", f"found for {query}"), 1.0)] for query in queries]


def test_what_it_may_be() -> None:
    own = Everything()
    assert read_retrieval("bm25") == "bm25"
    assert read_retrieval("dense:intfloat/e5-base-v2") == DenseSettings("intfloat/e5-base-v2")
    assert read_retrieval("https://search.example:8000") == SearchClientSettings("https://search.example:8000")
    assert read_retrieval(own) is own
    for wrong in ("", "bm52", "dense", "dense:", "localhost:8000", 3, None, {"url": "http://x"}):
        with pytest.raises(UserError):
            read_retrieval(wrong)


def test_the_default_is_bm25_and_naming_it_changes_nothing(qa_folder: Path) -> None:
    for made in ({}, {"retrieval": "bm25"}):
        env = qa_env(qa_folder, **made)
        env.reset(seed=3)
        assert isinstance(env._search.index, Bm25Index)
        assert env.step(CALL)[0]["tool_result"] == "T1 plays: [T1] T1 plays chess number1.\nzzz: nothing found"


def test_an_environment_over_a_server_keeps_every_promise(qa_folder: Path, search_server: Callable[..., Any]) -> None:
    pytest.importorskip("tenacity", reason="the extra 'search' is not installed")
    embedded = qa_env(qa_folder)
    url = search_server(lambda: embedded.source.index).url
    remote = qa_env(qa_folder, retrieval=url)
    check_memory_env(qa_env(qa_folder, retrieval=url))
    for seed in range(5):
        assert embedded.reset(seed=seed)[0] == remote.reset(seed=seed)[0]
        for output in (CALL, CALL, "<mem>m</mem><answer>number1; number2</answer>"):
            ours, theirs = remote.step(output), embedded.step(output)
            assert ours == theirs
    assert remote._search.index is shared_http_searcher(SearchClientSettings(url))
    copy = pickle.loads(pickle.dumps(remote))
    assert copy._search.index is remote._search.index
    assert len(pickle.dumps(remote)) < 10_000


def test_a_fault_ends_the_episode_as_an_error(qa_folder: Path) -> None:
    pytest.importorskip("tenacity", reason="the extra 'search' is not installed")
    env = qa_env(qa_folder, retrieval=SearchClientSettings(NO_SERVER, attempts=1))
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(CALL)
    assert (terminated, truncated) == (False, True)
    assert info["error"].startswith("SearchUnavailableError: the search server at 127.0.0.1:9")
    assert info["format_error"] == ""
    assert "success" not in info, "it was not scored"
    assert reward == 0.0  # of the step; an episode with an error has no place in baselines, loss or means


def test_a_server_cannot_search_what_a_task_brings_along(qa_folder: Path) -> None:
    with pytest.raises(UserError, match=r"closed-world.*no server has"):
        MultiGoalEnv(retrieval=NO_SERVER)
    task = Task(goals=(Goal("q?", ("a",)),), id="t", passages=(Passage("1", "T", "text"),))
    with pytest.raises(UserError, match="brings its own passages"):
        qa_env(qa_folder, retrieval=NO_SERVER).reset(options={"task": task})


def test_a_searcher_of_ones_own(qa_folder: Path) -> None:
    env = qa_env(qa_folder, retrieval=Everything())
    env.reset(seed=0)
    assert env.step(CALL)[0]["tool_result"].startswith("T1 plays: [Own] found for T1 plays\n")


def test_embeddings_of_a_shared_corpus_and_of_a_task(qa_folder: Path, tiny_encoder: str) -> None:
    envs = [qa_env(qa_folder, retrieval=f"dense:{tiny_encoder}") for _ in range(2)]
    for env in envs:
        env.reset(seed=0)
        result = env.step(CALL)[0]["tool_result"]
        assert all(line.startswith(("T1 plays: [T", "zzz: [T")) for line in result.splitlines())
    assert isinstance(envs[0]._search.index, DenseIndex)
    assert envs[0]._search.index is envs[1]._search.index, "environments of a process share the index"
    world = MultiGoalEnv(goals=1, retrieval=DenseSettings(tiny_encoder))
    world.reset(seed=0)
    assert "nothing found" not in world.step(CALL)[0]["tool_result"]
    assert pickle.loads(pickle.dumps(world)).step(CALL)[0] == world.step(CALL)[0]


def test_a_missing_extra_says_what_to_install(qa_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    real = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name in ("httpx2", "sentence_transformers"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *rest)

    monkeypatch.setattr("mempo_env.plugins.importlib.import_module", without)
    with pytest.raises(UserError, match=r"pip install 'mempo-env\[search\]'"):
        qa_env(qa_folder, retrieval="http://127.0.0.1:10").reset(seed=0)
    with pytest.raises(UserError, match=r"pip install 'mempo-env\[dense\]'"):
        DenseIndex.in_memory([Passage("1", "a", "b")], DenseSettings("no-such-model"))
