"""``mempo play``: a person plays an episode in the terminal, under the rules that the policy plays by.

Invariants:
    * needs no torch; what is shown is the observation a policy would be given;
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
        env: Environment id.
        goals: Goals of the task, 1 to 16.
        dataset: ``closed-world`` or ``qa``.
        data: Data folders, files or ``hub:NAME`` for ``qa``.
        budget: Named budget: ``brief`` or ``paper``.
        split: Split of the tasks.
        seed: Seed of the task.
    """

    env: str = "MemPO-MultiGoal-v0"
    goals: int = 2
    dataset: str = "closed-world"
    data: tuple[str, ...] = ()
    budget: str = "brief"
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must be at least 0")


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

    settings = {name: getattr(flags, name) for name in ("goals", "dataset", "budget", "split")}

    def show(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    person = PersonAgent(lambda prompt: str(console.input(prompt)), show)
    with EnvPool(lambda: make_env(flags.env, data=list(flags.data) or None, **settings)) as envs:
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
