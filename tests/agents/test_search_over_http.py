"""Whole episodes over a search server: equal to the embedded ones where it works, errors that count where it fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mempo_env.agents.evaluation import evaluate
from mempo_env.agents.expert import ExpertAgent
from mempo_env.agents.rollout import EnvPool, as_groups, group_specs, rollout
from mempo_env.algos.metrics import rollout_metrics
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.envs.search_client import SearchClientSettings, shared_http_searcher
from mempo_env.envs.search_server import SearchServer, ServerSettings
from mempo_env.envs.searcher import ScoredPassage, Searcher
from mempo_env.records import Episode

for name in ("httpx2", "tenacity", "starlette", "uvicorn"):
    pytest.importorskip(name, reason="the extras 'search' and 'serve' are not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("qa")
    rows = [{"id": f"p{i}", "title": f"T{i}", "text": f"T{i} plays chess number{i}."} for i in range(40)]
    (made / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    questions = [
        {"id": f"q{i}", "question": f"What plays T{i}?", "answers": [f"number{i}"], "supporting_ids": [f"p{i}"]}
        for i in range(40)
    ]
    (made / "questions.train.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return made


class Flaky:
    """Another searcher that fails whenever a query is one of these."""

    def __init__(self, inner: Searcher, bad: Sequence[str]) -> None:
        self.inner = inner
        self.bad = frozenset(bad)

    def retrieve(self, queries: Sequence[str], topk: int) -> list[list[ScoredPassage]]:
        if self.bad & set(queries):
            raise OSError("a disk that fails")
        return self.inner.retrieve(queries, topk)


@pytest.fixture
def flaky(folder: Path) -> Iterator[tuple[Flaky, str]]:
    index = MultiGoalEnv(dataset="qa", data=folder).source.index
    assert index is not None
    searcher, ready = Flaky(index, ()), threading.Event()
    server = SearchServer(lambda: searcher, ServerSettings(), on_ready=lambda _: ready.set())
    thread = threading.Thread(target=server.run)
    thread.start()
    assert ready.wait(20)
    yield searcher, server.url
    server.stop()
    thread.join(20)


def play(folder: Path, threads: int = 0, **arguments: Any) -> list[Episode]:
    def make() -> MultiGoalEnv:
        return MultiGoalEnv(goals=3, dataset="qa", data=folder, **arguments)

    with EnvPool(make, threads=threads) as envs:
        return rollout(ExpertAgent(), envs, group_specs(range(16), 2), seed=0, step=0)


def test_transcripts_over_a_server_are_the_embedded_ones(folder: Path, flaky: tuple[Flaky, str]) -> None:
    embedded = play(folder)
    assert all(episode.error is None and episode.scores["success"] for episode in embedded)
    assert play(folder, retrieval=flaky[1]) == embedded
    assert play(folder, threads=32, retrieval=flaky[1]) == embedded


def test_a_fault_that_stays_is_counted_and_never_a_score(folder: Path, flaky: tuple[Flaky, str]) -> None:
    embedded = play(folder)
    searcher, url = flaky
    bad = {query.query for goal in embedded[0].task.goals for query in goal.evidence}
    hit = [bool(bad & {e.query for goal in episode.task.goals for e in goal.evidence}) for episode in embedded]
    assert 0 < sum(hit) < len(hit)
    searcher.bad = frozenset(bad)
    settings = SearchClientSettings(url, attempts=2, backoff_s=0.01, breaker_failures=1000)
    episodes = play(folder, threads=8, retrieval=settings)
    assert [episode.error is not None for episode in episodes] == hit
    for episode, failed, ours in zip(episodes, hit, embedded, strict=True):
        if failed:
            assert (episode.error or "").startswith("SearchUnavailableError: ")
            assert episode.truncated
            assert not episode.terminated
        else:
            assert episode == ours, "a neighbour's fault changes nothing"
    metrics = rollout_metrics(as_groups(episodes))
    assert metrics["rollout/errors"] == sum(hit)
    assert metrics["rollout/episodes"] == 32
    assert metrics["rollout/f1"] == rollout_metrics(as_groups(embedded))["rollout/f1"], "errors are not averaged in"
    assert shared_http_searcher(settings).faults["SearchUnavailableError"] == sum(hit)


def test_a_server_that_is_gone_is_given_up_quickly_and_everything_is_counted(folder: Path) -> None:
    settings = SearchClientSettings("http://127.0.0.1:9", attempts=1, breaker_failures=2)
    report = evaluate(
        ExpertAgent(),
        lambda goals: lambda: MultiGoalEnv(goals=goals, dataset="qa", data=folder, retrieval=settings),
        (2,),
        8,
        0,
    )
    assert (report.rows[0].episodes, report.rows[0].errors) == (0, 8)
    assert {(episode.error or "").split(":")[0] for episode in report.episodes} == {
        "SearchUnavailableError",
        "CircuitOpenError",
    }
    assert shared_http_searcher(settings).faults == {"SearchUnavailableError": 2, "CircuitOpenError": 6}
