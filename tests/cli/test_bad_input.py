"""Bad input: exactly one clear line on standard error, exit code 2, and nothing on the disk that was not there before.

Every case goes the whole way that a user's call goes; none of them trains.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mempo_env.algos.presets import PRESETS
from mempo_env.cli.train import parse
from mempo_env.errors import UserError

Mempo = Callable[..., Any]

FLAGS = [
    # What the user typed after `mempo`, and what the line must say.
    ("trian", "unknown command 'trian'; did you mean 'train'?"),
    ("env please", "mempo env takes no arguments"),
    # names, each with the nearest one that exists
    ("train --algo mempro", "unknown algorithm 'mempro'; did you mean 'mempo'?"),
    ("train --preset tyni", "unknown preset 'tyni'; did you mean 'tiny'?"),
    ("train --env MemPO-MultiGol-v0", "unknown environment 'MemPO-MultiGol-v0'; did you mean 'MemPO-MultiGoal-v0'?"),
    ("train --budget breif", "unknown budget 'breif'; did you mean 'brief'?"),
    ("train --dataset closed-wrld", "unknown dataset 'closed-wrld'; did you mean 'closed-world'?"),
    ("train --context memry", "unknown context strategy 'memry'; did you mean 'memory'?"),
    ("train --stps 3", "did you mean --steps?"),
    ("eval expert --preset tyni", "did you mean 'tiny'?"),
    ("eval expert --budget breif", "did you mean 'brief'?"),
    ("play --env MemPO-Mult-v0", "did you mean 'MemPO-MultiGoal-v0'?"),
    ("play --dataset qua", "did you mean 'qa'?"),
    ("play --split tran", "did you mean 'train'?"),
    ("play --budget bref", "did you mean 'brief'?"),
    # goals
    ("train --goals 0", "1 to 16 goals"),
    ("train --goals 17", "1 to 16 goals"),
    ("train --goals 4 2", "the least first"),
    ("train --goals", "one number, or the least and the most"),
    ("train --goals 1 2 3", "one number, or the least and the most"),
    ("train --eval.goals 2 17", "1 to 16 goals"),
    ("train --eval.goals", "no number of goals"),
    ("train --warm-start.goals 0 3", "1 to 16 goals"),
    ("eval expert --goals 0", "1 to 16 goals"),
    ("eval expert --goals", "no number of goals"),
    ("play --goals 17", "between 1 and 16"),
    ("play --goals 0", "between 1 and 16"),
    # numbers and types
    ("train --steps -1", "steps=-1 must be at least 0"),
    ("train --steps x", "--steps: invalid literal for int() with base 10: 'x'"),
    ("train --goals x", "Error parsing --goals"),
    ("train --seed -1", "seed=-1 must be at least 0"),
    ("train --threads -1", "threads=-1"),
    ("train --eval.episodes -1", "episodes=-1"),
    ("train --eval.batch 0", "batch=0"),
    ("train --warm-start.perfect-steps -1", "perfect_steps=-1"),
    ("train --warm-start.tokens-per-step 0", "tokens_per_step=0"),
    ("train --train.group-size 0", "group_size=0"),
    ("train --train.micro-batch-tokens 0", "micro_batch_tokens=0"),
    ("train --train.minibatches 99", "minibatches=99 cannot exceed"),
    ("train --train.optim.lr 0", "lr=0.0"),
    ("train --train.optim.weight-decay nan", "weight_decay=nan"),
    ("train --env-args.topk 0", "topk must be a whole number from 1"),
    ("train --env-args.two-hop-share 2", "two_hop_share"),
    ("train --env-args.distractors -1", "distractors"),
    ("train --sampling.temperature 0", "temperature must be positive"),
    ("train --sampling.greedy", "training samples at a temperature"),
    ("train --tiny.layers 0", "layers=0 must be at least 1"),
    ("train --tiny.width 130", "divisible"),
    ("train --lora.rank 0", "rank >= 1"),
    ("train --lora.target-modules lm_head", "lm_head cannot be a LoRA target"),
    ("train --lora.target-modules q_porj", "'q_porj' is no linear layer of this model; it has"),
    ("train --device gpu", "invalid choice 'gpu'"),
    ("eval expert --episodes 0", "episodes=0 must be at least 1"),
    ("eval expert --episodes x", "--episodes"),
    ("eval expert --split train", "invalid choice 'train'"),
    ("play --seed -1", "seed=-1"),
    # combinations
    ("train --mempo.normalisation pooled", "baseline='reference' is a mean over the group's other episodes"),
    ("train --mempo.weight -1", "weight=-1.0 must not be negative"),
    ("train --mempo.clip-low 2", "clip_low=2.0"),
    ("train --algo grpo --grpo.beta -1", "beta=-1.0"),
    ("train --algo grpo --mempo.weight 1", "--mempo.weight"),
    ("train --dataset qa", "needs --data"),
    ("train --data somewhere", "takes no --data"),
    ("play --dataset qa", "needs data"),
    ("eval expert --sample", "has no model"),
    ("eval expert --data somewhere", "drop --data"),
    # flags
    ("train --bogus 3", "Unrecognized options: --bogus, 3 (mempo train --help lists all flags)"),
    ("train --algo grpo --bogus", "(mempo train --algo grpo --help lists all flags)"),
    ("train extra", "Unrecognized options: extra"),
    ("train --algo", "--algo needs a value"),
    ("train --warm-start.goals 1", "Expected 2 values"),
    ("eval", "mempo eval needs RUN"),
    ("eval expert other", "other is no folder"),
    ("eval expert expert --agent expert --model x", "model does not go with an agent of kind expert"),
    ("eval expert --model x", "--model goes with --agent model or --agent chat"),
    ("eval --agent chat --model x --retries -1", "retries=-1"),
    ("eval --agent chat --base-url http://localhost:1/v1", "needs model"),
    ("eval --agent model", "needs model"),
    ("eval --agent mdoel", "invalid choice 'mdoel'"),
    ("eval expert --context memry", "did you mean 'memory'?"),
    ("eval expert --context window-0", "window-0"),
    ("eval expert --context memory memory", "contexts memory memory: name each once"),
    ("eval expert --goals 2 2", "goals 2 2: name each once"),
    ("eval expert --budget brief breif", "did you mean 'brief'?"),
    ("eval expert --batch 0", "batch=0 must be at least 1"),
    ("eval expert --seed -1", "seed=-1"),
    ("eval expert --env-args.topk 0", "topk must be a whole number from 1"),
    ("eval expert --env MemPO-Mult-v0", "did you mean 'MemPO-MultiGoal-v0'?"),
    ("eval --render no/such", "neither a folder of mempo eval --out nor a run folder"),
    ("eval expert --render no/such", "drop expert"),
    ("eval --render no/such --goals 2", "drop --goals"),
    ("compare", "mempo compare needs A and B"),
    ("compare no/such no/other", "no/such is no folder"),
    ("compare a b --out table.txt", "end its name in .json or .md"),
    ("play --goal 4", "did you mean --goals?"),
    # things of one's own
    ("train --algo no_such_package.mod:X", "there is no module 'no_such_package'"),
    ("train --algo a:b:c", "write package.module:Name"),
    ("train --algo collections:Counter", "is no subclass of mempo_env.algos.base.Algorithm"),
    ("train --algo mempo_env.algos.grpo:GroupRelative", "must set"),
    ("train --env no_such_package:Foo-v0", "there is no module 'no_such_package'"),
    ("train --env mempo_env:Foo-v0", "unknown environment 'mempo_env:Foo-v0'"),
    ("play --env mempo_env:MemPO-Ledgr-v0", "did you mean 'mempo_env:MemPO-Ledger-v0'?"),
    ("play --env collections:Foo-v0", "module 'collections' registers none: call gym.register in it"),
    ("train --algo mempo --env-args.memory off", "rewards memories"),
    *((f"train --algo {algo} --train.group-size 1", f"{algo} compares the episodes") for algo in ("grpo", "mempo")),
    ("train --env CartPole-v1", "a subclass of MemoryEnv hands"),
    ("play --env CartPole-v1", "a subclass of MemoryEnv hands"),
    # places
    ("train --dataset qa --data no/such/folder", "no/such/folder does not exist; check --data"),
    ("train --model ./no/such/folder", "skip the warm start with --warm-start.target none"),
    ("train --warm-start.target none --model ./no/such/folder", "there is no such folder"),
    ("train --warm-start.target none --model no-such.gguf", "there is no such GGUF file"),
    ("train --resume no/such/run", "no/such/run is no run folder"),
    ("train --resume", "--resume needs a value"),
    ("eval no/such/run", "no/such/run is no folder"),
]


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default run folders would appear here."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("call", "says"), FLAGS, ids=[call for call, _ in FLAGS])
def test_one_line_and_nothing_written(mempo: Mempo, tmp_path: Path, call: str, says: str) -> None:
    result = mempo(*shlex.split(call))
    assert says in result.complaint
    assert not names_in(tmp_path)


def test_cuda_where_there_is_none(mempo: Mempo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "sees no CUDA device" in mempo("train", "--device", "cuda").complaint
    assert not names_in(tmp_path)


def test_without_the_train_extra(mempo: Mempo, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    for call in (["train"], ["eval", "expert"]):
        assert mempo(*call).complaint == "peft not installed: pip install 'mempo-env[train]'"


# Data -----------------------------------------------------------------------------------------------------------------

QA = ("--dataset", "qa", "--goals", "2", "--eval.goals", "2", "--warm-start.goals", "1", "2", "--data")


def test_missing_data_files(mempo: Mempo, data: Path, tmp_path: Path) -> None:
    (data / "questions.dev.jsonl").unlink()
    assert "has no questions.dev.jsonl" in mempo("train", *QA, data).complaint  # training would come to it last
    (data / "corpus.jsonl").unlink()
    assert "has no corpus.jsonl" in mempo("train", *QA, data).complaint
    (tmp_path / "empty").mkdir()
    assert "has no questions.train.jsonl" in mempo("train", *QA, tmp_path / "empty").complaint
    assert "has no questions.train.jsonl" in mempo("play", "--dataset", "qa", "--data", tmp_path / "empty").complaint
    assert names_in(tmp_path) == {"data", "empty", "data/questions.train.jsonl"}


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_malformed_line_is_named(mempo: Mempo, data: Path, tmp_path: Path, split: str) -> None:
    path = data / f"questions.{split}.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20], lines[2]]))
    before = names_in(tmp_path)
    assert mempo("train", *QA, data).complaint.startswith(f"{path}:2: not valid JSON")
    path.write_text("\n".join([lines[0], lines[1], json.dumps({"id": "x", "question": "Who?"})]))
    assert mempo("train", *QA, data).complaint.startswith(f"{path}:3: the field 'answers' is missing")
    assert names_in(tmp_path) == before


@pytest.mark.parametrize(("flag", "split"), [("--goals", "train"), ("--eval.goals", "dev")])
def test_fewer_questions_than_goals(mempo: Mempo, data: Path, tmp_path: Path, flag: str, split: str) -> None:
    before = names_in(tmp_path)
    assert f"5 goals from 3 {split} questions" in mempo("train", *QA, data, flag, "5").complaint
    assert names_in(tmp_path) == before


# Models ---------------------------------------------------------------------------------------------------------------


GIVEN = ("--warm-start.target", "none")
"""What lets the tiny preset have another model."""


def test_a_model_folder_without_tokenizer(mempo: Mempo, trained: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(trained / "base", model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    before = names_in(tmp_path)
    assert mempo("train", *GIVEN, "--model", model).complaint.startswith(f"{model}: there is no tokenizer")
    (model / "config.json").unlink()
    assert "no config.json" in mempo("train", *GIVEN, "--model", model).complaint
    (tmp_path / "weights.gguf").write_bytes(b"no weights")
    assert "weights.gguf" in mempo("train", *GIVEN, "--model", tmp_path / "weights.gguf").complaint
    assert names_in(tmp_path) == before - {"model/config.json"} | {"weights.gguf"}


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("tiny")])
def test_a_tiny_preset_does_not_imitate_hard_with_all_weights_of_another_model(preset: str) -> None:
    lr = PRESETS[preset].warm_start.optim.lr
    for further in ((), ("--warm-start.perfect-steps", "10"), ("--warm_start.optim.warmup_steps", "3")):
        with pytest.raises(UserError, match=f"all weights of smollm2 for .* at a learning rate of {lr}") as caught:
            parse(["--preset", preset, "--model=smollm2", *further])
    named = re.findall(r"--preset ([\w.-]+)", str(caught.value))
    assert named[0] == preset
    for other in named[1:]:  # each of the ways out that are named is one
        assert parse(["--preset", other, "--model", "smollm2"])[0].model == "smollm2"
    for way in (
        "--warm-start.target none",
        "--warm-start.target adapter",
        "--warm-start.optim.lr 1e-4 --warm-start.perfect-steps 80",
        f"--warm_start.optim.lr={lr}",
        "--warm-start.perfect-steps 0 --warm-start.demonstrator-steps 0",
    ):
        assert parse(["--preset", preset, "--model", "smollm2", *way.split()])[0].preset == preset
    assert parse(["--preset", preset, "--model", "tiny"])[0].warm_start.target == "all"
    assert len(named) == 3


def test_damaged_weights(mempo: Mempo, trained: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(trained / "base", model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert mempo("train", *GIVEN, "--model", model).complaint.startswith(f"{model}: cannot be loaded")


# Run folders ----------------------------------------------------------------------------------------------------------


def test_a_run_folder_that_exists(mempo: Mempo, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    assert mempo("train", "--out", "notes").complaint == "notes exists; choose another --out"
    assert f"go on with it: mempo train --resume {trained}" in mempo("train", "--out", trained).complaint
    assert mempo("eval", "expert", "--out", "notes").complaint == "notes exists; choose another --out"
    assert names_in(tmp_path) == {"notes"}


def test_a_run_folder_that_cannot_be_made(mempo: Mempo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file is a file" in mempo("train", "--out", "file/run").complaint
    assert "name too long" in mempo("train", "--out", "r" * 300).complaint
    assert "cannot be made" in mempo("eval", "expert", "--goals", "1", "--out", "file/run").complaint
    assert names_in(tmp_path) == {"file"}


def test_no_space_on_the_disk(mempo: Mempo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = type(shutil.disk_usage("."))(10**12, 10**12 - 5_000_000, 5_000_000)
    monkeypatch.setattr("mempo_env.algos.run_folder.shutil.disk_usage", lambda _: usage)
    complaint = mempo("train", "--out", "a/b/run").complaint
    assert complaint.startswith(f"no space for the run: {tmp_path} has 5 MB free, 200 MB are needed")
    assert not names_in(tmp_path)


def test_resume_takes_the_runs_own_configuration(mempo: Mempo, trained: Path) -> None:
    for flag, value in (("--goals", "3"), ("--seed", "1"), ("--mempo.weight", "2")):
        assert (
            f"only --steps and --algo go with it, not {flag}"
            in mempo("train", "--resume", trained, flag, value).complaint
        )
    assert "Unrecognized options: extra" in mempo("train", "--resume", trained, "extra").complaint
    assert "--steps" in mempo("train", "--resume", trained, "--steps", "x").complaint
    assert "steps=-1" in mempo("train", "--resume", trained, "--steps", "-1").complaint
    assert (
        "is at step 2 already; give --steps 2 or more" in mempo("train", "--resume", trained, "--steps", "1").complaint
    )


def test_a_checkpoint_of_another_algorithm(mempo: Mempo, trained: Path) -> None:
    before = names_in(trained)
    complaint = mempo("train", "--resume", trained, "--algo", "grpo").complaint
    assert f"{trained}/checkpoints/step-000002 is a checkpoint of 'mempo', not of 'grpo'" in complaint
    assert "resume without --algo" in complaint
    assert "did you mean 'grpo'?" in mempo("train", "--resume", trained, "--algo", "gpro").complaint
    assert names_in(trained) == before


def test_a_folder_that_is_no_run(mempo: Mempo, run_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for call in (("train", "--resume", "notes"), ("eval", "notes")):
        assert "notes is no run folder: it has no config.json" in mempo(*call).complaint
    shutil.rmtree(run_copy / "checkpoints")
    for words in (("train", "--resume", run_copy), ("eval", run_copy, "--goals", "1")):
        assert "has no checkpoint" in mempo(*words).complaint


DAMAGES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda data: "{", "is not valid JSON"),
    (lambda data: "[1]", "has no part 'run'"),
    (lambda data: data | {"run": 3}, "has no part 'run'"),
    (lambda data: {"run": data["run"]}, "has no part 'algorithm'"),
    (lambda data: data | {"run": data["run"] | {"steps": "many"}}, 'run.steps is "many"'),
    (lambda data: data | {"run": data["run"] | {"steps": 2.5}}, "run.steps is 2.5"),
    (lambda data: data | {"run": data["run"] | {"seed": None}}, "run.seed is null"),
    (lambda data: data | {"run": data["run"] | {"goals": [1, "x"]}}, "run.goals is"),
    (lambda data: data | {"run": data["run"] | {"goals": [99]}}, "1 to 16 goals"),
    (lambda data: data | {"run": data["run"] | {"device": "gpu"}}, "run.device is"),
    (lambda data: data | {"run": data["run"] | {"train": 3}}, "run.train must be"),
    (lambda data: data | {"run": data["run"] | {"colour": "red"}}, "run has the unknown key 'colour'"),
    (lambda data: data | {"run": data["run"] | {"algo": "mempro"}}, "unknown algorithm 'mempro'"),
    (lambda data: data | {"algorithm": {"weight": "w"}}, 'algorithm.weight is "w"'),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES, ids=[says for _, says in DAMAGES])
def test_a_damaged_configuration(
    mempo: Mempo, trained: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], object], says: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    damaged = damage(json.loads((trained / "config.json").read_text()))
    (run / "config.json").write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    for call in (("train", "--resume", run), ("eval", run)):
        complaint = mempo(*call).complaint
        assert says in complaint
    assert names_in(run) == {"config.json"}


def test_a_damaged_checkpoint(mempo: Mempo, run_copy: Path) -> None:
    last = run_copy / "checkpoints" / "step-000002"
    whole = (last / "state.pt").read_bytes()
    for part in (b"", b"no archive", whole[: len(whole) // 2]):
        (last / "state.pt").write_bytes(part)
        complaint = mempo("train", "--resume", run_copy).complaint
        assert f"{last} is damaged" in complaint
        assert "remove it to go on from the checkpoint before it" in complaint
    (last / "meta.json").write_text("{}")
    assert f"{last / 'meta.json'} is damaged" in mempo("train", "--resume", run_copy).complaint
    shutil.rmtree(last)
    result = mempo("train", "--resume", run_copy)
    assert result.code == 0, result.err
    assert "resumed" in result.out


def test_eval_refuses_what_the_run_cannot_be_asked(mempo: Mempo, trained: Path, tmp_path: Path) -> None:
    for flags, says in (
        ("--goals 17", "1 to 16 goals"),
        ("--budget breif", "did you mean 'brief'?"),
        ("--preset tiny", "--preset goes with 'expert' only"),
        ("--data somewhere", "closed-world"),
        ("--episodes 0", "episodes=0"),
    ):
        assert says in mempo("eval", trained, *flags.split(), "--out", "rows").complaint
    assert not names_in(tmp_path)
