"""Turns per second of GEM's question answering with a search tool; for an interpreter that has ``gem-llm`` installed.

``env_throughput.py`` starts it and reads the line of JSON it prints. The task is that of its ``gem-like`` rows: one
question, five searches whose results are a fixed passage, then an answer. What is stubbed is ``SearchTool._search``,
the request to a server, with the text that GEM would have made of the reply.

Invariant: imports nothing of this project, and nothing of GEM is changed but the request.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from importlib.metadata import version

logging.disable(logging.WARNING)

from datasets import Dataset  # noqa: E402
from datasets.utils.logging import disable_progress_bar  # noqa: E402
from gem.envs.qa_env import QaEnv  # noqa: E402
from gem.tools.search_tool import SearchTool  # noqa: E402
from gem.tools.tool_env_wrapper import ToolEnvWrapper  # noqa: E402
from gem.wrappers.observation_wrapper import ObservationWrapper  # noqa: E402

SEARCHES = 5


class StubbedSearch(SearchTool):  # type: ignore[misc]
    """Answers every query with one passage, without a server."""

    passage = ""

    def _search(self, query: str) -> str:
        return str(self._passages2string([{"document": {"contents": self.passage}}]))


def measure(setting: dict[str, str], episodes: int, history: bool) -> dict[str, float]:
    """Plays episodes; returns turns, and seconds on the clock and of the processor."""
    disable_progress_bar()
    data = Dataset.from_list([{"question": setting["question"], "answer": setting["answer"]}])
    env = ToolEnvWrapper(QaEnv(dataset=data), [StubbedSearch()])
    if history:
        env = ObservationWrapper(env, include_chat_template=False)
    StubbedSearch.passage = setting["passage"]
    search = f"<think>{setting['think']}</think><search>{setting['query']}</search>"
    answer = f"<think>{setting['think']}</think><answer>{setting['answer']}</answer>"
    turns, resets, wall, cpu = 0, 0.0, time.perf_counter(), time.process_time()
    for _ in range(episodes):
        began = time.process_time()
        env.reset()
        resets += time.process_time() - began
        for _ in range(SEARCHES):
            observation, *_ = env.step(search)
            assert setting["passage"].split()[0] in observation
        _, reward, terminated, *_ = env.step(answer)
        assert terminated
        assert reward == 1.0
        turns += SEARCHES + 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"turns": turns, "wall": wall, "cpu": cpu, "cpu_without_resets": cpu - resets}


if __name__ == "__main__":
    setting, episodes = json.loads(sys.argv[1]), int(sys.argv[2])
    rows = {name: measure(setting, episodes, name == "history") for name in ("plain", "history")}
    sys.stdout.write(json.dumps({"gem-llm": version("gem-llm"), "python": sys.version.split()[0], "rows": rows}) + "\n")
