"""What several test folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mempo_env.envs.retrieval import CACHE_VARIABLE

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does; must stand before torch is loaded


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
