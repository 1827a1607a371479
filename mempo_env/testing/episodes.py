"""Checks of an episode's course: beginnings and ends, options, budgets, rendering.

Invariant: every episode here is played to an end that the budget sets.
"""

from __future__ import annotations

from mempo_env.errors import UserError

from .outputs import call_block, example, padded
from .subject import Subject, broken, difference, first_difference, play, shown, start, step


def resets_are_clean(subject: Subject) -> str:
    """Reset in the middle of an episode leaves nothing of it, and no step is taken without one."""
    env = subject.fresh()
    try:
        env.step("")
    except RuntimeError:
        pass
    except Exception as error:
        raise broken(f"step before reset raised {type(error).__name__}", "leave it to MemoryEnv.step") from error
    else:
        raise broken("step before reset is played", "leave it to MemoryEnv.step, which raises RuntimeError")
    expected = play(subject.fresh(), subject.outputs, subject.seed)
    for output in ["<mem>left over</mem>", *(f"<mem>left over</mem>{call_block(tool.spec)}" for tool in env.tools)]:
        start(env, subject.seed + 1)
        step(env, output)
        if where := first_difference(expected, play(env, subject.outputs, subject.seed)):
            raise broken(
                f"an episode left in the middle shows in the next one: {where}",
                "set up everything that an episode changes in prepare(), which every reset calls",
            )
    start(env, subject.seed)
    for _ in range(env.budget.max_turns):
        result = step(env, "")
        if result[2] or result[3]:
            break
    else:
        return ""  # budgets_hold says so
    try:
        env.step("")
    except RuntimeError:
        return ""
    raise broken(
        "a step is played after the episode has ended", "leave it to MemoryEnv.step, which raises RuntimeError"
    )


def options_are_read(subject: Subject) -> str:
    """A given task is played, with the same observations as when it was drawn; unknown options are refused."""
    env = subject.fresh()
    _, info = start(env, subject.seed + 1)
    drawn = [step(env, output) for output in subject.outputs[: env.budget.max_turns - 1]]
    other = subject.fresh()
    _, again = start(other, 0, info["task"])
    if again["task"] != info["task"]:
        raise broken("options={'task': ..} is not played", "leave reset to MemoryEnv, or hand the options on")
    for output, ours in zip(subject.outputs, drawn, strict=False):
        theirs = step(other, output)
        if where := difference(ours, theirs, "step"):
            raise broken(
                f"a task that is given plays differently from the same task drawn: {where}",
                "set the tools up in prepare(task), from the task alone, not in sample_task",
            )
        if theirs[2] or theirs[3]:
            break
    try:
        env.reset(options={"no such option": 1})
    except UserError:
        return ""
    except Exception as error:
        raise broken(f"an unknown reset option raised {type(error).__name__}", "raise a UserError") from error
    raise broken("an unknown reset option is accepted silently", "leave reset to MemoryEnv, or hand the options on")


def padding_is_taken(subject: Subject) -> str:
    """A call that a tool takes is taken with white space around its texts, too."""
    for tool in subject.env.tools:
        arguments = example(tool.spec.parameters | {"type": "object"})
        env = subject.fresh()
        start(env, subject.seed)
        kinds = [
            step(env, f"<mem>m</mem>{call_block(tool.spec, given)}")[4]["format_error"]
            for given in (arguments, padded(arguments))[: env.budget.max_tool_calls]
        ]
        if kinds[0] == "" and kinds[-1] == "bad_arguments":
            raise broken(
                f"tool {tool.spec.name} takes {shown(arguments)} but not {shown(padded(arguments))}",
                "strip texts before they are compared: models write spaces around them, and the model that is built in "
                "place (--preset tiny) writes one before every word",
            )
    return ""


def budgets_hold(subject: Subject) -> str:
    """Calls, turns and memory, each driven over its limit."""
    for call in ["", *(call_block(tool.spec) for tool in subject.env.tools)]:
        env = subject.fresh()
        start(env, subject.seed)
        budget, calls, ended = env.budget, 0, False
        for turn in range(budget.max_turns):
            _, _, terminated, truncated, info = step(env, f"<mem>turn {turn}</mem>{call}")
            if call and calls >= budget.max_tool_calls and info["format_error"] != "budget_spent" and not info["error"]:
                raise broken(
                    f"call {calls + 1} of {budget.max_tool_calls} was no format error 'budget_spent'",
                    "leave the calls to MemoryEnv",
                )
            calls += bool(call) and not info["format_error"]
            ended = terminated or truncated
            if ended:
                break
        if not ended:
            raise broken(
                f"the episode goes on after {budget.max_turns} turns, the budget's last",
                "leave the turns to MemoryEnv; a task that needs more gets a budget that has them",
            )
    env = subject.fresh()
    if env.memory_mode == "off":
        return ""
    start(env, subject.seed)
    long = "word " * (20 * env.budget.memory_tokens)
    observation, _, _, _, info = step(env, f"<mem>{long}</mem>", "")
    if observation["memory"] != long and not info["memory_truncated"]:
        raise broken("a memory was cut and info['memory_truncated'] is not set", "leave the memory to MemoryEnv")
    return ""


def rendering_only_looks(subject: Subject) -> str:
    """``render_mode="ansi"`` gives text, None gives None, and neither changes the episode."""
    silent, loud = subject.fresh(), subject.fresh()
    silent.render_mode, loud.render_mode = None, "ansi"
    start(silent, subject.seed)
    start(loud, subject.seed)
    running = True
    for output in subject.outputs[: loud.budget.max_turns]:
        text = loud.render()
        if not isinstance(text, str) or not text:
            raise broken(f"render gave {shown(text)} with render_mode='ansi'", "return text, or leave it to MemoryEnv")
        if not running:
            break
        ours, theirs = step(silent, output), step(loud, output)
        if where := difference(ours, theirs, "step"):
            raise broken(f"an episode that is rendered goes on differently: {where}", "change nothing in render")
        running = not (ours[2] or ours[3])
    if silent.render() is not None:
        raise broken("render gave something with render_mode=None", "return None then, or leave it to MemoryEnv")
    return ""
