"""The flags of ``mempo eval``.

Invariants:
    * help, and what is wrong with a flag, come without importing torch;
    * the defaults of the environment's settings are those of the preset, as ``mempo train`` has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from mempo_env.agents.agent_spec import AgentSpec
from mempo_env.algos.config import EnvSettings
from mempo_env.cli.flags import parse_flags, peek
from mempo_env.errors import UserError

_OPTIONAL_STR = Annotated[str | None, tyro.conf.arg(metavar="STR")]
_OPTIONAL_INT = Annotated[int | None, tyro.conf.arg(metavar="INT")]


@dataclass(frozen=True)
class EvalFlags:
    """Flags of ``mempo eval``.

    Attributes:
        run: Run folders, or ``expert`` for the scripted expert.
        agent: One more agent to measure; ``model`` and ``chat`` have flags of their own below.
        goals: Numbers of goals to test.
        context: Context strategies, one or several; by default the run's, or ``memory``.
        budget: Named budgets, one or several; by default the run's or the preset's.
        episodes: Episodes per row of the table; by default as the run or preset was configured.
        split: Split of the tasks, never the training one.
        seed: Seed of tasks and noise.
        batch: Episodes played side by side; an interruption costs so many at most. Changes no result.
        out: Folder for rows, tables, plots and every episode; the same call goes on with it. By default nothing is
            written.
        render: Makes tables and plots again from a folder that ``--out`` or ``mempo train`` made; plays nothing.
        sample: Sample at temperature 1 instead of greedy decoding.
        device: Where the model runs; by default as the run was configured.
        preset: Without a run: whose environment is played in; by default ``tiny``.
        env: Without a run: environment id.
        dataset: ``closed-world`` or ``qa``; by default the run's or the preset's.
        data: Data folders; by default the run's or the preset's.
        retrieval: What searches, such as the address of a search server; by default as the run was configured.
        env_options: Further arguments of another environment, each ``name=value``.
        env_args: The environment's settings, where there is no run.
        model: For ``model``: ``smollm2``, a hub id, a folder or a ``.gguf`` file. For ``chat``: the server's name of
            it.
        gguf_file: For ``model``: name of a GGUF file in the folder or hub repository.
        adapter: For ``model``: folder or hub id of a PEFT adapter.
        base_url: For ``chat``: the server, such as ``http://localhost:8000/v1``.
        api_key_env: For ``chat``: environment variable that holds the key.
        concurrency: For ``chat``: most requests under way at a time.
        timeout: For ``chat``: seconds without an answer after which a request has failed.
        retries: For ``chat``: how often a failed request is sent again.
        system_role: For ``model`` and ``chat``: ``keep`` the instructions in a system message, ``fold`` them into the
            first user message, or ``auto``.
        prompt_style: For ``model`` and ``chat``: how prompts and outputs are worded.
        max_new_tokens: For ``model`` and ``chat``: longest output.
        dtype: For ``model``: type of the weights.
    """

    run: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN")] = ()
    agent: Annotated[
        Literal["expert", "random", "model", "chat"] | None, tyro.conf.arg(metavar="{expert,random,model,chat}")
    ] = None
    goals: tuple[int, ...] = (2, 4, 6, 8, 10)
    context: tuple[str, ...] = ()
    budget: tuple[str, ...] = ()
    episodes: _OPTIONAL_INT = None
    split: Literal["dev", "test"] = "dev"
    seed: int = 0
    batch: _OPTIONAL_INT = None
    out: str = ""
    render: str = ""
    sample: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, tyro.conf.arg(metavar="{auto,cpu,cuda}")] = None
    preset: _OPTIONAL_STR = None
    env: _OPTIONAL_STR = None
    dataset: _OPTIONAL_STR = None
    data: tuple[str, ...] = ()
    retrieval: _OPTIONAL_STR = None
    env_options: tuple[str, ...] = ()
    env_args: EnvSettings = field(default_factory=EnvSettings)
    model: _OPTIONAL_STR = None
    gguf_file: _OPTIONAL_STR = None
    adapter: _OPTIONAL_STR = None
    base_url: _OPTIONAL_STR = None
    api_key_env: _OPTIONAL_STR = None
    concurrency: _OPTIONAL_INT = None
    timeout: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    retries: _OPTIONAL_INT = None
    system_role: Annotated[Literal["auto", "keep", "fold"] | None, tyro.conf.arg(metavar="{auto,keep,fold}")] = None
    prompt_style: _OPTIONAL_STR = None
    max_new_tokens: _OPTIONAL_INT = None
    dtype: Annotated[Literal["float32", "bfloat16"] | None, tyro.conf.arg(metavar="{float32,bfloat16}")] = None

    def __post_init__(self) -> None:
        for name in ("episodes", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must be at least 0")

    def base(self) -> Any:
        """The preset, in the environment that the flags describe, without a run."""
        return dataclasses.replace(_preset(self.preset, self.agent), env_args=self.env_args)


def parse(argv: Sequence[str]) -> tuple[EvalFlags, tuple[str, ...]]:
    """Parses the flags.

    Returns:
        The flags, and the names of those that were given.

    Raises:
        UserError: A flag is wrong.
        SystemExit: Help was asked for (code 0).
    """
    preset = _preset(peek(argv, "--preset"), peek(argv, "--agent"))
    flags = parse_flags(
        EvalFlags,
        argv,
        command="mempo eval",
        description="Measure trained runs, the scripted expert, a model or a chat server.\n\n"
        "All contexts, budgets and numbers of goals are combined, each combination a row of the table.",
        default=EvalFlags(env_args=preset.env_args),
    )
    given = tuple(word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--"))
    if flags.render and (others := [flag for flag in given if flag != "--render"] + list(flags.run)):
        raise UserError(f"--render plays nothing and takes nothing else; drop {others[0]}")
    return flags, given


def agent_settings(flags: EvalFlags) -> dict[str, Any]:
    """What the flags say of ``--agent``, by the names of ``AgentSpec``."""
    shared = {spec.name for spec in dataclasses.fields(AgentSpec)} & {flag.name for flag in dataclasses.fields(flags)}
    own = ("context", "run", "seed")  # these say what is measured, not who
    settings = {name: getattr(flags, name) for name in shared if name not in own and getattr(flags, name) is not None}
    if flags.agent not in ("model", "chat"):
        settings.pop("device", None)
        return settings
    if flags.sample:
        settings["greedy"] = False
    return {name: settings[name] for name in sorted(settings)}


def _preset(name: str | None, agent: str | None) -> Any:
    """The preset; without a name ``tiny``, with instructions that explain the protocol to a model that never saw it."""
    from mempo_env.algos.presets import get_preset

    preset = get_preset(name or "tiny")
    if name is None and agent in ("model", "chat"):
        return dataclasses.replace(preset, env_args=dataclasses.replace(preset.env_args, instructions="full"))
    return preset
