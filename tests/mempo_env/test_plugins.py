"""Look-up by name: lazy, unambiguous, and one clear sentence for each way to get it wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mempo_env.errors import UserError
from mempo_env.plugins import Registry

GROUP = "mempo_env.test_plugins_group"


@pytest.fixture
def registry() -> Registry[object]:
    """Two names, one of which points to a module that does not exist."""
    registry = Registry[object]("algorithm", GROUP)
    registry.register("counter", "collections:Counter")
    registry.register("lazy", "mempo_env.no_such_module:Thing")
    return registry


@pytest.fixture
def plugin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path, as a user's project is."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def install_plugin(folder: Path, name: str, entry: str) -> None:
    """Writes what pip leaves of an installed distribution with one entry point."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entry}\n")


def test_a_registered_name_and_a_place_give_the_same_object(registry: Registry[object]) -> None:
    from collections import Counter

    assert registry.get("counter") is Counter
    assert registry.get("collections:Counter") is Counter
    assert registry.get("collections:OrderedDict.fromkeys")


def test_registering_and_listing_import_nothing(registry: Registry[object]) -> None:
    assert registry.names() == ["counter", "lazy"]


def test_unknown_name_tells_the_nearest(registry: Registry[object]) -> None:
    with pytest.raises(UserError, match=r"unknown algorithm 'countr'; did you mean 'counter'\?.*package\.module:Name"):
        registry.get("countr")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("no_such_package.sub:Thing", "no module 'no_such_package'.*PYTHONPATH"),
        ("collections.no_such_sub:Thing", "no module 'collections.no_such_sub'"),
        ("lazy", "algorithm 'lazy' cannot be imported: there is no module 'mempo_env.no_such_module'"),
        ("collections:Countr", "collections: 'Countr'; did you mean 'Counter'"),
        ("collections:", "write package.module:Name"),
        (":Thing", "write package.module:Name"),
        ("a b:Thing", "write package.module:Name"),
        ("..relative:Thing", "write package.module:Name"),
        ("collections:Counter:more", "write package.module:Name"),
    ],
)
def test_each_way_to_be_wrong_has_its_sentence(registry: Registry[object], spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        registry.get(spec)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class Mine(:", "my_broken_algo fails with SyntaxError"),
        ("1 / 0", "my_broken_algo fails with ZeroDivisionError: division by zero"),
        ("import no_such_dependency", "my_broken_algo needs 'no_such_dependency', which is not installed"),
        ("raise ModuleNotFoundError(\"No module named 'peft'\", name='peft')", r"pip install 'mempo-env\[train\]'"),
    ],
)
def test_a_broken_module_of_the_user_is_told_in_one_line(
    registry: Registry[object], plugin_folder: Path, source: str, said: str
) -> None:
    (plugin_folder / "my_broken_algo.py").write_text(source)
    with pytest.raises(UserError, match=said) as caught:
        registry.get("my_broken_algo:Mine")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), ModuleNotFoundError("x", name="mempo_env.other")])
def test_a_bug_of_our_own_keeps_its_traceback(
    registry: Registry[object], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(type(error)) as caught:
        registry.get("lazy")
    assert caught.value is error


def test_an_installed_plugin_is_found_by_its_name(registry: Registry[object], plugin_folder: Path) -> None:
    (plugin_folder / "my_good_algo.py").write_text("class Mine: pass\n")
    install_plugin(plugin_folder, "my-plugin", "mine = my_good_algo:Mine")
    assert registry.names() == ["counter", "lazy", "mine"]
    mine: Any = registry.get("mine")
    assert mine.__name__ == "Mine"


def test_a_name_that_two_sources_provide_is_refused(registry: Registry[object], plugin_folder: Path) -> None:
    install_plugin(plugin_folder, "my-plugin", "counter = collections:OrderedDict")
    with pytest.raises(UserError, match=r"ambiguous.*collections:Counter, collections:OrderedDict"):
        registry.get("counter")


def test_two_sources_that_agree_are_not_ambiguous(registry: Registry[object], plugin_folder: Path) -> None:
    install_plugin(plugin_folder, "my-plugin", "counter = collections:Counter")
    assert registry.get("counter") is registry.get("collections:Counter")


def test_a_taken_name_and_a_malformed_target_are_refused(registry: Registry[object]) -> None:
    registry.register("counter", "collections:Counter")  # the same again is no conflict
    with pytest.raises(ValueError, match="already registered as collections:Counter"):
        registry.register("counter", "collections:OrderedDict")
    for name, target in (("", "a:B"), ("a:b", "a:B"), ("good", "a.b"), ("good", "a:"), ("good", "a b:C")):
        with pytest.raises(ValueError, match=r"package\.module:Name"):
            registry.register(name, target)


def test_the_module_costs_no_torch() -> None:
    code = "import sys, mempo_env.plugins; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
