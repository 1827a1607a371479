"""``mempo play``: a person plays an episode in the terminal, under the rules that the policy plays by.

Invariants:
    * needs no torch; what is shown is the observation a policy would be given, with what a terminal would obey or hide
      written as escapes: tasks and passages come from files of others;
    * gold answers are shown after the episode has ended, never before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mempo_env.cli.flags import parse_flags
from mempo_env.errors import UserError


@dataclass(frozen=True)
class PlayFlags:
    """Flags of ``mempo play``.

    Attributes:
        env: Environment id; one of your own is named ``package.module:Id-v0``.
        env_options: Arguments of the environment that have no flag here, as ``name=value``.
        goals: Goals of the task, 1 to 16.
        dataset: ``closed-world`` or ``qa``; by default as the environment has it.
        data: Data folders, files or ``hub:NAME`` for ``qa``.
        budget: Named budget, ``brief`` or ``paper``; by default as the environment has it.
        split: Split of the tasks.
        seed: Seed of the task.
    """

    env: str = "MemPO-MultiGoal-v0"
    env_options: tuple[str, ...] = ()
    goals: int = 2
    dataset: str = ""
    data: tuple[str, ...] = ()
    budget: str = ""
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must be at least 0")

    def settings(self) -> dict[str, Any]:
        """Arguments of the environment: those that were given, and nothing that it would have to know otherwise.

        Raises:
            UserError: An option is malformed or has a flag of its own.
        """
        from mempo_env.envs.making import env_arguments, parse_options

        given = {"dataset": self.dataset, "data": list(self.data), "budget": self.budget}
        settings = {"goals": self.goals, "split": self.split} | {name: value for name, value in given.items() if value}
        known = env_arguments(self.env)
        if known is not None and "dataset" not in known and (self.dataset or self.data):
            raise UserError(f"{self.env} takes no dataset; drop --dataset and --data")
        options = parse_options(self.env_options)
        if named := sorted({*given, "goals", "split"} & set(options)):
            raise UserError(f"--env-options {named[0]}=..: {named[0]} has a flag of its own; see mempo play --help")
        return settings | options


def run(argv: Sequence[str]) -> None:
    """Plays one episode and shows the scores.

    Args:
        argv: Flags.

    Raises:
        UserError: A flag, or what it names, cannot be used.
    """
    flags = parse_flags(
        PlayFlags,
        argv,
        command="mempo play",
        description="Play an episode yourself: only what you write into your memory is shown to you again.",
    )
    from rich.console import Console

    play(flags, Console())


def play(flags: PlayFlags, console: Any) -> None:
    """Plays one episode.

    Args:
        flags: What to play.
        console: A rich console, for input and output.

    Raises:
        UserError: The environment cannot be made.
    """
    from mempo_env.actions import Answer
    from mempo_env.agents.rollout import EnvPool, EpisodeSpec, rollout
    from mempo_env.agents.scripted import PersonAgent, PersonLeft
    from mempo_env.envs.making import make_env
    from mempo_env.tools import printable

    settings = flags.settings()

    def show(text: str) -> None:
        console.print(printable(text), markup=False, highlight=False, emoji=False)

    with EnvPool(lambda: make_env(flags.env, **settings)) as envs:
        tools = [tool.spec for tool in envs.memory_env.tools]
        person = PersonAgent(lambda prompt: str(console.input(prompt)), show, tools)
        try:
            episode = rollout(person, envs, [EpisodeSpec("play", 0, flags.seed)], seed=flags.seed, step=0)[0]
        except PersonLeft:
            show("\nleft before the end")
            return
    action = episode.turns[-1].action
    given = action.answers if isinstance(action, Answer) else ()
    show("")
    for index, goal in enumerate(episode.task.goals):
        yours = given[index] if index < len(given) else "-"
        show(f"{goal.question}  gold: {goal.answers[0]}  yours: {yours}")
    ended = "answered" if episode.terminated else episode.error or "ran out of turns"
    show(f"{ended}: EM {episode.scores['em']:.2f}, F1 {episode.scores['f1']:.2f}, {len(episode.turns)} turns")
