"""Several processes train as one: the same tasks, the same update, exact resume, and one of them that writes."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mempo_env.algos.logs import read_metrics
from mempo_env.algos.processes import ALONE, connect
from mempo_env.cli import main
from mempo_env.errors import UserError

WORKER = Path(__file__).with_name("processes_worker.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
RUN = shlex.split(
    "--algo mempo --goals 1 --threads=1 --env-args.format-penalty 0.1 --env-args.distractors 2 "
    "--warm-start.perfect-steps=18 --warm-start.demonstrator-steps=2 --warm-start.tokens-per-step=600 "
    "--warm-start.episodes-per-chunk=16 --warm-start.goals 1 1 --warm-start.optim.lr 5e-3 "
    "--warm-start.optim.warmup-steps 0 --train.groups-per-step=3 --train.group-size=3 --train.save-every=2 "
    "--train.keep-checkpoints=9 --eval.episodes=1 --eval.goals 1 --sampling.max-new-tokens=24 --tiny.layers=2 "
    "--tiny.width 64 --tiny.feed-forward 128 --lora.rank 4 --lora.alpha 8"
)


def launch(launcher: tuple[str, ...], *arguments: object) -> str:
    """What the launched processes wrote; all are gone afterwards, whatever happens."""
    command = [sys.executable, *launcher, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=900)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, output[-4000:]
    return output


def worker() -> Any:
    spec = importlib.util.spec_from_file_location("processes_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(shared_groups: Any, imitated_weights: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each scenario gave: alone, in process 0 of two, in process 1 of two."""
    folder = tmp_path_factory.mktemp("processes")
    torch.save((list(shared_groups), imitated_weights), folder / "given.pt")
    launch(TORCHRUN, WORKER, folder)
    module = worker()
    given = module.Given(list(shared_groups), imitated_weights)
    alone = {scenario.__name__: scenario(given, ALONE) for scenario in module.SCENARIOS}
    return [alone, *(torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(2))]


def largest_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.mark.parametrize(("scenario", "steps"), [("recorded", 12), ("a_process_without_rows", 2)])
def test_an_update_on_recorded_episodes_is_that_of_one_process(scenario: str, steps: int, found: Any) -> None:
    alone, first, second = (part[scenario] for part in found)
    assert first["digest"] == second["digest"], "all processes hold the same weights, to the bit"
    assert alone["steps"] == first["steps"] == second["steps"] == steps
    for one, two in zip(alone["parameters"], first["parameters"], strict=True):
        assert largest_difference(one, two) < 5e-6
    assert largest_difference(alone["parameters"][0], alone["parameters"][-1]) > 1e-4, "it must have learnt"
    assert first["metrics"] == second["metrics"]
    assert first["metrics"] == pytest.approx(alone["metrics"], rel=1e-3, abs=1e-6)


def test_a_step_without_any_gradient_is_skipped_everywhere(found: Any) -> None:
    alone, first, second = (part["no_gradient_anywhere"] for part in found)
    assert alone["steps"] == first["steps"] == second["steps"] == 0
    assert alone["digest"] == first["digest"] == second["digest"]
    assert first["metrics"] == alone["metrics"]


def test_tasks_seeds_and_tokens_are_those_of_one_process(found: Any) -> None:
    alone, first, second = (part["played"] for part in found)
    assert len(alone["groups"]) == 3
    assert any(turn.memory_written for group in alone["groups"] for episode in group for turn in episode.turns)

    def facts(groups: Any) -> Any:
        return [
            [(e.task, e.seed, e.group_id, e.rollout_id, [turn.output_ids for turn in e.turns]) for e in group]
            for group in groups
        ]

    assert facts(alone["groups"]) == facts(first["groups"]) == facts(second["groups"])
    for name, value in alone["metrics"].items():
        if not name.startswith("time/") and "sampler" not in name:
            assert first["metrics"][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
            assert second["metrics"][name] == first["metrics"][name], name


def test_a_number_that_is_not_finite_in_one_process_ends_all(found: Any) -> None:
    """The first tells, whoever had the row, and the other leaves without a word; no weight has changed."""
    assert [part["broken"]["ended"] for part in found] == ["loss (1, 2, 0) nan", "loss (1, 2, 0) nan", "exit 0"]
    assert all(part["broken"]["untouched"] for part in found)


def test_weights_that_differ_are_refused(found: Any) -> None:
    alone, first, second = (part["other_weights"] for part in found)
    assert alone == ""
    assert "process 1 holds other weights than process 0" in first
    assert second == "0"


def test_what_processes_share(found: Any) -> None:
    alone, first, second = (part["sums"] for part in found)
    assert alone == {"gradients": [1.0, 1.0, None], "shared": [[], [0], [0, 1, 4, 9, 16]], "first": "from 0"}
    assert first == second == alone | {"gradients": [3.0, 1.0, None]}


def test_an_input_that_cannot_be_used_is_told_once(found: Any) -> None:
    alone, first, second = (part["refused"] for part in found)
    assert alone == first == "UserError choose another --out"
    assert second == "SystemExit 0"


def test_a_model_that_is_sharded_as_the_fsdp_config_says_has_the_same_gradients(found: Any) -> None:
    alone, first, second = (part["sharded"] for part in found)
    assert alone["kinds"] == {"Parameter"}
    assert first["kinds"] == {"DTensor"}
    assert alone["loss"] == pytest.approx(first["loss"], rel=1e-6)
    scale = max(float(value.abs().max()) for value in alone["gradients"].values())
    assert scale > 0
    for sharded in (first, second):
        assert largest_difference(alone["gradients"], sharded["gradients"]) / scale < 1e-6


def test_a_launcher_that_starts_one_process_where_several_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """``accelerate launch --cpu --num_processes 2`` sets these, and starts one process."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with connect() as processes:
        assert processes is ALONE
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match="--multi_gpu --num_processes N"), connect():
        pass


# Through the front door -------------------------------------------------------------------------------------------


def same_files(one: Path, two: Path) -> bool:
    ours, theirs = (torch.load(path / "state.pt") for path in (one, two))
    adapters = [path / "adapters/policy/adapter_model.safetensors" for path in (one, two)]
    return str(ours) == str(theirs) and adapters[0].read_bytes() == adapters[1].read_bytes()


def test_a_run_of_two_processes_and_its_resume(tmp_path: Path) -> None:
    whole, half, alone = tmp_path / "whole", tmp_path / "half", tmp_path / "alone"
    output = launch(TORCHRUN, "-m", "mempo_env.cli", "train", "--out", whole, "--steps", 3, *RUN)
    assert output.count("self-check: ratio 1.000000 (1), KL 0.0e+00 (0)") == 1
    assert output.count("run folder  ") == 1
    names = {path.name for path in whole.iterdir()}
    assert {"config.json", "base", "metrics.jsonl", "checkpoints", "eval", "summary.json", "plot.png"} <= names
    assert json.loads((whole / "checkpoints/step-000003/meta.json").read_text())["machine"]["processes"] == "2"

    main(["train", "--out", str(alone), "--steps", "1", *RUN])
    assert (alone / "base/model.safetensors").read_bytes() == (whole / "base/model.safetensors").read_bytes()
    (one, *_), lines = read_metrics(alone, "train"), read_metrics(whole, "train")
    assert one["train/grad_norm"] > 0
    assert [line["step"] for line in lines] == [0, 1, 2]
    for name, value in one.items():
        if not name.startswith("time/") and "sampler" not in name and name != "phase":
            assert lines[0][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name

    shutil.copytree(whole, half)
    shutil.rmtree(half / "checkpoints/step-000003")
    launch(ACCELERATE, "-m", "mempo_env.cli", "train", "--resume", half)
    for found, expected in zip(read_metrics(half, "train"), lines, strict=True):
        assert {k: v for k, v in found.items() if "time/" not in k} == {
            k: v for k, v in expected.items() if "time/" not in k
        }
    assert same_files(half / "checkpoints/step-000003", whole / "checkpoints/step-000003")
