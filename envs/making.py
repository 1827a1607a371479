"""Makes an environment by its id, for the command line and the jobs.

Invariant: what can go wrong by a user's hand (an unknown id, a package that is not there, an environment that takes
other arguments) is a ``UserError``; a bug keeps its traceback.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from mempo_env import register_envs
from mempo_env.errors import UserError, unknown_name
from mempo_env.records import Observation

HAND_ON = (
    "a subclass of MemoryEnv hands what it does not use itself on: def __init__(self, .., **memory_env): "
    "super().__init__(**memory_env)"
)
"""What the author of an environment does so that it takes the arguments of every ``MemoryEnv``."""


def make_env(env_id: str, **settings: Any) -> gym.Env[Observation, str]:
    """Makes an environment.

    Args:
        env_id: A registered id, or ``package.module:EnvId-v0``, whose module is imported first.
        **settings: Arguments of the environment.

    Returns:
        The environment.

    Raises:
        UserError: There is no such environment, or it does not take these settings.
    """
    _find(env_id)
    try:
        return gym.make(env_id, disable_env_checker=True, **settings)
    except gym.error.Error as error:
        raise UserError(f"environment '{env_id}' cannot be made: {error}") from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        reason = str(error).partition(" was raised from")[0]
        raise UserError(f"environment '{env_id}' cannot be made: {reason}; {HAND_ON}") from error


def env_arguments(env_id: str) -> set[str] | None:
    """The names of the arguments that an environment takes.

    Args:
        env_id: As for ``make_env``.

    Returns:
        The names; along the classes for as long as each takes ``**kwargs`` and so hands them on. None: any (a function
        that takes ``**kwargs``).

    Raises:
        UserError: There is no such environment.
    """
    entry: object = _find(env_id).entry_point
    maker: object = load_env_creator(entry) if isinstance(entry, str) else entry
    if not isinstance(maker, type):
        assert callable(maker)
        parameters = list(inspect.signature(maker).parameters.values())
        return None if _open(parameters) else {each.name for each in parameters}
    names: set[str] = set()
    for cls in maker.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]
        names |= {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
        if not _open(parameters):
            break
    return names


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Arguments of an environment as they are typed: ``name=value``, the value as JSON or, failing that, as text.

    Args:
        options: The words.

    Returns:
        Name to value.

    Raises:
        UserError: A word has no ``=``, no name, or a name that was given before.

    >>> parse_options(["chunks=8", "questions=end", "records=[10, 20]"])
    {'chunks': 8, 'questions': 'end', 'records': [10, 20]}
    """
    settings: dict[str, Any] = {}
    for option in options:
        name, separator, text = option.partition("=")
        if not separator or not name.isidentifier():
            raise UserError(f"'{option}' is no setting of an environment; write name=value, such as chunks=8")
        if name in settings:
            raise UserError(f"'{name}' is set twice; give it once")
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = text
    return settings


def _find(env_id: str) -> gym.envs.registration.EnvSpec:
    """The registered environment of an id; imports its module first, if the id names one."""
    register_envs()
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f"environment '{env_id}' cannot be made: there is no module '{error.name}'; install it, or put the "
                "folder that holds it on PYTHONPATH"
            ) from error
    if name not in gym.registry:
        if module:
            if known := _ids_of(module):
                raise unknown_name("environment", env_id, known)
            raise UserError(
                f"unknown environment '{env_id}'; module '{module}' registers none: call gym.register in it"
            )
        ours = sorted(known for known in gym.registry if known.startswith("MemPO"))
        raise unknown_name("environment", env_id, ours, "One of your own is named package.module:EnvId-v0.")
    return gym.registry[name]


def _ids_of(module: str) -> list[str]:
    """What the package of a module has registered, as it is typed."""
    package, found = module.partition(".")[0], []
    for env_id, spec in gym.registry.items():
        entry = spec.entry_point
        home = entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", "")
        if home.partition(".")[0] == package:
            found.append(f"{module}:{env_id}")
    return found


def _open(parameters: Iterable[inspect.Parameter]) -> bool:
    return any(each.kind is each.VAR_KEYWORD for each in parameters)
