"""Conformance kit for environments, ours and other people's; needs no test framework and nothing but the contract.

``check_memory_env(env)`` goes through ``PROMISES`` one by one; a broken one is an ``AssertionError`` that says what was
seen and what to mend. A scripted expert is checked by ``mempo_env.agents.testing.check_expert``, since experts are
agents; ``mempo check-env ID`` does both.

Invariant: every promise is checked on copies of the environment as it was given, so that neither their order nor an
earlier check matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mempo_env.env import MemoryEnv

from .carrying import memory_is_all, results_are_data
from .episodes import budgets_hold, options_are_read, padding_is_taken, rendering_only_looks, resets_are_clean
from .interface import gymnasium_agrees, interface_is_kept, words_are_words
from .outputs import HOSTILE_OUTPUTS
from .replay import (
    any_string_is_legal,
    copies_go_on,
    global_randomness_is_left_alone,
    instances_agree,
    processes_agree,
    seeds_replay,
)
from .subject import Subject
from .vectors import vectors_agree

__all__ = ["HOSTILE_OUTPUTS", "PROMISES", "Check", "check_memory_env"]

PROMISES: tuple[tuple[str, Callable[[Subject], str]], ...] = (
    ("class, spaces, tools and tasks are in order", interface_is_kept),
    ("any string is an action; reward parts sum to the reward", any_string_is_legal),
    ("episodes replay from their seed to the letter, info included", seeds_replay),
    ("global random generators are neither used nor changed", global_randomness_is_left_alone),
    ("a pickled copy goes on alike in the middle of an episode", copies_go_on),
    ("another instance with the same arguments plays alike", instances_agree),
    ("reset leaves nothing behind; no step without an episode", resets_are_clean),
    ("options={'task': ..} is played; other options are refused", options_are_read),
    ("a call that is taken is taken with white space around its texts", padding_is_taken),
    ("budgets of calls, turns and memory are never exceeded", budgets_hold),
    ("nothing is carried from turn to turn but the memory", memory_is_all),
    ("hostile text in tasks and results is data", results_are_data),
    ("rendering shows the episode and does not change it", rendering_only_looks),
    ("vector environments play as single ones do", vectors_agree),
    ("vocabulary and phrases are sound, whatever the episode", words_are_words),
    ("another process plays alike", processes_agree),
    ("gymnasium's own check_env finds nothing", gymnasium_agrees),
)
"""What is promised, in words, and the function that checks it: it returns why it could not, or an empty string."""


@dataclass(frozen=True)
class Check:
    """A promise that was checked, or why it could not be.

    Attributes:
        promise: What is promised.
        skipped: Why it was not checked; empty if it was.
    """

    promise: str
    skipped: str = ""


def check_memory_env(env: MemoryEnv, seed: int = 0) -> list[Check]:
    """Checks that an environment keeps Gymnasium's interface and the promises of ``mempo_env.env``.

    Args:
        env: The environment, without wrappers: ``gym.make(..).unwrapped``. It is closed at the end. One that was not
            made by ``gym.make`` has no vector environments and no second instance to be compared with; the result says
            so.
        seed: Seed of the episodes played.

    Returns:
        What was checked, in order, and what could not be.

    Raises:
        AssertionError: A promise is broken; the message says which one, what was seen, and what to mend.
    """
    subject = Subject(env, seed)
    checks = [Check(promise, check(subject)) for promise, check in PROMISES]
    env.close()
    env.close()
    return checks
