"""Makes an environment by its id, for the command line and the jobs.

Invariant: what can go wrong by a user's hand (an unknown id, a package that is not there, an environment that takes
other arguments) is a ``UserError``; a bug keeps its traceback.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from mempo_env import register_envs
from mempo_env.errors import UserError, unknown_name
from mempo_env.records import Observation


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
    register_envs()
    module, _, name = env_id.rpartition(":")
    ours = sorted(known for known in gym.registry if known.startswith("MemPO"))
    if not module and name not in gym.registry:
        raise unknown_name("environment", env_id, ours, "One of your own is named package.module:EnvId-v0.")
    try:
        return gym.make(env_id, disable_env_checker=True, **settings)
    except gym.error.Error as error:
        raise UserError(f"environment '{env_id}' cannot be made: {error}") from error
    except ModuleNotFoundError as error:
        missing = getattr(error.__cause__, "name", None)  # Gymnasium raises one of its own from it
        if not module or not f"{module}.".startswith(f"{missing}."):
            raise
        raise UserError(
            f"environment '{env_id}' cannot be made: there is no module '{missing}'; install it, or put the folder "
            "that holds it on PYTHONPATH"
        ) from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        reason = str(error).partition(" was raised from")[0]
        raise UserError(
            f"environment '{env_id}' cannot be made: {reason}; it must take the arguments of {ours[0]}"
        ) from error
