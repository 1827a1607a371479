"""Plays random and mutated outputs in an environment and checks every step.

``check_memory_env`` tries what is known to break environments; this looks for what is not known yet. Needs no test
framework: the tests play a share, ``benchmarks/fuzz_actions.py`` as many as you like.

Invariant: outputs and play are a function of (seed, environment). A failure names the output that caused it.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from .actions import Answer, FormatError, ParsedOutput, Segment, encode_text, memory_block, parse, scan
from .env import MemoryEnv
from .hostile import OutputFuzzer
from .prompts import render_observation
from .records import Observation, Task
from .segments import token_segments
from .tools import escape_tags

_EPISODES_PER_TASK = 25  # drawing and indexing a world costs more than an episode
_SEGMENTS_EVERY = 5  # outputs; labelling tokens costs more than the step
_Step = tuple[Observation, float, bool, bool, dict[str, Any]]
_LABELS = {"Task": "task", "Memory": "memory", "Result": "tool_result", "Budget": "budget"}


@dataclass(frozen=True)
class FuzzReport:
    """What was played.

    Attributes:
        actions: Outputs played.
        episodes: Episodes begun.
        answered: Episodes that ended in an answer.
        kinds: How often which action came of an output: ``ToolCall``, ``Answer`` or the kind of a format error.
        longest: Length of the longest output, in characters.
    """

    actions: int
    episodes: int
    answered: int
    kinds: dict[str, int]
    longest: int


def fuzz_env(env: MemoryEnv, actions: int, seed: int = 0, long_share: float = 1e-4) -> FuzzReport:
    """Plays random and mutated outputs and checks every step.

    Args:
        env: The environment, without wrappers; it is used up by this.
        actions: How many outputs.
        seed: Seed of the outputs, and of the environment.
        long_share: Share of outputs that are blown up to as much as a megabyte.

    Returns:
        What was played.

    Raises:
        AssertionError: A promise was broken; the message says which one, by what output and at which count.
    """
    rng = random.Random(seed)
    fuzzer = OutputFuzzer([tool.spec for tool in env.tools], rng, long_share)
    kinds: Counter[str] = Counter()
    episodes = answered = longest = 0
    running, canary = False, ""
    task: Task | None = None
    observation: Observation = {}
    for count in range(actions):
        if not running:
            options = {"task": task} if task is not None and episodes % _EPISODES_PER_TASK else None
            observation, info = env.reset(seed=seed if episodes == 0 else None, options=options)
            task, episodes = info["task"], episodes + 1
            assert observation["memory"] == "", "a new episode begins with a memory"
        before, last_canary, canary = observation, canary, f"canary{seed}x{count}x"
        output = fuzzer.output(canary)
        try:
            parsed, result = _checked_step(env, output, before)
            observation, _, terminated, truncated, info = result
            _check_carried(last_canary, observation, info)
            if count % _SEGMENTS_EVERY == 0:
                _check_segments(output, parsed, rng)
        except Exception as problem:
            shown = repr(output if len(output) < 1000 else f"{output[:1000]}.. ({len(output)} characters)")
            raise AssertionError(
                f"output {count} of seed {seed}: {type(problem).__name__}: {problem}; after {shown}"
            ) from problem
        action = info["action"]
        kinds[str(action.kind) if isinstance(action, FormatError) else type(action).__name__] += 1
        answered, longest = answered + terminated, max(longest, len(output))
        running = not (terminated or truncated)
    return FuzzReport(actions, episodes, answered, dict(sorted(kinds.items())), longest)


def check_output(env: MemoryEnv, output: str, before: Observation, seed: int = 0) -> tuple[Observation, bool]:
    """Plays one output and checks the step.

    Args:
        env: An environment in the middle of an episode.
        output: Anything.
        before: The observation before it.
        seed: Where the tokens are cut whose labels are checked.

    Returns:
        The observation after it, and whether the episode has ended.

    Raises:
        AssertionError: A promise was broken.
    """
    parsed, result = _checked_step(env, output, before)
    _check_segments(output, parsed, random.Random(seed))
    return result[0], result[2] or result[3]


def _checked_step(env: MemoryEnv, output: str, before: Observation) -> tuple[ParsedOutput, _Step]:
    result, parsed = env.step(output), parse(output)
    _check_result(env, parsed, result)
    _check_observation(env, parsed, before, result[0])
    return parsed, result


def _check_result(env: MemoryEnv, parsed: ParsedOutput, result: _Step) -> None:
    _, reward, terminated, truncated, info = result
    assert not (terminated and truncated), "both terminated and truncated"
    assert reward == sum(info["reward_components"].values()), "the reward is not the sum of its parts"
    assert not info["error"], f"an output caused a fault: {info['error']}"
    action = info["action"]
    if isinstance(action, FormatError):
        assert info["format_error"] == action.kind, "info['format_error'] names another kind"
        assert not terminated, "a format error terminates"
    else:
        assert action == parsed.action, "the action is not the one that was written"
        assert terminated == isinstance(action, Answer), "an answer, and nothing else, terminates"
        assert env.memory_mode != "required" or parsed.memory is not None, "an action without the required memory"


def _check_observation(env: MemoryEnv, parsed: ParsedOutput, before: Observation, observation: Observation) -> None:
    for name, text in observation.items():
        text.encode("utf-8")  # raises for lone surrogates
        # What others wrote has no tag of ours left, so escaping it again changes nothing.
        assert name == "memory" or escape_tags(text) == text, f"a tag of ours stands in '{name}': {text[:200]!r}"
    assert observation["task"] == before["task"], "the task changed"
    memory = before["memory"]
    if parsed.memory is not None and env.memory_mode != "off":
        memory = env.token_counter.truncate(parsed.memory, env.budget.memory_tokens)
        assert env.token_counter.count(memory) <= env.budget.memory_tokens, "the memory is over its cap"
    assert observation["memory"] == memory, "the memory is not the one the agent wrote"
    lines = render_observation(observation).splitlines()
    for label, name in _LABELS.items():
        expected = 1 if observation[name] or name == "task" else 0
        found = sum(line.startswith(f"{label}:") for line in lines)
        assert found == expected, f"'{label}:' begins {found} lines, not {expected}"


def _check_carried(last_canary: str, observation: Observation, info: dict[str, Any]) -> None:
    """What an output said is gone one turn later, unless it stood in a memory that was kept."""
    for name, text in observation.items():
        kept = name == "memory" and not info["memory_written"]
        assert kept or not last_canary or last_canary not in text, f"'{name}' carries over what an earlier output said"


def _check_segments(output: str, parsed: ParsedOutput, rng: random.Random) -> None:
    """The tokens labelled memory are those of the block that was committed, whatever the cut."""
    data = encode_text(output)
    stored = memory_block(scan(data))
    start, end = (stored.start, stored.end) if stored else (0, 0)
    assert (parsed.memory is None) == (stored is None), "parse and segments disagree"
    cuts = sorted({0, len(data), start, end, *(int(rng.random() * len(data)) for _ in range(4))})
    tokens = [data[left:right] for left, right in itertools.pairwise(cuts)]
    for position, label in zip(cuts, token_segments(tokens), strict=False):
        inside = start <= position < end
        assert (label == Segment.MEMORY) == inside, f"the token at byte {position} is labelled {label}"
