"""Makes the scripts importable as they import each other: by bare name, from their folder."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = str(Path(__file__).resolve().parents[2] / "benchmarks")
if FOLDER not in sys.path:
    sys.path.append(FOLDER)  # last, so that nothing that is installed is hidden
