"""``mempo play``: a person plays an episode in the terminal, under the rules that the policy plays by.

Invariant: needs no torch; what is shown is the observation a policy would be given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class PlayFlags:
    """Flags of ``mempo play``.

    Attributes:
        env: Environment id.
        goals: Goals of the task.
        dataset: ``closed-world`` or ``qa``.
        data: Data folders for ``qa``.
        budget: Named budget.
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


def run(argv: Sequence[str]) -> None:
    """Plays one episode and shows the scores."""
    import tyro
    from rich.console import Console

    flags = tyro.cli(
        Annotated[PlayFlags, tyro.conf.arg(name="")],
        args=list(argv),
        prog="mempo play",
        description="Play an episode yourself: only what you write into your memory is shown to you again.",
    )
    play(flags, Console())


def play(flags: PlayFlags, console: Any) -> None:
    """Plays one episode.

    Args:
        flags: What to play.
        console: A rich console, for input and output.
    """
    import gymnasium as gym

    import mempo_env
    from mempo_env.agents.rollout import EpisodeSpec, rollout
    from mempo_env.agents.scripted import PersonAgent, PersonLeft
    from mempo_env.errors import unknown_name

    mempo_env.register_envs()
    if ":" not in flags.env and flags.env not in gym.registry:
        raise unknown_name("environment", flags.env, [name for name in gym.registry if name.startswith("MemPO")])

    def make() -> gym.Env[Any, Any]:
        return gym.make(
            flags.env,
            goals=flags.goals,
            dataset=flags.dataset,
            data=list(flags.data) or None,
            budget=flags.budget,
            split=flags.split,
        )

    def show(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    person = PersonAgent(lambda prompt: str(console.input(prompt)), show)
    try:
        episode = rollout(person, make, [EpisodeSpec("play", 0, flags.seed)], seed=flags.seed, step=0)[0]
    except PersonLeft:
        show("left")
        return
    for goal in episode.task.goals:
        show(f"{goal.question}  {goal.answers[0]}")
    ended = "answered" if episode.terminated else "ran out of turns"
    show(f"{ended}: EM {episode.scores['em']:.2f}, F1 {episode.scores['f1']:.2f}, {len(episode.turns)} turns")
