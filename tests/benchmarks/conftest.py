"""Makes the scripts importable as they import each other: by bare name, from their folder."""

from __future__ import annotations

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
for folder in (BENCHMARKS, BENCHMARKS / "studies"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that nothing that is installed is hidden
