"""The part of the conformance kit that needs agents: whether an environment's scripted expert is fit to learn from.

Invariant: needs no torch; every episode is played on a fresh copy of the environment as it was given.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, cast

from mempo_env.actions import Answer, parse
from mempo_env.env import MemoryEnv
from mempo_env.records import Episode
from mempo_env.testing.carrying import with_results
from mempo_env.testing.subject import broken, shown

from .base import TurnOutput, TurnRequest
from .rollout import group_specs, rollout
from .scripted_expert import Flaws, ScriptedExpert, make_expert

PROMISES = (
    "expert: plays legally, cuts no memory, answers in the end",
    "expert: what it writes depends on the request alone",
    "expert: answers from any memory, one answer per goal",
    "expert: solves every task it was given",
    "expert: does not know what it was not shown",
    "expert: its flaws show in its memories; with them it plays legally too",
)
"""What ``check_expert`` checks, in words."""


def check_expert(env: MemoryEnv, seed: int = 0, episodes: int = 8, *, success: bool = True) -> list[str]:
    """Checks the scripted expert that an environment names.

    Args:
        env: The environment, without wrappers; it is not changed.
        seed: Seed of the first episode.
        episodes: How many tasks are played.
        success: Whether every task must be solved; False where a budget leaves too little room for it. Without a
            memory (``memory="off"``) none must.

    Returns:
        What was checked, of ``PROMISES``.

    Raises:
        AssertionError: A promise is broken; the message says what was seen and what to mend.
        UserError: The environment names no expert, or it cannot be imported.
    """
    pickled = pickle.dumps(env)
    seeds = range(seed, seed + episodes)
    watched = _Watched(_expert(env))
    played = _play(pickled, watched, seeds)
    _check_legal(played, "")
    _check_reproducible(pickled, watched, played, seeds, _expert(env))
    for episode in played:
        for memory in ("", episode.turns[-1].memory):
            _check_answers(_expert(env), episode, memory)
    checked = list(PROMISES)
    if not success or env.memory_mode == "off":
        checked.remove(PROMISES[3])
    elif failed := [episode for episode in played if not episode.scores["success"]]:
        raise broken(
            f"the expert fails on {len(failed)} of {episodes} tasks, such as seed {failed[0].seed}: it answered "
            f"{shown(failed[0].turns[-1].text)} to {shown(failed[0].task.text)}",
            "give tasks the budget they need, and compare its notes with the results; where the budget is too small by "
            "intention, check with success=False",
        )
    blind = _play(pickled, _expert(env), seeds, result="") if env.tools else ()
    if blind and all(episode.scores["success"] for episode in blind):
        raise broken(
            "the expert solves every task although its tools tell it nothing",
            "note and answer only what the observation shows; the gold answers are no source",
        )
    if not env.tools:
        checked.remove(PROMISES[4])
    _check_flaws(pickled, env, played, seeds)
    return checked


class _Watched:
    """An expert whose requests and outputs are kept."""

    def __init__(self, expert: ScriptedExpert) -> None:
        self.expert = expert
        self.name = expert.name
        self.seen: list[tuple[TurnRequest, str]] = []

    def act(self, requests: Sequence[TurnRequest]) -> list[TurnOutput]:
        try:
            outputs = self.expert.act(requests)
        except Exception as error:
            raise broken(
                f"the expert raised {type(error).__name__}: {error}", "it must play every task that sample_task draws"
            ) from error
        self.seen += [(request, output.text) for request, output in zip(requests, outputs, strict=True)]
        return outputs


def _expert(env: MemoryEnv, **settings: Any) -> ScriptedExpert:
    return make_expert(env, memory_counter=env.token_counter, **settings)


def _play(pickled: bytes, agent: Any, seeds: Sequence[int], result: str | None = None) -> list[Episode]:
    def make() -> MemoryEnv:
        env = cast(MemoryEnv, pickle.loads(pickled))
        return env if result is None else with_results(env, result)

    return rollout(agent, make, group_specs(seeds, 1), seed=0, step=0)


def _check_legal(episodes: Sequence[Episode], among: str) -> None:
    for episode in episodes:
        where = f"{among}on seed {episode.seed} "
        if episode.error:
            raise broken(
                f"{where}the episode ended on a fault: {episode.error}", "mend the tool, or wait for its server"
            )
        for at, turn in enumerate(episode.turns):
            if turn.format_error is not None:
                raise broken(
                    f"{where}turn {at} of the expert is a format error, {turn.format_error.kind}: "
                    f"{turn.format_error.message} It wrote {shown(turn.text)}",
                    "call tools with arguments they take, within the budget, and write the action last",
                )
            if turn.info["memory_truncated"]:
                raise broken(
                    f"{where}turn {at}: the expert's memory was cut", "fit the notes with agents.notes.fit_notes"
                )
        if not episode.terminated:
            raise broken(f"{where}the expert ran out of turns", "answer in the last turn at the latest")


def _check_reproducible(
    pickled: bytes, watched: _Watched, played: Sequence[Episode], seeds: Sequence[int], fresh: ScriptedExpert
) -> None:
    mend = "write as a function of the request; keep nothing in the expert, and draw noise from textual.slot_rng"
    for request, text in reversed(watched.seen):
        if (again := fresh.write(request)) != text:
            raise broken(f"asked again, the expert writes {shown(again)} and not {shown(text)}", mend)
    replayed = _play(pickled, watched.expert, list(reversed(seeds)))
    for one, other in zip(played, reversed(replayed), strict=True):
        if [turn.text for turn in one.turns] != [turn.text for turn in other.turns]:
            raise broken(f"on seed {one.seed} the expert plays another episode the second time", mend)


def _check_answers(expert: ScriptedExpert, episode: Episode, memory: str) -> None:
    text = expert.answers(episode.task, memory)
    action = parse(f"<answer>{text}</answer>").action
    given = len(action.answers) if isinstance(action, Answer) else 0
    if given != len(episode.task.goals):
        raise broken(
            f"answers(task, {shown(memory)}) is {shown(text)}, {given} answers to {len(episode.task.goals)} goals",
            'join one answer per goal by "; ", a word such as unknown where the memory does not tell',
        )


def _check_flaws(pickled: bytes, env: MemoryEnv, played: Sequence[Episode], seeds: Sequence[int]) -> None:
    for flaws in (Flaws(forget=1.0), Flaws(forget=0.3, garble=0.3, bloat=0.3)):
        agent = _Watched(_expert(env, flaws=flaws))
        flawed = _play(pickled, agent, seeds)
        _check_legal(flawed, f"with {agent.name} ")
        memories, perfect = ([[turn.memory for turn in each.turns] for each in some] for some in (flawed, played))
        if memories == perfect and any(memory for episode in perfect for memory in episode):
            raise broken(
                f"{agent.name} writes the memories of the perfect expert",
                "drop, garble and add notes in remember() as self.flaws says, with noise from textual.slot_rng",
            )
