"""How a run's ``retrieval`` reaches its environments."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from mempo_env.algos.config import EnvSettings, RunConfig
from mempo_env.algos.setup import env_factory, env_threads
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.envs.search_client import SearchClientSettings


def test_retrieval_reaches_the_environment_and_the_pool(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"id": "p", "title": "T", "text": "x"}))
    (tmp_path / "questions.train.jsonl").write_text(json.dumps({"id": "q", "question": "q?", "answers": ["a"]}))
    config = RunConfig(dataset="qa", data=(str(tmp_path),))
    url = "http://127.0.0.1:9"
    remote = replace(config, env_args=EnvSettings(retrieval=url))
    for made, expected, threads in ((config, "bm25", 0), (remote, SearchClientSettings(url), 32)):
        env = env_factory(made, 1, "train")().unwrapped
        assert isinstance(env, MultiGoalEnv)
        assert env.retrieval == expected
        assert env_threads(made) == threads
