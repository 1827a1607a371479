"""The parts of the studies are found where their scripts find them: beside the script."""

from __future__ import annotations

import sys
from pathlib import Path

STUDIES = Path(__file__).resolve().parents[2] / "benchmarks/studies"
sys.path.insert(0, str(STUDIES))
