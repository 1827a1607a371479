"""The measures of the summary: from which stored result each is read, and what was to be reached.

Invariant: a measure reads two numbers of one file, ours and the anchor's, in one unit; the ratio is always of ours to
the anchor's, so that the goal says which way is better. It is their quotient, unless the file holds a median over
rounds of the ratio within a round, which a load that comes and goes moves less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Result = dict[str, Any]
Read = tuple[float, float | None, float | None]
"""Ours, the anchor's, and their ratio where it is not the quotient."""
LEARNER = "learner step, SmolLM2-135M, LoRA, bf16, 64 rows of 700 + 150 tokens"
WIDE = "learner step, vocabulary of 151,936 on a small body"


Reader = Callable[[Result], Read]


@dataclass(frozen=True)
class Goal:
    """What is to be reached.

    Attributes:
        sign: Which way.
        value: The bound.
        of: Whether the ratio or our figure is held against it.
        unit: Written behind the bound.
        aim: A further bound that is only told.
    """

    sign: Literal["<=", ">=", "<"]
    value: float
    of: Literal["ratio", "ours"] = "ratio"
    unit: str = ""
    aim: str = ""

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}{self.unit}{f', aim {self.aim}' if self.aim else ''}"

    def met_by(self, ours: float, ratio: float | None) -> bool:
        """Whether it is reached.

        Raises:
            TypeError: It is a bound on a ratio, and there is none.
        """
        value = ours if self.of == "ours" else ratio
        if value is None:
            raise TypeError("a goal on a ratio needs an anchor")
        return {"<=": value <= self.value, ">=": value >= self.value, "<": value < self.value}[self.sign]


@dataclass(frozen=True)
class Measure:
    """One row.

    Attributes:
        name: What is measured, in which unit, against what.
        file: Of ``results/``.
        read: Reads the figures; None for an anchor or a ratio: there is none, or it is the quotient.
        goal: None: reported, without a goal.
        short: Whether the README shows it.
    """

    name: str
    file: str
    read: Reader
    goal: Goal | None = None
    short: bool = False


def _sides(result: Result, field: str) -> Read:
    return result["ours"][field], result["trl"][field], None


def _matmul(result: Result) -> Read:
    """Achieved and possible GFLOP/s; the share is the script's, by its formula."""
    share, possible = result["share_of_matmul_rate"], result["matmul_gflops"]
    return share * possible, possible, share


def _rollout(result: Result) -> Read:
    return result["median"]["ours"], result["median"]["generate"], result["ratio"]


def _share(arm: str, clock: str) -> Reader:
    def read(result: Result) -> Read:
        seconds = result["median_seconds"][arm][clock]
        return seconds["scoring"], seconds["step"], result["scoring_share"][arm][clock]

    return read


def _step(arm: str, clock: str) -> Reader:
    def read(result: Result) -> Read:
        ours, anchor = (result["median_seconds"][name][clock]["step"] for name in (arm, "grpo"))
        return ours, anchor, result["step_against_grpo"][arm][clock]

    return read


def _steps() -> Iterator[Measure]:
    """What Q(m) costs, by the clock and in CPU seconds: the goals hold for both; the history baseline stands apart."""
    file, clocks = "step_shares.json", {"wall": "s by the clock", "cpu": "CPU s"}
    scopes = [(scope, clock) for scope in ("joint", "per_goal") for clock in clocks]
    for scope, clock in scopes:
        name = f"Q(m) of 10 goals, `{scope}`: {clocks[clock]}, as a share of a MemPO step"
        yield Measure(name, file, _share(f"mempo, {scope}", clock), Goal("<=", 0.1), clock == "wall")
    for scope, clock in scopes:
        name = f"MemPO step, `{scope}`: {clocks[clock]}, against a GRPO step"
        yield Measure(name, file, _step(f"mempo, {scope}", clock), Goal("<=", 1.15), clock == "wall")
    arm = "mempo-paper, history"
    yield Measure("Q(m) and baseline `history`: CPU s, as a share of a `mempo-paper` step", file, _share(arm, "cpu"))
    yield Measure("`mempo-paper` step, baseline `history`: CPU s, against a GRPO step", file, _step(arm, "cpu"))


def _tokens(world: str, style: str, ours: tuple[str, int], anchor: tuple[str, int], field: str) -> Reader:
    """A field of the row of (context, goals), against that of another row, in the tokens of SmolLM2."""

    def find(result: Result, context: str, goals: int) -> float:
        key = {"world": world, "counter": "smollm2", "instructions": style, "context": context, "goals": goals}
        found: float = next(row for row in result["rows"] if key.items() <= row.items())[field]
        return found

    return lambda result: (find(result, *ours), find(result, *anchor), None)


def _growth(world: str, name: str) -> Iterator[Measure]:
    file = "tokens_by_goals.json"
    four, sixteen = ("memory", 4), ("memory", 16)
    for style, worded in (("full", "full instructions"), ("terse", "instructions of one line")):
        where = f"expert, {name}, {worded}"
        total, peak = (_tokens(world, style, sixteen, four, field) for field in ("total", "peak_less_task"))
        yield Measure(f"tokens of an episode, 16 goals against 4: {where}", file, total, Goal("<=", 4), style == "full")
        yield Measure(
            f"peak tokens less the task, 16 goals against 4: {where}", file, peak, Goal("<=", 1.15), style == "full"
        )
    where = f"expert, {name}, full instructions"
    grown = _tokens(world, "full", ("history", 16), ("history", 4), "peak_less_task")
    yield Measure(f"the same peak with full history: {where}", file, grown)
    for goals in (4, 16):
        beside = _tokens(world, "full", ("memory", goals), ("history", goals), "total")
        yield Measure(f"tokens of an episode of {goals} goals, memory against history: {where}", file, beside)


def _start(row: str, name: str, bound: float) -> Iterator[Measure]:
    """CPU seconds, which are what an idle machine shows by the clock, have the goal; the clock's stand beside them."""

    def seconds(clock: str) -> Reader:
        return lambda result: (result["seconds"][row][clock]["median"], None, None)

    yield Measure(f"{name}, CPU s", "startup.json", seconds("cpu"), Goal("<", bound, "ours", " s"), True)
    yield Measure(f"{name}, s by the clock under the load of `startup.json`", "startup.json", seconds("wall"))


def _turns(row: str, anchor: str) -> Reader:
    def read(result: Result) -> Read:
        ours, theirs = (result["turns_per_second"][name]["wall"]["median"] for name in (row, anchor))
        return ours, theirs, None

    return read


MEASURES: tuple[Measure, ...] = (
    Measure(
        f"{LEARNER}: tokens/s, against TRL's GRPOTrainer at its best",
        "learner_step.json",
        lambda result: _sides(result, "tokens_per_second"),
        Goal(">=", 2, aim="3"),
        True,
    ),
    Measure(
        f"{WIDE}: peak memory above the loaded model, GiB, against TRL, each at its fastest",
        "learner_step_wide.json",
        lambda result: _sides(result, "above_model_gib"),
        Goal("<=", 0.5),
        True,
    ),
    Measure(
        f"{WIDE}: peak memory of the whole process, GiB, against TRL, each at its fastest",
        "learner_step_wide.json",
        lambda result: _sides(result, "peak_gib"),
    ),
    Measure(
        f"{LEARNER}: GFLOP/s, against the machine's matmul rate",
        "learner_step.json",
        _matmul,
        Goal(">=", 0.5),
        True,
    ),
    Measure(
        "whole-episode rollout of a group of 16: tokens/s, against `generate`",
        "rollout_speed.json",
        _rollout,
        Goal(">=", 3),
        True,
    ),
    *_steps(),
    *_growth("closed-world", "closed world"),
    *_growth("hotpotqa", "HotpotQA"),
    *_start("import mempo_env", "`import mempo_env`", 0.5),
    *_start("mempo --help", "`mempo --help`", 0.5),
    *_start("gym.make + reset", "`gym.make` and `reset`, interpreter and imports included", 1),
    Measure(
        "turns/s of the environment with search stubbed, against GEM 0.1.0 on the same task",
        "env_throughput.json",
        _turns("stub, gem-like", "GEM, QaEnv + ToolEnvWrapper + SearchTool"),
    ),
    Measure(
        "queries/s of a served index over a million passages, 8 clients",
        "search_million.json",
        lambda result: (next(load for load in result["load"] if load["clients"] == 8)["queries_per_s"], None, None),
    ),
)
"""In the order of the tables."""
