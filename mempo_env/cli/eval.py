"""``mempo eval RUN..``: measures agents at several numbers of goals, under several contexts and budgets.

Invariants:
    * a run is evaluated in the environment it was trained in; only goals, split, budget, context, data and retrieval
      can be changed;
    * everything that can be wrong is checked before a model is loaded, and what fails before the first episode is
      stored leaves no folder;
    * the same call goes on where an earlier one with the same ``--out`` stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mempo_env.cli.eval_flags import EvalFlags, agent_settings, parse
from mempo_env.cli.train import require_train_extra
from mempo_env.errors import UserError


def run(argv: Sequence[str]) -> None:
    """Evaluates, prints tables, and with ``--out`` writes a folder.

    Args:
        argv: Flags.

    Raises:
        UserError: A flag, or what it names, cannot be used, or ``--out`` is another folder.
        KeyboardInterrupt: The user stopped it; the message says how to go on.
    """
    flags, given = parse(argv)
    require_train_extra()
    from rich.console import Console

    console = Console()
    if flags.render:
        _render(Path(flags.render), console)
        return
    from mempo_env.algos.eval_agents import environment_settings
    from mempo_env.algos.eval_report import write_evaluation
    from mempo_env.algos.eval_sweep import EvalStopped, measure

    if not flags.run and flags.agent is None:
        raise UserError(
            "mempo eval needs RUN (a run folder, or 'expert') or --agent; mempo eval --help lists all flags"
        )
    _refuse_folder(flags)
    config = _environment(flags, given)
    plan = _plan(flags, config)
    _check(config, plan)
    contestants = _contestants(flags, config)
    agents = {who.name: who.settings for who in contestants}
    lists = {name: list(getattr(plan, name)) for name in ("contexts", "budgets", "goals")}
    with _store(flags.out, environment_settings(config, plan.seed), agents, lists) as store:
        try:
            measure(contestants, plan, store, console)
        except EvalStopped as stop:
            raise KeyboardInterrupt(_how_to_go_on(stop, flags, argv)) from None
        write_evaluation(store.folder, console, plots=bool(flags.out))
    if flags.out:
        for what, name in (("rows", "summary.json"), ("episodes", "episodes"), ("plots", "plots")):
            console.print(f"{what:8}  {Path(flags.out) / name}", soft_wrap=True, markup=False, highlight=False)


def _render(folder: Path, console: Any) -> None:
    from mempo_env.agents.eval_store import is_store
    from mempo_env.algos.config_io import read_config
    from mempo_env.algos.eval_report import write_evaluation
    from mempo_env.algos.report import write_report

    if is_store(folder):
        write_evaluation(folder, console)
    elif (folder / "config.json").exists():
        write_report(read_config(folder)[0], folder, console)
    else:
        raise UserError(f"{folder} is neither a folder of mempo eval --out nor a run folder; check --render")


def _refuse_folder(flags: EvalFlags) -> None:
    from mempo_env.agents.eval_store import read_settings

    if flags.out and Path(flags.out).exists():
        read_settings(Path(flags.out))


def _environment(flags: EvalFlags, given: Sequence[str]) -> Any:
    """The run configuration whose environment everybody plays in, changed by the flags."""
    from mempo_env.algos.eval_agents import run_environment

    runs = [Path(name) for name in flags.run if name != "expert"]
    for folder in runs:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give a run folder made by mempo train, or 'expert'")
    if runs:
        if flags.preset is not None:
            raise UserError("--preset goes with 'expert' only: a run is evaluated in the environment it was trained in")
        if fixed := [flag for flag in given if flag in ("--env", "--env-options") or flag.startswith("--env-args.")]:
            raise UserError(f"{fixed[0]}: a run is evaluated in the environment it was trained in; drop it")
        config = run_environment(runs)
    else:
        config = flags.base()
    dataset = flags.dataset or config.dataset
    if flags.data and dataset == "closed-world":
        what = "this run's" if runs else "this preset's"
        raise UserError(f"{what} dataset is closed-world, which is generated; drop --data, or give --dataset qa")
    episodes = config.eval.episodes if flags.episodes is None else flags.episodes
    if not episodes:
        raise UserError(f"{runs[0] if runs else config.preset} was configured without an evaluation; give --episodes")
    evaluation = dataclasses.replace(
        config.eval,
        goals=flags.goals,
        episodes=episodes,
        split=flags.split,
        greedy=not flags.sample,
        batch=flags.batch or config.eval.batch,
    )
    return dataclasses.replace(
        config,
        eval=evaluation,
        dataset=dataset,
        data=flags.data or config.data,
        env_args=dataclasses.replace(config.env_args, retrieval=flags.retrieval or config.env_args.retrieval),
        env=flags.env or config.env,
        env_options=flags.env_options or config.env_options,
        device=flags.device or config.device,
    )


def _plan(flags: EvalFlags, config: Any) -> Any:
    from mempo_env.algos.eval_sweep import EvalPlan

    return EvalPlan(
        contexts=flags.context or (config.context,),
        budgets=flags.budget or (config.budget,),
        goals=config.eval.goals,
        episodes=config.eval.episodes,
        seed=flags.seed,
        batch=config.eval.batch,
    )


def _check(config: Any, plan: Any) -> None:
    """Makes the environment of every context and budget, and draws its longest task."""
    from mempo_env.algos.setup import check_environments, choose_device

    choose_device(config.device)
    for budget in plan.budgets:
        for context in plan.contexts:
            check_environments(dataclasses.replace(config, context=context, budget=budget), training=False)


def _contestants(flags: EvalFlags, config: Any) -> list[Any]:
    from mempo_env.agents.agent_spec import AgentSpec
    from mempo_env.algos.config_io import read_config
    from mempo_env.algos.eval_agents import run_contestant, spec_contestant
    from mempo_env.algos.job import load_run_policy

    settings = agent_settings(flags)
    specs = {"expert": AgentSpec("expert")} if "expert" in flags.run else {}
    if flags.agent is not None:
        spec = AgentSpec(flags.agent, **settings)
        specs[spec.label] = spec
    elif settings:
        flag = next(iter(settings)).replace("_", "-")
        raise UserError(f"--{flag} goes with --agent model or --agent chat; a run has its own")
    runs = [Path(name) for name in flags.run if name != "expert"]
    if (flags.sample or flags.device) and not (runs or flags.agent in ("model", "chat")):
        raise UserError("--sample and --device go with a run or a model: the scripted expert has no model")
    policies = {run: functools.cache(functools.partial(load_run_policy, run, device=flags.device)) for run in runs}
    plain = [run.resolve().name for run in runs]
    names = [name if plain.count(name) == 1 else str(run) for name, run in zip(plain, runs, strict=True)]
    if twice := [name for name in names if names.count(name) > 1 or name in specs]:
        raise UserError(f"{twice[0]} is measured twice; name each agent once")
    found = [run_contestant(run, name, config, policies[run]) for run, name in zip(runs, names, strict=True)]
    priced_by = None
    if runs:
        first = policies[runs[0]]
        priced_by = (f"the tokenizer of {read_config(runs[0])[0].model}", lambda: first().codec)
    return found + [spec_contestant(spec, name, config, priced_by) for name, spec in specs.items()]


@contextmanager
def _store(out: str, environment: Any, agents: Any, plan: Any) -> Iterator[Any]:
    """The folder to write into, or a temporary one."""
    from mempo_env.agents.eval_store import open_store

    if out:
        with open_store(Path(out), environment, agents, plan) as store:
            yield store
        return
    with (
        tempfile.TemporaryDirectory(prefix="mempo-eval-") as aside,
        open_store(Path(aside) / "evaluation", environment, agents, plan) as store,
    ):
        yield store


def _how_to_go_on(stop: Any, flags: EvalFlags, argv: Sequence[str]) -> str:
    came = f"stopped after {stop.done} of {stop.total} episodes"
    if not flags.out:
        return f"{came}; nothing is kept without --out"
    if not stop.done:
        return f"{came}; nothing was stored"
    return f"{came}, which are kept; go on with: mempo eval {shlex.join(argv)}"
