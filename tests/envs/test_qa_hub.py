"""The hub: the same ``datasets.load_dataset`` call, on files in place of the network."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mempo_env.envs import qa_hub
from mempo_env.envs.composition import ComposedTasks, Composition
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.envs.qa_data import QaDataset, shared_dataset
from mempo_env.envs.qa_hub import HUB, HubDataset
from mempo_env.errors import UserError

Write = Callable[..., Path]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a folder of files in the place of a repository; ``load_dataset`` reads it as it reads a repository."""
    pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def put(name: str, files: dict[str, list[dict[str, Any]]], card: str = "") -> None:
        folder = tmp_path / "repositories" / HUB[name].repository
        for file, rows in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        if card:
            (folder / "README.md").write_text(f"---\n{card}\n---\n", encoding="utf-8")
        monkeypatch.setitem(HUB, name, HubDataset(str(folder), HUB[name].config, HUB[name].splits))

    return put


def config(name: str, **files: str) -> str:
    lines = "\n".join(f"  - split: {split}\n    path: {path}" for split, path in files.items())
    return f"configs:\n- config_name: {name}\n  data_files:\n{lines}"


def test_hotpotqa(hub: Callable[..., None], published: Any) -> None:
    rows = published["hub-hotpotqa"][1]
    card = config("distractor", train="distractor/train.jsonl", validation="distractor/validation.jsonl")
    hub("hotpotqa", {"distractor/train.jsonl": rows, "distractor/validation.jsonl": rows[1:]}, card)
    train, dev = QaDataset(["hub:hotpotqa"], "train"), QaDataset(["hub:hotpotqa"], "dev")
    assert [q.id for q in dev.questions] == [rows[1]["id"]]
    assert [q.id for q in train.questions] == [rows[0]["id"]]  # the other one is in dev, too
    assert train.dropped == 1
    assert (train.questions[0].dataset, train.questions[0].kind, train.questions[0].hops) == (
        "hotpotqa",
        "comparison",
        2,
    )
    assert [train.passage(name).title for name in train.questions[0].supporting_ids] == ["Scott Derrickson", "Ed Wood"]
    assert shared_dataset(["hub:hotpotqa"], "dev") is shared_dataset(("hub:hotpotqa",), "dev")
    with pytest.raises(UserError, match=r"hub:hotpotqa has no split 'test'; its splits: dev, train"):
        QaDataset(["hub:hotpotqa"], "test")


def test_rows_of_the_hub_equal_those_of_the_file(
    hub: Callable[..., None], published: Any, write: Write, tmp_path: Path
) -> None:
    name, rows = published["musique"]
    hub("musique", {f"musique_ans_v1.0_{split}.jsonl": rows for split in ("train", "dev")})  # no card, as published
    from_hub = QaDataset(["hub:musique"], "dev")
    from_file = QaDataset([write(tmp_path / "musique" / name, rows)], "dev")
    assert from_hub.compose(from_hub.questions).goals == from_file.compose(from_file.questions).goals
    assert from_hub.index.passages == from_file.index.passages


def test_nq_and_flashrag_with_a_corpus(
    hub: Callable[..., None], published: Any, texts: dict[str, str], tmp_path: Path
) -> None:
    corpus = tmp_path / "wiki-18.jsonl"
    corpus.write_text(texts["wiki-18"], encoding="utf-8")
    rows = published["nq-open"][1]
    card = config("nq_open", train="nq_open/train.jsonl", validation="nq_open/validation.jsonl")
    hub("nq", {"nq_open/train.jsonl": rows[:1], "nq_open/validation.jsonl": rows[1:]}, card)
    assert [q.text for q in QaDataset(["hub:nq", corpus], "train").questions] == [rows[0]["question"]]
    with pytest.raises(UserError, match=r"hub:nq has no corpus.jsonl.*bring no paragraphs"):
        QaDataset(["hub:nq"], "train")
    card = config("nq", train="nq/train.jsonl", dev="nq/dev.jsonl", test="nq/test.jsonl")
    flash = published["flashrag-nq"][1]
    hub("flashrag/nq", {f"nq/{split}.jsonl": flash for split in ("train", "dev", "test")}, card)
    data = QaDataset(["hub:flashrag/nq", str(corpus)], "test")
    assert (data.questions[0].answers, data.questions[0].dataset) == (("Wilhelm Röntgen",), "nq")


def test_an_environment_takes_the_name(hub: Callable[..., None], published: Any) -> None:
    rows = published["2wikimultihopqa"][1]
    hub("2wikimultihopqa", {"train.jsonl": rows, "validation.jsonl": [rows[0] | {"_id": "b", "question": "other?"}]})
    env = MultiGoalEnv(goals=1, dataset="qa", data="hub:2wikimultihopqa", split="train")
    observation, _ = env.reset(seed=0)
    assert observation["task"] == rows[0]["question"]
    composed = ComposedTasks(shared_dataset(["hub:2wikimultihopqa"], "dev"), Composition.of("mixed"), (1, 1))
    assert composed.dataset.questions[0].dataset == "2wikimultihopqa"


def test_a_bad_record_names_its_place(hub: Callable[..., None], published: Any) -> None:
    rows = published["hub-hotpotqa"][1]
    card = config("distractor", train="distractor/train.jsonl", validation="distractor/validation.jsonl")
    bad = [rows[0], rows[1] | {"answer": ""}]
    hub("hotpotqa", {"distractor/train.jsonl": rows, "distractor/validation.jsonl": bad}, card)
    with pytest.raises(UserError, match=r"^hub:hotpotqa \(.*validation\): record 2: there is no 'answer'"):
        QaDataset(["hub:hotpotqa"], "dev")


def test_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"hub:musique .*cannot be loaded: .*connect to the network once.*give their"):
        QaDataset(["hub:musique"], "dev")


def test_without_the_package_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *args: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "datasets":
            raise ModuleNotFoundError("No module named 'datasets'", name="datasets")
        return imported(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"pip install 'mempo-env\[hub\]'"):
        QaDataset(["hub:musique"], "dev")


def test_names_are_checked() -> None:
    with pytest.raises(UserError, match=r"unknown hub data set 'hotpot'; did you mean 'hotpotqa'\?"):
        QaDataset(["hub:hotpot"], "dev")
    assert {where.repository for where in HUB.values()} == {
        "hotpotqa/hotpot_qa",
        "dgslibisey/MuSiQue",
        "framolfese/2WikiMultihopQA",
        "google-research-datasets/nq_open",
        "RUC-NLPIR/FlashRAG_datasets",
    }
    assert qa_hub.PREFIX == "hub:"
