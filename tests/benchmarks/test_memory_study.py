"""The study's matrix, shards, analysis and control, by hand; and one cell of each kind end to end, small."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_study import runner, store
from memory_study.analysis import columns, episode_facts, template_share
from memory_study.arms import ARMS, CROSSED
from memory_study.cells import (
    DEV_SEED,
    SMOKE,
    STUDY,
    Cell,
    Scale,
    algorithm_config,
    candidates,
    eval_config,
    fingerprint,
    matrix,
    run_config,
    with_choice,
)
from memory_study.compare import compare_results
from memory_study.control import ShortMemPO, ShortnessScorer, ShuffledMemPO, ShuffledScorer, TurnShuffledMemPO
from memory_study.failures import CAUSES
from memory_study.plan import minutes, shard
from memory_study.probe import RememberingScorer
from memory_study.reading import _check
from memory_study.reproduce import reproduce
from memory_study.settings import plain
from memory_study.store import pack, read_cell, read_json, write_json
from rich.console import Console

from mempo_env.actions import Answer, FormatError, FormatErrorKind, Segment, ToolCall
from mempo_env.algos.algorithm_config import MemPOConfig
from mempo_env.algos.base import get_algorithm
from mempo_env.algos.memory_baselines import MemoryScores, comparable_memories, mean_of_others, score_memories
from mempo_env.algos.mempo import MemPO
from mempo_env.algos.ppo_config import PPOConfig
from mempo_env.errors import UserError
from mempo_env.records import Episode, Turn

from .two_goals import TASK


def turn(result: str, memory: str, action: Any, written: bool = True, **info: object) -> Turn:
    observation = {"task": TASK.text, "memory": "", "tool_result": result, "budget": ""}
    return Turn(observation, "", action, 0.0, {}, memory, written, 10, 5, info={"tool_calls": 1, **info})


def episode(*turns: Turn, **changes: Any) -> Episode:
    scores = {"em": 0.5, "f1": 0.5, "success": 0.0}
    return Episode(turns, TASK, "g", 0, 7, 0.5, True, False, scores=scores).replace(**changes)


CALL = ToolCall("search", {"queries": ["Ada plays"]})


def test_facts_are_counted_over_rewrites() -> None:
    played = episode(
        turn("", "", CALL),
        turn("Ada plays chess. Ada owns fox. | Ben trusts Cy. Ben eats soup.", "Ada plays chess; Ben trusts Cy", CALL),
        # The first fact is lost, a wrong value is written, a true but useless note and a repeated one are there.
        turn("Cy eats rice. Cy owns cat.", "Ben trusts Cy; Cy owns cat; Cy eats soup; Ben trusts Cy", CALL),
        turn("", "Ben trusts Cy; Cy owns cat; Cy eats soup; Ben trusts Cy", Answer(("unknown", "soup"))),
    )
    assert episode_facts(played) == {
        "facts": 3,
        "facts_shown": 3,
        "facts_final": 1,
        "had": 0 + 0 + 2 + 1,
        "kept": 0 + 0 + 1 + 1,
        "new": 0 + 2 + 1 + 0,
        "noted": 0 + 2 + 0 + 0,
        "notes": 0 + 2 + 4 + 4,
        "notes_right": 0 + 2 + 2 + 2,
        "notes_invented": 0 + 0 + 1 + 0,
        "notes_repeated": 0 + 0 + 1 + 1,
        "memories": 4,
        "memories_same": 1,
        "memories_full": 0,
        "early": 0,
        "goals_unknown": 1,
        "wrong_number": 0,
    }


def test_a_memory_that_was_not_committed_counts_as_no_rewrite() -> None:
    error = FormatError(FormatErrorKind.NO_ACTION, "no action")
    played = episode(
        turn("Ada plays chess.", "", error, written=False),
        turn("Ada plays chess.", "Ada plays chess", Answer(("chess",))),
    )
    found = episode_facts(played)
    assert (found["memories"], found["new"], found["noted"]) == (1, 1, 1)
    assert (found["early"], found["wrong_number"]) == (1, 1)  # two facts were never shown; one answer for two goals


def test_columns_hold_one_entry_per_episode_and_none_for_a_fault() -> None:
    good = episode(turn("", "Ada plays chess", Answer(("chess", "rice")), quality=0.25))
    table = columns([good.replace(error="down"), good, good.replace(turns=(*good.turns[:0], turn("", "", CALL)))])
    assert table["error"] == [1, 0, 0]
    assert table["f1"] == [None, 50.0, 50.0]
    assert table["quality"] == [None, [0.25], []]
    assert table["quality_turn"] == [None, [0], []]
    assert {len(column) for column in table.values()} == {3}


def test_template_share() -> None:
    assert template_share(["a; b", "a; b", "c", "d"]) == 0.5
    assert template_share(["x", "y", "z"]) == pytest.approx(1 / 3)


class FixedScorer:
    """Gives each memory the number that it spells."""

    def __init__(self) -> None:
        self.asked = 0

    def memory_quality(self, items: Any) -> torch.Tensor:
        self.asked += len(items)
        return torch.tensor([float(memory) for _, memory in items], dtype=torch.float64)

    def history_quality(self, items: Any) -> torch.Tensor:
        raise AssertionError("not asked")

    def reference_quality(self, groups: Any, episodes: int) -> list[torch.Tensor]:
        raise AssertionError("not asked")


def scored_group(name: str, seed: int, start: float, size: int = 4) -> tuple[Episode, ...]:
    """Episodes of two memory turns each; memory k of the group spells start + k/100."""

    def one(k: int) -> Turn:
        made = turn("", f"{start + k / 100:.4f}", CALL)
        ids = {"prompt_ids": (1,), "output_ids": (2, 3), "logprobs": (0.0, 0.0)}
        return replace(made, **ids, n_output=2, segments=(int(Segment.MEMORY), int(Segment.ANSWER)))

    return tuple(
        Episode((one(2 * i), one(2 * i + 1)), TASK, name, i, seed, float(i % 2), True, False) for i in range(size)
    )


def test_shuffling_keeps_the_qualities_of_a_group_and_changes_who_has_them() -> None:
    groups = [scored_group("0/0", 11, 0.1), scored_group("0/1", 12, 0.6)]
    items = [(e, t.memory) for group in groups for e in group for t in e.turns]
    plain = FixedScorer().memory_quality(items).tolist()
    shuffled = ShuffledScorer(FixedScorer()).memory_quality(items).tolist()
    for half in (slice(0, 8), slice(8, 16)):
        assert sorted(shuffled[half]) == sorted(plain[half])
        assert shuffled[half] != plain[half]
    again = ShuffledScorer(FixedScorer()).memory_quality(items[8:]).tolist()
    assert again == shuffled[8:]  # it depends on the group alone, not on what else is scored
    moved = [(e.replace(seed=13), m) for e, m in items[8:]]
    assert ShuffledScorer(FixedScorer()).memory_quality(moved).tolist() != again  # another task, another order


def test_the_control_learns_from_permuted_advantages_on_memory_tokens_only() -> None:
    groups = [scored_group("0/0", 11, 0.1)]
    true = MemPO().advantages(groups, FixedScorer()).tokens
    control = ShuffledMemPO().advantages(groups, FixedScorer()).tokens
    keys = sorted(true)
    assert [true[key][0].item() for key in keys] != [control[key][0].item() for key in keys]
    assert [true[key][1].item() for key in keys] == [control[key][1].item() for key in keys]  # answers: A^T alone
    # The sum of Q - b over a group of equal episodes is 0, whoever has which quality.
    memory = sum(control[key][0].item() - control[key][1].item() for key in keys)
    assert memory == pytest.approx(0.0, abs=1e-6)


def test_within_a_turn_qualities_change_hands_and_being_late_keeps_its_credit() -> None:
    groups = [scored_group("0/0", 11, 0.1)]  # 4 episodes of 2 turns
    (memories,) = comparable_memories(groups)
    (scores,) = score_memories([memories], MemPOConfig(), FixedScorer())
    algorithm = TurnShuffledMemPO()
    true, control = (a.memory_advantages(memories, scores) for a in (MemPO(), algorithm))
    assert not torch.equal(true, control)
    assert torch.equal(control, algorithm.memory_advantages(memories, scores))  # the same again
    # Of equally long episodes, the sum over a turn of Q - b depends on who has which Q in no way.
    for turn_number in (0, 1):
        at = memories.turns == turn_number
        assert control[at].sum().item() == pytest.approx(true[at].sum().item(), abs=1e-12)
    alike = MemoryScores(scores.quality * 0 + memories.turns, scores.baseline, scores.has_baseline)
    # Where a turn's memories are all as good, there is nothing to deal out.
    plain = MemoryScores(alike.quality, *mean_of_others(alike.quality, memories, MemPOConfig()))
    assert torch.equal(algorithm.memory_advantages(memories, alike), MemPO().memory_advantages(memories, plain))


@pytest.mark.parametrize("control", [ShuffledMemPO, TurnShuffledMemPO])
def test_the_controls_refuse_baselines_that_score_other_texts(control: Any) -> None:
    with pytest.raises(UserError, match="old_memory"):
        control(MemPOConfig(baseline="old_memory"))


def test_a_remembering_scorer_asks_once() -> None:
    inner = FixedScorer()
    scorer = RememberingScorer(inner)
    one = episode(turn("", "", CALL))
    assert scorer.memory_quality([(one, "0.5"), (one, "0.25"), (one, "0.5")]).tolist() == [0.5, 0.25, 0.5]
    assert scorer.memory_quality([(one, "0.25")]).tolist() == [0.25]
    assert inner.asked == 2


def test_the_matrix_gives_every_arm_the_same() -> None:
    cells = matrix()
    assert len({cell.name for cell in cells}) == len(cells)
    for regime in ("easy", "hard"):
        configs = []
        for arm in (arm.name for arm in ARMS.values() if arm.default):
            assert len(candidates(regime, arm)) == 4
            own = [cell for cell in cells if (cell.regime, cell.arm) == (regime, arm) and cell.kind == "train"]
            assert [cell.seed for cell in own] == [0, 1, 2, 3, 4]
            configs.append(replace(run_config(Cell("train", 3, regime, arm), Path("o")), algo="", out=""))
        assert all(config == configs[0] for config in configs)
        assert configs[0].model == "o/runs/warm-3/base"


def test_the_crossed_regimes_differ_from_each_default_one_in_one_thing() -> None:
    configs = {
        regime: replace(run_config(Cell("train", 0, regime, "grpo"), Path("o")), out="")
        for regime in ("easy", "hard", *CROSSED)
    }
    easy, hard = configs["easy"], configs["hard"]
    assert replace(configs["sparse"], env_args=easy.env_args) == easy
    assert replace(configs["sparse"], goals=hard.goals) == hard
    assert replace(configs["long"], goals=easy.goals) == easy
    assert replace(configs["long"], env_args=hard.env_args) == hard
    crossed = [cell for cell in matrix(full=True) if cell.regime in CROSSED]
    assert len({cell.name for cell in crossed}) == len(crossed) == 2 * 6 * 5
    assert {cell.kind for cell in crossed} == {"train"}
    assert not any(cell.regime in CROSSED for cell in matrix())


def test_tuning_sees_neither_test_tasks_nor_test_seeds() -> None:
    for cell in matrix(full=True):
        split = eval_config(cell).split
        assert (cell.kind == "tune") <= (cell.seed == DEV_SEED)
        assert split == ("dev" if cell.seed == DEV_SEED else "test")
        assert run_config(cell, Path("o")).seed == cell.seed


def test_tuning_chooses_the_best_and_waits_for_all() -> None:
    cell = Cell("tuned", 2, "hard", "mempo")
    tried = candidates("hard", "mempo")
    scores = {candidate.name: 10.0 for candidate in tried}
    chosen = with_choice(cell, scores)
    assert chosen is not None
    assert (chosen.lr, chosen.weight) == (2e-3, 1.0)  # equal: the untuned one
    chosen = with_choice(cell, scores | {tried[3].name: 11.0})
    assert chosen is not None
    assert (chosen.lr, chosen.weight) == (2e-3, 0.3)
    assert algorithm_config(chosen).weight == 0.3
    chosen = with_choice(cell, scores | {tried[1].name: 11.0})
    assert chosen is not None
    assert (chosen.weight, run_config(chosen, Path("o")).train.optim.lr) == (1.0, 1e-3)
    assert with_choice(cell, {tried[0].name: 1.0}) is None


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_shards_are_the_matrix_and_about_equally_long(parts: int) -> None:
    cells = matrix(full=True)
    shards = [shard(cells, part, parts) for part in range(1, parts + 1)]
    assert [cell for some in shards for cell in some] == cells
    lengths = [sum(map(minutes, some)) for some in shards]
    assert max(lengths) - min(lengths) < 2 * max(map(minutes, cells))


def test_fingerprints_see_settings_and_the_warm_start_but_not_places() -> None:
    cell = Cell("train", 0, "easy", "mempo")
    names = {
        fingerprint(cell),
        fingerprint(replace(cell, weight=0.3)),
        fingerprint(replace(cell, lr=1e-3)),
        fingerprint(replace(cell, arm="shuffled")),
        fingerprint(replace(cell, seed=1)),
        fingerprint(cell, replace(STUDY, perfect_steps=1)),
        fingerprint(cell, replace(STUDY, episodes=1)),
    }
    assert len(names) == 7
    assert fingerprint(cell) == fingerprint(Cell("train", 0, "easy", "mempo"))


@dataclass(frozen=True)
class OptimConfig:
    """A class of this name that has learned something since the first results were stored."""

    name: str = "adamw"
    lr: float = 0.1
    invented_later: tuple[int, ...] = field(default=(1,))


def test_fields_that_came_later_count_only_where_they_are_set() -> None:
    assert plain(OptimConfig(lr=0.5)) == {"name": "adamw", "lr": 0.5}
    assert plain(OptimConfig(invented_later=(2,))) == {"name": "adamw", "lr": 0.1, "invented_later": (2,)}
    assert plain({"a": 1}) == {"a": 1}
    # Of what has not changed nothing is left out.
    for whole in (run_config(Cell("train", 0, "easy", "mempo"), Path()), MemPOConfig(), PPOConfig()):
        assert set(plain(whole)) >= {each.name for each in fields(whole)}


def test_the_further_arms_are_what_they_are_called() -> None:
    names = {cell.name for cell in matrix(full=True)}
    assert {"hard-unguarded-0", "easy-ppo-0", "warm-history-3", "easy-short-tuned-4"} <= names
    assert "easy-unguarded-0" not in names
    default = [cell.name for cell in matrix()]
    assert [cell.name for cell in matrix(full=True) if cell.name in default] == default
    history = Cell("train", 1, "hard", "history")
    assert history.warm == Cell("warm", 1, arm="history")
    assert (run_config(history, Path("o")).context, run_config(history.warm, Path("o")).context) == ("history",) * 2
    assert run_config(history, Path("o")).model == "o/runs/warm-history-1/base"
    assert fingerprint(history.warm) != fingerprint(Cell("warm", 1))
    for arm in ARMS.values():
        cell = Cell("train", 0, arm.regimes[0], arm.name)
        settings = get_algorithm(arm.algo).config_class
        assert isinstance(algorithm_config(cell), settings)
        assert len(candidates(cell.regime, arm.name)) == 4
        if arm.context == "memory":
            assert replace(run_config(cell, Path("o")), algo="", out="") == replace(
                run_config(replace(cell, arm="grpo"), Path("o")), algo="", out=""
            )


class Words:
    """Counts words."""

    def count(self, text: str) -> int:
        return len(text.split())


def test_the_short_control_looks_at_length_alone() -> None:
    groups = [scored_group("0/0", 11, 0.1)]
    one = groups[0][0]
    scorer = ShortnessScorer(FixedScorer(), Words())
    assert scorer.memory_quality([(one, "a b"), (one, ""), (one, "c d")]).tolist() == [254 / 256, 1.0, 254 / 256]
    control = ShortMemPO()
    control.counter = Words()
    # All memories of the group have one word: A^M is 0, whatever their quality.
    found = control.advantages(groups, FixedScorer()).tokens
    assert all(values[0].item() == values[1].item() for values in found.values())


def test_cells_run_end_to_end_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = replace(SMOKE, perfect_steps=12, demonstrator_steps=6, curriculum=((6, 1),), episodes=3)
    console, cell = Console(quiet=True), Cell("train", 0, "easy", "shuffled")
    threads = torch.get_num_threads()
    try:
        with monkeypatch.context() as patch:
            # Stopped in the second update, after a checkpoint of the first.
            real, taken = runner.start_run, scale.steps["easy"]
            assert taken == 2
            patch.setattr(runner, "start_run", lambda c, a, k: real(replace(c, steps=1), a, k))
            patch.setattr(runner, "evaluate_policy", _interrupt_training(runner.evaluate_policy))
            with pytest.raises(KeyboardInterrupt):
                runner.run_cell(cell, tmp_path, console, scale)
        assert runner.read_cell(tmp_path, cell.warm, scale) is not None
        assert runner.read_cell(tmp_path, cell, scale) is None
        # The interrupted run says steps=1 in its folder; the study's own config is put back, as if it had been killed.
        folder = tmp_path / "runs" / cell.name
        config = json.loads((folder / "config.json").read_text())
        config["run"]["steps"] = 2
        (folder / "config.json").write_text(json.dumps(config))
        monkeypatch.setattr(runner, "start_run", _never)
        found = runner.run_cell(cell, tmp_path, console, scale)
    finally:
        torch.set_num_threads(threads)
    assert found["training"]["step"] == [0, 1]
    assert len(found["training"]["time/cpu_s"]) == 2
    after = found["evaluations"]["after"]
    assert sorted(after) == ["1", "2"]
    assert all(len(part["episodes"]["f1"]) == 3 for part in after.values())
    assert found["probes"]["easy"]["groups"]["all"] == scale.groups
    assert json.loads((tmp_path / "cells" / f"{cell.name}.json").read_text())["diverged"] == ""
    warm = runner.read_cell(tmp_path, cell.warm, scale)
    assert warm is not None
    expert = warm["evaluations"]["expert"]["2"]["episodes"]
    assert statistics.mean(expert["f1"]) == 100
    assert expert["kept"] == expert["had"]
    assert sorted(warm["evaluations"]) == ["before", "expert", "imitation"]
    # The tasks of all evaluations are the same, one by one.
    assert warm["evaluations"]["before"]["2"]["episodes"]["seed"] == after["2"]["episodes"]["seed"]
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_train", _never)
        assert runner.run_cell(cell, tmp_path, console, scale) == found  # what is there is not run again
    _kept_and_reproduced(tmp_path, cell, scale, monkeypatch)


def _kept_and_reproduced(out: Path, cell: Cell, scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept counts as done elsewhere, weights are made again, and the rerun is equal."""
    stored, elsewhere, console = out / "stored", out / "elsewhere", Console(quiet=True)
    every = [Cell("warm", 1), cell.warm, cell]
    written = pack(every, out, stored, scale)
    assert [path.name for path in written] == ["warm-0.json.gz", "easy-shuffled-0.json.gz"]
    assert pack(every, out, stored, scale) == []
    found = read_cell(elsewhere, cell, scale, stored)
    assert found is not None
    assert {len(e["gold"]) for e in found["texts"]["after"]} == {1, 2}
    for goals, counts in found["failures"]["after"].items():
        part = found["evaluations"]["after"][goals]["episodes"]
        assert counts["episodes"] == len(part["em"])
        assert 100 * (1 - counts["wrong"] / counts["goals"]) == pytest.approx(statistics.mean(part["em"]), abs=1e-3)
        assert sum(counts[cause] for cause in CAUSES) == counts["wrong"]
    _read_by_both(found, out, stored, cell, scale)
    assert read_cell(elsewhere, cell, scale) is None
    assert read_cell(elsewhere, replace(cell, lr=1.0), scale, stored) is None
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_train", _never)
        patch.setattr(runner, "_warm", _never)
        assert runner.run_cell(cell, elsewhere, console, scale, stored=stored) == found
    assert not (elsewhere / "cells").exists()
    threads = torch.get_num_threads()
    monkeypatch.undo()  # the run may start now
    try:
        with monkeypatch.context() as patch:
            patch.setattr(runner, "_warm", _never)  # no second evaluation of the ceilings
            again = reproduce(cell.name, elsewhere, console, stored=stored, scales=(scale,))
    finally:
        torch.set_num_threads(threads)
    assert (again.verdict, again.unequal, again.versions) == ("equal", (), {})
    assert again.differences["after"][2].mean == 0
    new = read_cell(elsewhere, cell, scale)
    assert new is not None
    assert new["warm_start"] == {"remade": True, "equal": True, "f1": [0.0, 0.0, 0.0]}
    assert found["warm_start"] == {"remade": False}
    with pytest.raises(UserError, match=r"other settings .*check out the commit"):
        reproduce(cell.name, elsewhere, console, stored=stored, scales=(replace(scale, episodes=4),))
    with pytest.raises(UserError, match="did you mean 'easy-shuffled-0'"):
        reproduce("easy-shufled-0", elsewhere, console, stored=stored)
    (stored / "warm-0.json.gz").write_bytes(b"half")
    with pytest.raises(UserError, match=r"cannot be read .*remove it"):
        read_cell(elsewhere, cell.warm, scale, stored)


def _read_by_both(found: dict[str, Any], out: Path, stored: Path, cell: Cell, scale: Scale) -> None:
    """With the weights that wrote it, a last memory has the Q that the evaluation stored; without, the part is kept."""
    warm = read_cell(out, cell.warm, scale)
    assert warm is not None
    scored = 0
    for goals, read in found["reading"].items():
        assert sorted(read) == ["ours by ours", "ours by start", "start by ours", "start by start"]
        for pair, evaluated in (
            ("ours by ours", found["evaluations"]["after"]),
            ("start by start", warm["evaluations"]["before"]),
        ):
            rows = evaluated[goals]["episodes"]
            for q, some in zip(read[pair], rows["quality"], strict=True):
                if some:  # the last memory that was written is the one in force
                    scored += 1
                    assert q == pytest.approx(some[-1], abs=2e-4)
    assert scored > 0
    assert read_json(stored / f"{cell.warm.name}.json.gz").keys() == warm.keys() | {"texts", "failures"}
    with pytest.raises(UserError, match="they did not play its episodes"):
        _check([0.5], [episode(turn("", "Ada plays chess", CALL, quality=0.7))], out)
    lacking = {name: part for name, part in found.items() if name != "reading"}
    write_json(stored / f"{cell.name}.json.gz", lacking)
    assert pack([cell], out, stored, scale) == [stored / f"{cell.name}.json.gz"]
    assert read_cell(stored / "none", cell, scale, stored) == found
    write_json(stored / f"{cell.name}.json.gz", found | {"failures": {"after": "of old code"}})
    assert pack([cell], out, stored, scale) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(store.PARTS, "failures", 2)
        assert pack([cell], out, stored, scale) == [stored / f"{cell.name}.json.gz"]
        assert pack([cell], out, stored, scale) == []
    assert read_cell(stored / "none", cell, scale, stored) == found | {"part_versions": {"failures": 2}}
    write_json(stored / f"{cell.name}.json.gz", lacking | {"diverged": "another run"})
    assert pack([cell], out, stored, scale) == []  # what another run found is not added to
    write_json(stored / f"{cell.name}.json.gz", found)


def test_results_are_equal_alike_or_different() -> None:
    def result(f1: list[float], torch_version: str = "2") -> dict[str, Any]:
        episodes = {"seed": [0, 1, 2, 3], "f1": f1, "em": f1}
        part = {"episodes": episodes, "template_share": 0.5, "history": None}
        versions = {"torch": torch_version, "platform": f"kernel of {torch_version}"}
        training = {"rollout/f1": [f1[0]], "time/step_s": [len(torch_version)]}
        return {"evaluations": {"after": {"2": part}}, "training": training, "versions": versions}

    old = result([10.0, 20.0, 30.0, 40.0])
    assert compare_results(old, result([10.0, 20.0, 30.0, 40.0], "23")).verdict == "equal"  # times may differ
    alike = compare_results(old, result([20.0, 10.0, 40.0, 30.0], "3"))
    assert (alike.verdict, alike.versions) == ("alike", {"torch": ("2", "3")})
    assert alike.unequal == ("after/2/em", "after/2/f1", "training/rollout/f1")
    assert alike.overall["after"].mean == 0
    moved = result([15.0, 25.0, 35.0, 45.0])
    different = compare_results(old, moved)
    assert (different.verdict, different.seeds) == ("different", None)
    assert different.differences["after"][2].low == 5
    # Seeds with a mean F1 of 25, 30 and 35: one more lies within 30 -+ 4.303 * 5 * sqrt(4 / 3).
    others = [result([v] * 4) for v in (30.0, 35.0)]
    spread = compare_results(old, moved, others)
    assert spread.seeds == pytest.approx((30 - 24.84, 30 + 24.84), abs=0.01)
    assert spread.verdict == "alike"


def _interrupt_training(evaluate: Any) -> Any:
    def evaluated(config: Any, policy: Any, folder: Path, name: str, *rest: Any) -> None:
        if name == "after":
            raise KeyboardInterrupt
        evaluate(config, policy, folder, name, *rest)

    return evaluated


def _never(*_: Any) -> Any:
    raise AssertionError("it was run again")
