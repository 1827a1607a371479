"""The study's matrix, shards, analysis and control, by hand; and one cell of each kind end to end, small."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_study import runner
from memory_study.analysis import columns, episode_facts, template_share
from memory_study.cells import (
    ARMS,
    DEV_SEED,
    SMOKE,
    STUDY,
    Cell,
    algorithm_config,
    candidates,
    eval_config,
    fingerprint,
    matrix,
    run_config,
    with_choice,
)
from memory_study.control import ShuffledMemPO, ShuffledScorer
from memory_study.plan import minutes, shard
from memory_study.probe import RememberingScorer
from memory_study.tables import pooled_share, t_interval
from rich.console import Console

from mempo_env.actions import Answer, FormatError, FormatErrorKind, Segment, ToolCall
from mempo_env.algos.algorithm_config import MemPOConfig
from mempo_env.algos.mempo import MemPO
from mempo_env.errors import UserError
from mempo_env.records import Episode, Evidence, Goal, Task, Turn

TASK = Task(
    goals=(
        Goal("Ada plays what?", ("chess",), evidence=(Evidence("Ada plays", "Ada plays chess", "Ada"),)),
        Goal(
            "Ben trusts someone who eats what?",
            ("rice",),
            kind="two-hop",
            evidence=(
                Evidence("Ben trusts", "Ben trusts Cy", "Ben"),
                Evidence("Cy eats", "Cy eats rice", "Cy", after=0),
            ),
        ),
    ),
    id="t",
)


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


def test_the_control_refuses_baselines_that_score_other_texts() -> None:
    with pytest.raises(UserError, match="old_memory"):
        ShuffledMemPO(MemPOConfig(baseline="old_memory"))


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
    assert (chosen.lr, chosen.weight) == (1e-3, 0.3)
    assert algorithm_config(chosen).weight == 0.3
    assert run_config(chosen, Path("o")).train.optim.lr == 1e-3
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


def test_intervals_and_shares_by_hand() -> None:
    # mean 2, standard deviation 1, t(2) = 4.303: 2 -+ 4.303 / sqrt(3)
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == (pytest.approx(2 - 4.303 / math.sqrt(3)), pytest.approx(2 + 4.303 / math.sqrt(3)))
    assert math.isnan(t_interval([1.0])[0])
    evaluation = {"2": {"episodes": {"kept": [1, None, 2], "had": [2, None, 2]}}}
    assert pooled_share(evaluation, 2, "kept", "had") == 0.75


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
    monkeypatch.setattr(runner, "_train", _never)
    assert runner.run_cell(cell, tmp_path, console, scale) == found  # what is there is not run again


def _interrupt_training(evaluate: Any) -> Any:
    def evaluated(config: Any, policy: Any, folder: Path, name: str, *rest: Any) -> None:
        if name == "after":
            raise KeyboardInterrupt
        evaluate(config, policy, folder, name, *rest)

    return evaluated


def _never(*_: Any) -> Any:
    raise AssertionError("it was run again")
