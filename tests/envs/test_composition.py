"""Which questions go into one task: exact, drawn from the seed alone, refused where it cannot be met."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempo_env.algos.config import EnvSettings, RunConfig
from mempo_env.algos.setup import env_factory
from mempo_env.envs.composition import ComposedTasks, Composition
from mempo_env.envs.mem1 import OPENING
from mempo_env.envs.multi_goal import MultiGoalEnv
from mempo_env.envs.qa_data import QaDataset
from mempo_env.errors import UserError
from mempo_env.records import Task

Write = Callable[..., Path]
SIZES = {"hotpotqa": 30, "nq": 20, "musique": 25}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three data sets whose question ids tell where they come from, of how many hops they are, and of which kind."""
    root = tmp_path_factory.mktemp("composition")
    made = []
    for name, size in SIZES.items():
        folder = root / name
        folder.mkdir()
        corpus = [{"id": f"{name}-p{at}", "title": f"{name} {at}", "text": f"word{at} of {name}"} for at in range(4)]
        questions = []
        for at in range(size):
            hops = {"hotpotqa": 2, "nq": 1, "musique": 2 + at % 3}[name]
            kind = {"hotpotqa": ("bridge", "comparison")[at % 2], "nq": "single", "musique": f"{hops}hop"}[name]
            mark = "" if name == "nq" else "?"
            questions.append(
                {
                    "id": f"{name}/{hops}/{kind}/{at}",
                    "question": f"what of {name} number {at}{mark}",
                    "answers": [str(at)],
                    "type": kind,
                    "supporting_ids": [f"{name}-p{one}" for one in range(hops)],
                }
            )
        for file, rows in (("corpus", corpus), ("questions.train", questions)):
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        made.append(str(folder))
    return made


def tasks(folders: list[str], goals: int, count: int = 40, **arguments: Any) -> list[Task]:
    env = MultiGoalEnv(goals=goals, dataset="qa", data=folders, **arguments)
    return [env.reset(seed=seed)[1]["task"] for seed in range(count)]


def origins(task: Task, part: int = 0) -> list[str]:
    return [goal.id.split("/")[part] for goal in task.goals]


def test_mempo_at_two_goals_is_one_of_each_in_a_drawn_order(folders: list[str]) -> None:
    orders = Counter(tuple(origins(task)) for task in tasks(folders, 2, 200, composition="mempo"))
    assert set(orders) == {("hotpotqa", "nq"), ("nq", "hotpotqa")}
    assert 70 < orders["nq", "hotpotqa"] < 130  # binomial(200, 1/2): standard deviation 7


@pytest.mark.parametrize("goals", [4, 6, 8, 10])
def test_mempo_beyond_is_hotpotqa_alone(folders: list[str], goals: int) -> None:
    for task in tasks(folders, goals, composition="mempo"):
        assert origins(task) == ["hotpotqa"] * goals
        assert len({goal.id for goal in task.goals}) == goals


@pytest.mark.parametrize("goals", [1, 3, 11, (2, 4)])
def test_mempo_has_only_the_papers_numbers_of_goals(folders: list[str], goals: Any) -> None:
    with pytest.raises(UserError, match="2 goals, or 4 to 10, as in the paper"):
        MultiGoalEnv(goals=goals, dataset="qa", data=folders, composition="mempo")


def test_mempo_names_what_is_missing(folders: list[str]) -> None:
    with pytest.raises(UserError, match=r"needs 'nq' among the data, which is hotpotqa, musique"):
        MultiGoalEnv(goals=2, dataset="qa", data=[folders[0], folders[2]], composition="mempo")
    MultiGoalEnv(goals=4, dataset="qa", data=[folders[0], folders[2]], composition="mempo")


@given(goals=st.integers(1, 16), seed=st.integers(0, 2**32))
def test_mixed_shares_differ_by_one_at_most(folders: list[str], goals: int, seed: int) -> None:
    env = MultiGoalEnv(goals=goals, dataset="qa", data=folders, composition="mixed")
    task = env.reset(seed=seed)[1]["task"]
    counts = Counter(dict.fromkeys(SIZES, 0))
    counts.update(origins(task))
    assert sum(counts.values()) == goals == len({goal.id for goal in task.goals})
    assert max(counts.values()) - min(counts.values()) <= 1


def test_mixed_gives_every_data_set_its_turn_and_place(folders: list[str]) -> None:
    drawn = tasks(folders, 4, 300, composition="mixed")
    doubled = Counter(Counter(origins(task)).most_common(1)[0][0] for task in drawn)
    first = Counter(origins(task)[0] for task in drawn)
    for counts in (doubled, first):
        assert all(60 < counts[name] < 140 for name in SIZES)  # 100 each, standard deviation 8


def test_mem1_tasks_are_of_one_data_set_and_end_in_question_marks(folders: list[str]) -> None:
    drawn = tasks(folders[:2], 3, 300, composition="mem1")
    chosen: Counter[str] = Counter()
    for task in drawn:
        assert len(set(origins(task))) == 1
        chosen[origins(task)[0]] += 1
        assert task.text == "; ".join(goal.question for goal in task.goals)
        assert all(goal.question.endswith("?") and not goal.question.endswith("??") for goal in task.goals)
    assert 150 < chosen["hotpotqa"] < 210  # 30 of 50 questions: 180, standard deviation 8.5


@pytest.mark.parametrize(
    ("hops", "allowed"),
    [(2, {"2"}), ((2, 3), {"2", "3"}), ([3, 4], {"3", "4"}), (1, {"1"}), ((4,), {"4"})],
)
def test_hops_choose(folders: list[str], hops: Any, allowed: set[str]) -> None:
    seen = {hop for task in tasks(folders, 4, hops=hops) for hop in origins(task, 1)}
    assert seen == allowed


def test_a_mapping_of_hops_is_met_exactly(folders: list[str]) -> None:
    orders = set()
    for task in tasks(folders, 6, hops={1: 1, 2: 3, 4: 2}):
        assert Counter(origins(task, 1)) == {"1": 1, "2": 3, "4": 2}
        orders.add(tuple(origins(task, 1)))
    assert len(orders) > 10


def test_kinds_choose_and_combine(folders: list[str]) -> None:
    for task in tasks(folders, 4, kinds=("bridge", "3hop")):
        assert set(origins(task, 2)) <= {"bridge", "3hop"}
    for task in tasks(folders, 4, kinds="comparison", composition="mempo"):
        assert origins(task, 2) == ["comparison"] * 4
    for task in tasks(folders, 4, hops=2, composition="mixed"):  # NQ has no question of two hops
        assert Counter(origins(task)) == {"hotpotqa": 2, "musique": 2}


def test_tasks_are_a_function_of_the_seed(folders: list[str]) -> None:
    for arguments in ({"composition": "mempo"}, {"composition": "mixed"}, {"composition": "mem1"}, {"hops": {2: 4}}):
        assert tasks(folders, 4, 5, **arguments) == tasks(folders, 4, 5, **arguments)
        env = MultiGoalEnv(goals=4, dataset="qa", data=folders, **arguments)
        copied = pickle.loads(pickle.dumps(env))
        assert env.reset(seed=3)[1]["task"] == copied.reset(seed=3)[1]["task"]


def test_the_default_is_as_it_was(folders: list[str]) -> None:
    data = QaDataset(folders)
    for seed, task in enumerate(tasks(folders, 4, 10)):
        assert task == data.sample(np.random.default_rng(seed), 4)
    composed = ComposedTasks(data, Composition(), (4, 4))
    assert composed.sample(np.random.default_rng(0), 4) == data.sample(np.random.default_rng(0), 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"composition": "mixd"}, "unknown composition 'mixd'; did you mean 'mixed'"),
        ({"hops": 0}, "hops=0 must be a whole number from 1"),
        ({"hops": (3, 2)}, "must be a whole number from 1, two of them"),
        ({"hops": (1, 2, 3)}, "two of them"),
        ({"hops": "2"}, "must be a whole number"),
        ({"hops": True}, "must be a whole number"),
        ({"hops": {}}, "must map hops to goals"),
        ({"hops": {2: 0}}, "must map hops to goals"),
        ({"hops": {2: 3}}, "must name as many goals as there are: 4"),
        ({"hops": {1: 2, 2: 2}, "composition": "mixed"}, "goes with 'pooled', not 'mixed'"),
        ({"hops": {4: 4}, "goals": (4, 5)}, "must name as many goals as there are: 5"),
        ({"hops": {4: 12}, "goals": 12}, "12 goals from 8 train questions of 4 hops; ask fewer goals"),
        ({"hops": 7}, "no train question has the hops and kinds asked for; there are hops 1, 2, 3, 4 and kinds 2hop,"),
        ({"kinds": None}, "kinds=None must be a list of kinds"),
        ({"kinds": (2,)}, "must be a list of kinds"),
        ({"kinds": ("brigde",)}, "no train question has the hops and kinds"),
        ({"hops": 4, "goals": 9}, "9 goals from 8 train questions"),
        ({"composition": "record"}, "no train task of the files has 4 goals"),
        ({"composition": "record", "hops": 2}, "drop hops and kinds"),
    ],
)
def test_what_cannot_be_met_is_refused_at_once(folders: list[str], arguments: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"goals": 4, "dataset": "qa", "data": folders}
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        MultiGoalEnv(**usual | arguments)


@pytest.mark.parametrize("arguments", [{"composition": "mixed"}, {"hops": 2}, {"kinds": ("one-hop",)}])
def test_drawn_worlds_are_not_composed(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="dataset='closed-world' draws its own tasks"):
        MultiGoalEnv(**arguments)


# MEM1's files --------------------------------------------------------------------------------------------------------

MEM1 = [
    {
        "data_source": "nq",
        "prompt": [{"role": "user", "content": f"You will answer.\n\n{OPENING}who is a?; who is b?; who is c?\n"}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": [["A"], ["B", "Bee"], ["C"]]}},
        "extra_info": {"split": "test", "indices": [0, 1, 2]},
    },
    {
        "data_source": "hotpotqa",
        "prompt": [{"role": "user", "content": f"You will answer.\n\n{OPENING}what is d?; who is a?; what is f?\n"}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": [["D"], ["A"], ["F"]]}},
        "extra_info": {"split": "test", "indices": [0, 1, 2]},
    },
]
JOINED = [{"questions": "who is a?; who is b?", "target": [["A"], ["B", "Bee"]]}]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "p", "title": "T", "text": "a b c"}\n')
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_mem1s_tasks_are_played_as_they_stand(tmp_path: Path, corpus: Path, write: Write, suffix: str) -> None:
    if suffix == "parquet":
        table = pytest.importorskip("pyarrow", reason="the extra 'hub' is not installed").Table.from_pylist(MEM1)
        pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "test.parquet")
    else:
        write(tmp_path / "test.jsonl", MEM1)
    env = MultiGoalEnv(goals=3, dataset="qa", data=str(tmp_path), split="test", composition="record")
    drawn = {env.reset(seed=seed)[1]["task"].text for seed in range(20)}
    assert drawn == {"who is a?; who is b?; who is c?", "what is d?; who is a?; what is f?"}
    task = next(task for seed in range(20) if (task := env.reset(seed=seed)[1]["task"]).text.startswith("who"))
    assert [goal.answers for goal in task.goals] == [("A",), ("B", "Bee"), ("C",)]
    *_, info = env.step("<mem>m</mem><answer>a; bee; C</answer>")
    assert isinstance(info["success"], float)
    with pytest.raises(UserError, match="no test task of the files has 2 goals"):
        MultiGoalEnv(goals=2, dataset="qa", data=str(tmp_path), split="test", composition="record")


def test_joined_questions_in_plain(tmp_path: Path, corpus: Path, write: Write) -> None:
    write(tmp_path / "dev.jsonl", JOINED)
    env = MultiGoalEnv(goals=2, dataset="qa", data=str(tmp_path), split="dev", composition="record")
    task = env.reset(seed=0)[1]["task"]
    assert task.text == "who is a?; who is b?"
    *_, terminated, _, info = env.step("<mem>m</mem><answer>A; bee</answer>")
    assert terminated
    assert info["success"] == 1.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (JOINED[0] | {"target": [["A"]]}, "2 questions, separated by '; ', with 1 answer lists"),
        (JOINED[0] | {"target": "A"}, "with no answer lists"),
        (JOINED[0] | {"target": [["A"], []]}, "'target' is empty"),
        (JOINED[0] | {"questions": 3}, "'questions' must be a string"),
        (MEM1[0] | {"prompt": [{"role": "user", "content": "x"}]}, "'prompt' does not say 'Answer the following"),
        (MEM1[0] | {"prompt": "x"}, "'prompt' must be a list of objects"),
        (MEM1[0] | {"reward_model": {}}, "'ground_truth' is missing"),
        (MEM1[0] | {"reward_model": {"ground_truth": 3}}, "'reward_model' must be an object"),
    ],
)
def test_a_malformed_task_names_its_place(tmp_path: Path, corpus: Path, write: Write, row: Any, message: str) -> None:
    path = write(tmp_path / "dev.jsonl", [row])
    with pytest.raises(UserError, match=message) as error:
        QaDataset([tmp_path], "dev")
    assert str(error.value).startswith(f"{path}:1: ")


# The training command's settings -------------------------------------------------------------------------------------


def test_a_run_passes_its_composition_on(folders: list[str]) -> None:
    settings = EnvSettings(composition="mixed", hops=(2,), kinds=("bridge", "2hop"))
    config = RunConfig(dataset="qa", data=tuple(folders), goals=(4,), env_args=settings)
    env = env_factory(config, 4, "train")()
    task = env.reset(seed=0)[1]["task"]
    assert Counter(origins(task)) == {"hotpotqa": 2, "musique": 2}
    with pytest.raises(UserError, match="hops="):
        EnvSettings(hops=(3, 2))


def test_an_environment_of_ones_own_need_not_know_compositions() -> None:
    env_factory(RunConfig(), 2, "train")()  # closed worlds: nothing is passed on


def test_real_data_by_the_papers_composition(shared_data: Path) -> None:
    folders = [str(shared_data / name) for name in ("hotpotqa", "nq")]
    for goals in (2, 10):
        env = MultiGoalEnv(goals=goals, dataset="qa", data=folders, split="dev", composition="mempo")
        for seed in range(10):
            kinds = sorted(goal.kind for goal in env.reset(seed=seed)[1]["task"].goals)
            assert kinds.count("single") == (1 if goals == 2 else 0)
