"""What several test folders share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from mempo_env.envs.retrieval import CACHE_VARIABLE

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does; must stand before torch is loaded
settings.register_profile("patient", deadline=None)  # no test asserts a duration: a busy machine is no failure
settings.load_profile("patient")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository, where there is one."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not (folder / "hotpotqa" / "corpus.jsonl.gz").exists():
        pytest.skip(f"no data sets in {folder}")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Search indexes of the tests stay out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def files_of_at_most() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which every write beyond so many bytes of a file fails, in Python and native code: a full disk.

    The limit holds for the whole process, pytest's own output included, so it must end before the test does.
    """
    resource = pytest.importorskip("resource")

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores SIGXFSZ, so the write fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
