"""Versions of what a run depends on, for run folders and bug reports.

Invariant: nothing is imported to find a version.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "mempo-env",
    "gymnasium",
    "numpy",
    "bm25s",
    "rich",
    "tyro",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "safetensors",
    "gguf",
    "httpx2",
    "tenacity",
    "starlette",
    "uvicorn",
    "sentence-transformers",
    "faiss-cpu",
)


def versions() -> dict[str, str]:
    """Versions by package, with Python, the platform and the number of cores; ``-`` for what is not installed."""
    found = {
        "python": sys.version.split()[0],
        "platform": "-".join([platform.system(), platform.machine(), *filter(None, platform.libc_ver())]),
        "cores": str(os.cpu_count()),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "-"
    return found
