"""Help is complete, tidy and quick: every flag has its words, nothing heavy is imported to print them."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mempo_env.algos import ALGORITHMS, algorithm_settings
from mempo_env.algos.config import RunConfig
from mempo_env.algos.presets import PRESETS, get_preset
from mempo_env.cli import COMMANDS
from mempo_env.cli.check_env import CheckEnvFlags
from mempo_env.cli.eval_flags import EvalFlags
from mempo_env.cli.flags import peek
from mempo_env.cli.new_env import NewEnvFlags
from mempo_env.cli.play import PlayFlags
from mempo_env.cli.reproduce import ReproduceFlags
from mempo_env.cli.train import parse
from mempo_env.cli.view import ViewFlags

Mempo = Callable[..., Any]
POSITIONAL = {
    "eval": ("--run", "RUN"),
    "view": ("--run", "RUN"),
    "new-env": ("--name", "NAME"),
    "check-env": ("--env", "ID"),
    "reproduce": ("--cell", "CELL"),
}
COMMON = shlex.split("--algo --preset --env --model --dataset --goals --budget --steps --seed --out")


def fields_of(cls: type[Any], prefix: str = "--") -> Iterator[str]:
    """The flags that a dataclass stands for."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            yield from fields_of(hints[field.name], f"{name}.")
        else:
            yield name


def flags_with_words(text: str) -> dict[str, str]:
    """Each flag of a help text with the words that belong to it."""
    rows = [line.strip("│ ").strip() for line in text.splitlines() if line.startswith("│")]
    found: dict[str, str] = {}
    flag = ""
    for row in rows:
        if start := re.match(r"(--[\w.-]+)", row):
            flag = start[1]
            found[flag] = row.partition("  ")[2].strip()  # on the same line where there is room
        elif flag and not re.match(r"^-h|^─+$", row):
            found[flag] += row + " "
    return found


def test_overview_names_every_command(mempo: Mempo) -> None:
    for arguments in ((), ("--help",), ("-h",), ("help",)):
        result = mempo(*arguments)
        assert result.code == 0
        assert all(f"  {name} " in result.out for name in COMMANDS)
        assert max(map(len, result.out.splitlines())) <= 110


@pytest.mark.parametrize("algo", ALGORITHMS.names())
@pytest.mark.parametrize("columns", [80, 110])
def test_train_help_has_words_for_every_flag(mempo: Mempo, algo: str, columns: int) -> None:
    result = mempo("train", "--algo", algo, "--help", columns=columns)
    assert result.code == 0
    assert not result.err
    words = flags_with_words(result.out)
    wanted = [*fields_of(RunConfig), *fields_of(algorithm_settings(algo)[1], f"--{algo}.")]
    assert len(wanted) > 60
    for flag in wanted:
        assert flag in words, flag
        assert len(re.sub(r"\(default: .*", "", words[flag]).strip()) > 5, (flag, words[flag])
    others = {flag.partition(".")[0] for flag in words if "." in flag} & {f"--{name}" for name in ALGORITHMS.names()}
    assert others == {f"--{algo}"}


def test_common_flags_are_short_and_come_first(mempo: Mempo) -> None:
    order = list(flags_with_words(mempo("train", "--help").out))
    order.remove("--data")  # between --dataset and --goals
    assert order[: len(COMMON)] == COMMON
    assert not any("." in flag for flag in order[: order.index("--env-args.outcome")])


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_help_is_tidy(mempo: Mempo, columns: int) -> None:
    for command in ("train", "eval", "compare", "view", "play", "new-env", "check-env", "serve-search", "reproduce"):
        text = mempo(command, "--help", columns=columns).out
        assert "``" not in text
        assert "(default: )" not in text
        framed = {len(line) for line in text.splitlines() if line.startswith(("│", "╭", "╰"))}
        assert len(framed) == 1, "the right border is not straight"
        assert framed.pop() <= columns
        assert max(map(len, text.splitlines())) <= columns


@pytest.mark.parametrize(
    ("command", "cls"),
    [
        ("eval", EvalFlags),
        ("play", PlayFlags),
        ("view", ViewFlags),
        ("new-env", NewEnvFlags),
        ("check-env", CheckEnvFlags),
        ("reproduce", ReproduceFlags),
    ],
)
def test_help_of_the_other_commands(mempo: Mempo, command: str, cls: type[Any]) -> None:
    text = mempo(command, "--help").out
    words = flags_with_words(text)
    for flag in fields_of(cls):
        assert flag == POSITIONAL.get(command, ("", ""))[0] or len(words[flag]) > 10, flag
    assert command == "play" or re.search(rf"usage: mempo {command} .*{POSITIONAL[command][1]}", text)


def test_env_shows_versions_and_machine(mempo: Mempo) -> None:
    text = mempo("env").out
    assert all(name in text for name in ("python", "platform", "cores", "gymnasium", "torch"))
    assert "usage: mempo env" in mempo("env", "--help").out
    assert mempo("--version").out.strip() in text


def test_preset_gives_the_defaults_and_flags_change_them() -> None:
    for name in PRESETS:
        config, settings = parse(["--preset", name])
        assert config == get_preset(name)
        assert type(settings) is algorithm_settings(config.algo)[1]
    config, settings = parse(shlex.split("--algo grpo --goals 2 6 --train.optim.lr 0.5 --grpo.beta 0 --eval.no-greedy"))
    assert (config.algo, config.goals, config.train.optim.lr, config.eval.greedy) == ("grpo", (2, 6), 0.5, False)
    assert settings.beta == 0


def test_settings_without_torch_are_the_algorithms_own() -> None:
    from mempo_env.algos.base import get_algorithm

    for name in ALGORITHMS.names():
        algorithm = get_algorithm(name)
        assert algorithm_settings(name) == (algorithm.name, algorithm.config_class)
    assert algorithm_settings("mempo_env.algos.grpo:GRPO") == algorithm_settings("grpo")


def test_a_flag_is_read_early_as_it_is_parsed_later() -> None:
    for arguments in (["--preset=smollm2"], ["--preset", "smollm2"], ["--preset", "tiny", "--preset", "smollm2"]):
        assert parse(arguments)[0].preset == peek(arguments, "--preset") == "smollm2"


def test_help_and_complaints_about_flags_need_no_torch() -> None:
    code = """
import sys
from mempo_env.cli import main
calls = (
    "train --help", "train --goals 17", "train --algo grpo --bogus", "eval --help", "play -h", "serve-search --help",
    "check-env MemPO-MultiGoal-v0", "new-env no/name", "reproduce", "reproduce no-such-cell",
)
for call in calls:
    try:
        main(call.split())
    except SystemExit:
        pass
heavy = {"torch", "transformers", "peft"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m mempo_env.cli train --help | head -n 1"
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert run.stdout.startswith("usage: mempo train")
    assert run.stderr == ""
