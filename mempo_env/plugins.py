"""Looks classes up by name: built in, from an installed plug-in (entry point), or as ``package.module:Name``.

Invariant: nothing is imported until it is asked for, and a name means one thing: where two sources provide it, it is
refused, never resolved by order.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from operator import attrgetter
from types import ModuleType
from typing import Generic, TypeVar, cast

from .errors import UserError, unknown_name

T = TypeVar("T")

_TRAIN = ("torch", "transformers", "peft", "accelerate", "safetensors", "tensorboard", "matplotlib")
_RETRIEVAL = {
    "sentence_transformers": "dense",
    "faiss": "dense",
    "httpx2": "search",
    "tenacity": "search",
    "starlette": "serve",
    "uvicorn": "serve",
}
_OTHERS = {"gguf": "gguf", "openai": "chat", "datasets": "hub", "pyarrow": "hub"}
EXTRAS = _OTHERS | dict.fromkeys(_TRAIN, "train") | _RETRIEVAL
"""Which extra of this project brings an optional module."""


class Registry(Generic[T]):
    """Names of one kind of thing: algorithms, environments, context strategies.

    Args:
        kind: How messages call one of them.
        group: Entry-point group of installed plug-ins, such as ``"mempo_env.algos"``.

    >>> registry = Registry[type]("counter", "mempo_env.doctest")
    >>> registry.register("plain", "collections:Counter")
    >>> registry.get("plain"), registry.get("collections:OrderedDict")
    (<class 'collections.Counter'>, <class 'collections.OrderedDict'>)
    >>> registry.names()
    ['plain']
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._targets: dict[str, str] = {}

    def register(self, name: str, target: str) -> None:
        """Adds a name without importing anything.

        Args:
            name: What users type; it cannot hold a colon.
            target: Where it is, as ``"package.module:Name"``.

        Raises:
            ValueError: The name is taken by another target, or malformed.
        """
        if not name or ":" in name or not _is_target(target):
            raise ValueError(f"register the {self.kind} as 'name', 'package.module:Name', not {name!r}, {target!r}")
        if self._targets.setdefault(name, target) != target:
            raise ValueError(f"{self.kind} '{name}' is already registered as {self._targets[name]}")

    def names(self) -> list[str]:
        """All names, built in and from installed plug-ins, in alphabetical order."""
        return sorted(self._targets.keys() | {point.name for point in entry_points(group=self.group)})

    def get(self, name: str) -> T:
        """Imports what a name stands for.

        Args:
            name: A name, or ``package.module:Name`` for what was never registered.

        Returns:
            The object; the caller checks whether it keeps the interface of its kind.

        Raises:
            UserError: The name is unknown or ambiguous, or what it points to cannot be imported.
        """
        what = f"{self.kind} '{name}'"
        if ":" in name:
            if _is_target(name):
                return self._load(name, what)
            raise UserError(f"{what} is no place to import from; write package.module:Name")
        places = {f"{point.module}:{point.attr}" for point in entry_points(group=self.group, name=name)}
        places |= {self._targets[name]} if name in self._targets else set()
        if not places:
            raise unknown_name(self.kind, name, self.names(), "One of your own is named package.module:Name.")
        if len(places) > 1:
            raise UserError(f"{what} is ambiguous; name one by its place: {', '.join(sorted(places))}")
        return self._load(places.pop(), what)

    def _load(self, target: str, what: str) -> T:
        module_name, _, attribute = target.partition(":")
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            if _is_our_bug(error, module_name):
                raise
            raise UserError(f"{what} cannot be imported: {_reason(error, module_name)}") from error
        try:
            return cast(T, attrgetter(attribute)(module))
        except AttributeError as missing:
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
            raise unknown_name(f"name in {module_name}:", attribute, own) from missing


def import_extra(module: str, purpose: str) -> ModuleType:
    """Imports a module that one of this project's extras brings.

    Args:
        module: A top-level name in ``EXTRAS``.
        purpose: What needs it, for the message.

    Returns:
        The module.

    Raises:
        UserError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UserError(
            f"{purpose} needs '{module}', which is not installed; install it with: "
            f"pip install 'mempo-env[{EXTRAS[module]}]'"
        ) from error


def _is_target(text: str) -> bool:
    module, _, attribute = text.partition(":")
    return all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])


def _is_our_bug(error: Exception, module_name: str) -> bool:
    """Whether code of this project failed, for another reason than that the module or an extra is not installed."""
    missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else "mempo_env"
    return module_name.startswith("mempo_env.") and missing.startswith("mempo_env") and missing != module_name


def _reason(error: Exception, module_name: str) -> str:
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return " ".join(f"{module_name} fails with {type(error).__name__}: {error}".split())
    if f"{module_name}.".startswith(f"{error.name}."):
        return f"there is no module '{error.name}'; install it, or put the folder that holds it on PYTHONPATH"
    extra = EXTRAS.get(error.name.partition(".")[0])
    mend = f"; install it with: pip install 'mempo-env[{extra}]'" if extra else ""
    return f"{module_name} needs '{error.name}', which is not installed{mend}"
