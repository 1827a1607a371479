"""The environment contract: a Gymnasium environment whose agent carries nothing from turn to turn but its memory.

``MemoryEnv`` holds what every such environment shares: parsing, memory, budgets, token accounting, reward, rendering
and seeding. An author supplies tasks (``sample_task``), tools (``tools``, ``prepare``) and, if answers are not scored
by EM and F1 against the goals, ``score``. For a warm start the author names a scripted ``expert``, and for a model that
is built in place the words it must know (``vocabulary``, ``phrases``). ``mempo_env.testing`` checks the result;
docs/own_environment.md goes through all of it.

Invariants:
    * ``step`` accepts any string and never raises for one;
    * an observation is a function of task, stored memory, last tool result and budget alone;
    * never both ``terminated`` and ``truncated``; ``reward == sum(info["reward_components"].values())``;
    * randomness comes from ``np_random`` only, and ``info`` holds nothing that varies between two identical steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import gymnasium as gym
import numpy as np

from .actions import Answer, FormatError, FormatErrorKind, ToolCall, parse
from .budgets import Budget, get_budget
from .errors import InfrastructureError, UserError
from .metrics import AnswerScores, score_answers
from .prompts import InstructionStyle, MemoryMode, build_instructions
from .records import Observation, Task, goal_range
from .rewards import OutcomeMode, RewardHook, TurnContext, hook_components, outcome_reward
from .spaces import SAMPLE_OUTPUTS, Unicode
from .tokens import RegexTokenCounter, TokenCounter
from .tools import Tool, ToolArgumentError, checked_result, escape_tags, printable


class MemoryEnv(gym.Env[Observation, str], ABC):
    """Base class of all environments of the project.

    Args:
        goals: Goals of a task, or the two ends of a range to draw their number from at every reset.
        split: Which tasks: ``train``, ``dev`` or ``test``; what they are is the author's to say, and to keep apart.
        budget: ``"brief"``, ``"paper"``, a ``Budget``, or a mapping of changes to a named one (``get_budget``).
        outcome: Outcome reward: ``binary | fraction | f1``.
        memory: ``required`` (no action without a memory), ``optional`` or ``off`` (memory blocks are ignored).
        format_penalty: Subtracted from the reward of a turn that was a format error.
        reward_hook: Step reward hook, a pure picklable function of a ``TurnContext``.
        token_counter: Counts memory tokens; ``regex`` or a counter object.
        instructions: Style of the system message.
        render_mode: ``"ansi"`` or None.

    Raises:
        UserError: An argument is unknown; the message lists what is known.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012  (as Gymnasium declares it)

    expert: ClassVar[str] = ""
    """Where the scripted expert of this environment is, ``"package.module:Class"``, a subclass of
    ``mempo_env.agents.scripted_expert.ScriptedExpert``; empty: there is none, and so no warm start."""

    stateful: ClassVar[bool] = False
    """Whether the tools have a state that calls change (a reader's place, a game), so that a result may depend on the
    calls before it. It may never depend on anything else that the agent wrote."""

    def __init__(
        self,
        *,
        goals: int | Sequence[int] = 1,
        split: str = "train",
        budget: str | Budget | Mapping[str, str | int] = "brief",
        outcome: OutcomeMode = "binary",
        memory: MemoryMode = "required",
        format_penalty: float = 0.0,
        reward_hook: RewardHook | None = None,
        token_counter: TokenCounter | str = "regex",
        instructions: InstructionStyle = "full",
        render_mode: str | None = None,
    ) -> None:
        for name, value, known in (
            ("outcome", outcome, ("binary", "fraction", "f1")),
            ("memory", memory, ("required", "optional", "off")),
            ("instructions", instructions, ("full", "terse")),
            ("render_mode", render_mode, (None, *self.metadata["render_modes"])),
        ):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown; use one of {', '.join(map(str, known))}")
        if isinstance(token_counter, str):
            if token_counter != RegexTokenCounter.name:
                raise UserError(f"token_counter={token_counter!r} is unknown; use 'regex' or a TokenCounter object")
            token_counter = RegexTokenCounter()
        if not (isinstance(format_penalty, int | float) and 0 <= format_penalty < math.inf):
            raise UserError(f"format_penalty={format_penalty!r} must be a number that is not negative")
        if reward_hook is not None and not callable(reward_hook):
            raise UserError(
                f"reward_hook={reward_hook!r} must be a function of a TurnContext; no flag can give one: in a module, "
                "gym.register an environment with kwargs={'reward_hook': ..} (docs/own_environment.md, 'A step reward')"
            )
        self.min_goals, self.max_goals = goal_range(goals)
        self.split = split
        self.budget = get_budget(budget)
        self.outcome: OutcomeMode = outcome
        self.memory_mode: MemoryMode = memory
        self.format_penalty = format_penalty
        self.reward_hook = reward_hook
        self.token_counter = token_counter
        self.instruction_style: InstructionStyle = instructions
        self.render_mode = render_mode
        fields = gym.spaces.Dict({name: Unicode() for name in ("task", "memory", "tool_result", "budget")})
        self.observation_space = cast("gym.Space[Observation]", fields)
        self.action_space = Unicode(samples=SAMPLE_OUTPUTS)
        self._task: Task | None = None
        self._memory = ""

    # What an author supplies ------------------------------------------------------------------------------------------

    @abstractmethod
    def sample_task(self, rng: np.random.Generator) -> Task:
        """Draws a task from ``rng`` alone, with ``draw_goals(rng)`` goals."""

    @property
    def tools(self) -> Sequence[Tool]:
        """The tools on offer, the same ones in every episode; none by default."""
        return ()

    def prepare(self, task: Task) -> None:
        """Sets the tools up for a task; called at every reset."""

    def score(self, answers: Sequence[str], task: Task) -> AnswerScores:
        """Scores the answers; by default EM and F1 against the goals."""
        return score_answers(answers, task.goals)

    def task_text(self, task: Task) -> str:
        """What the observation shows as the task; by default the questions."""
        return task.text

    def first_result(self, task: Task) -> str:  # noqa: ARG002
        """What the agent is shown as a tool result at the first turn; nothing by default."""
        return ""

    @property
    def vocabulary(self) -> Sequence[str]:
        """Words of the tasks and results, for a model built in place; what is missing costs it a token per byte."""
        return ()

    @property
    def phrases(self) -> Sequence[str]:
        """Pieces of text that such a model reads and writes as one token; by default the JSON around arguments."""
        return [phrase for tool in self.tools for phrase in tool.spec.phrases()]

    # The Gymnasium interface ------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Seed of ``np_random``; the task is a function of it.
            options: ``{"task": Task}`` plays this task instead of drawing one.

        Returns:
            The first observation and ``info`` with the ``task``.

        Raises:
            UserError: An option is unknown or the task is no ``Task``.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"task"}:
            raise UserError(f"unknown reset option {sorted(unknown)}; the only one is 'task'")
        task = options.get("task")
        if task is None:
            task = self.sample_task(self.np_random)
        elif not isinstance(task, Task):
            raise UserError(f"options['task'] must be a mempo_env.records.Task, not {type(task).__name__}")
        self._done = True  # until the reset is complete there is no episode to step
        self.prepare(task)
        self._task = task
        self._memory = ""
        self._tool_result = escape_tags(self.first_result(task))
        self._turn = 0
        self._calls = 0
        self._format_errors = 0
        self._done = False
        self._last_output = ""
        return self._observation(), {"task": task}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Plays one output.

        Args:
            action: The whole output of the policy, any string.

        Returns:
            Observation, reward, terminated, truncated, info. ``info`` has ``action`` (as parsed), ``memory_written``,
            ``memory_truncated``, ``format_error`` (its kind or ``""``), ``reward_components``, ``outcome``,
            ``tool_calls``, ``error`` (a fault outside the agent, or ``""``) and, after an answer, ``em``, ``f1`` and
            ``success``.

        Raises:
            RuntimeError: The episode has ended or was never started.
            ToolResultError: A tool returned something that is no ``str``; its author's to mend.
        """
        if self._task is None or self._done:
            raise RuntimeError("call reset() before step(): there is no running episode")
        parsed = parse(action)
        decision, memory_before, result_before = parsed.action, self._memory, self._tool_result
        memory_written, memory_truncated = self._commit(parsed.memory)
        if self.memory_mode == "required" and parsed.memory is None and not isinstance(decision, FormatError):
            decision = FormatError(FormatErrorKind.MISSING_MEMORY, "Begin with a mem block: nothing else is kept.")

        self._turn += 1
        self._last_output = action
        error, scores = "", None
        self._tool_result = ""
        if isinstance(decision, ToolCall):
            try:
                self._tool_result = escape_tags(self._call(decision))
            except ToolArgumentError as problem:
                decision = FormatError(FormatErrorKind.BAD_ARGUMENTS, str(problem))
            except _RefusedCallError as refused:
                decision = refused.format_error
            except InfrastructureError as fault:
                error = f"{type(fault).__name__}: {fault}"
        elif isinstance(decision, Answer):
            try:
                scores = self.score(decision.answers, self._task)
            except InfrastructureError as fault:  # a judge behind ``score`` failed: nobody's fault in the episode
                error = f"{type(fault).__name__}: {fault}"
        if isinstance(decision, FormatError):
            self._format_errors += 1
            self._tool_result = f"Format error ({decision.kind}): {escape_tags(decision.message)}"

        terminated = scores is not None
        truncated = not terminated and (bool(error) or self._turn >= self.budget.max_turns)
        self._done = terminated or truncated
        outcome = outcome_reward(self.outcome, scores, self._format_errors) if scores is not None else 0.0
        components = {"outcome": outcome}
        if self.format_penalty:
            components["format"] = -self.format_penalty if isinstance(decision, FormatError) else 0.0
        if self.reward_hook is not None:
            context = TurnContext(
                self._task,
                self._turn - 1,
                memory_before,
                self._memory,
                result_before,
                self._tool_result,
                decision,
                self._done,
            )
            components |= hook_components(self.reward_hook(context))
        info: dict[str, Any] = {
            "action": decision,
            "memory_written": memory_written,
            "memory_truncated": memory_truncated,
            "format_error": str(decision.kind) if isinstance(decision, FormatError) else "",
            "reward_components": components,
            "outcome": outcome,
            "tool_calls": self._calls,
            "error": error,
        }
        if scores is not None:
            info |= {"em": scores.em, "f1": scores.f1, "success": float(scores.success)}
        return self._observation(), float(sum(components.values())), terminated, truncated, info

    def render(self) -> str | None:
        """The last output and the current observation, as text that a terminal shows and does not obey (``ansi``)."""
        if self.render_mode != "ansi" or self._task is None:
            return None
        observation = self._observation()
        parts = [f"turn {self._turn}"]
        if self._last_output:
            parts.append(f"output:      {self._last_output}")
        parts += [f"{name + ':':12} {text}" for name, text in observation.items()]
        return printable("\n".join(parts))

    # What callers may read --------------------------------------------------------------------------------------------

    @property
    def instructions(self) -> str:
        """The system message of this environment."""
        return build_instructions(
            [tool.spec for tool in self.tools], self.budget, self.memory_mode, self.instruction_style
        )

    @property
    def stored_memory(self) -> str:
        """The memory as stored, whatever a wrapper shows in its place; empty before the first reset."""
        return self._memory

    @property
    def task(self) -> Task:
        """The running episode's task.

        Raises:
            RuntimeError: There is none yet.
        """
        if self._task is None:
            raise RuntimeError("call reset() first: there is no task yet")
        return self._task

    def draw_goals(self, rng: np.random.Generator) -> int:
        """Number of goals of the next task; takes a number from ``rng`` only where ``goals`` is a range."""
        if self.max_goals == self.min_goals:
            return self.min_goals
        return int(rng.integers(self.min_goals, self.max_goals + 1))

    # Parts of a step --------------------------------------------------------------------------------------------------

    def _commit(self, memory: str | None) -> tuple[bool, bool]:
        """Stores a memory that was closed; returns whether one was written and whether it was cut."""
        if memory is None or self.memory_mode == "off":
            return False, False
        stored = self.token_counter.truncate(memory, self.budget.memory_tokens)
        self._memory = stored
        return True, stored != memory

    def _call(self, call: ToolCall) -> str:
        tools = {tool.spec.name: tool for tool in self.tools}
        if call.name not in tools:
            known = f"no such tool; use {', '.join(tools)}." if tools else "no tool; answer."
            raise _RefusedCallError(FormatErrorKind.UNKNOWN_TOOL, f"There is {known}")
        if self._calls >= self.budget.max_tool_calls:
            raise _RefusedCallError(FormatErrorKind.BUDGET_SPENT, "No tool calls are left; answer now.")
        self._calls += 1
        return checked_result(call.name, tools[call.name].call(call.arguments))

    def _observation(self) -> Observation:
        calls, turns = self.budget.max_tool_calls - self._calls, self.budget.max_turns - self._turn
        return {
            "task": escape_tags(self.task_text(self.task)),
            "memory": self._memory,
            "tool_result": self._tool_result,
            "budget": f"{calls} tool calls, {turns} turns left",
        }


class _RefusedCallError(Exception):
    """A call the environment refuses before any tool runs."""

    def __init__(self, kind: FormatErrorKind, message: str) -> None:
        super().__init__(message)
        self.format_error = FormatError(kind, message)
