"""What a figure was measured on: processor, cores, instruction sets that matter to matrix products, memory, load.

Invariant: it names the kind of machine, never the machine: no host name, no user, no path.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

INSTRUCTIONS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "i8mm", "bf16", "sve"),
)
"""Names in ``/proc/cpuinfo`` that are looked for: x86 first, then ARM."""
TOLD = ("amx_bf16", "avx512_bf16", "bf16", "avx512f", "avx2", "asimd")
"""Of these the first that is there goes into the one-line form: what bfloat16 products run on."""


def read_cpuinfo(text: str) -> tuple[str, list[str]]:
    """Name and instruction sets of the first processor in the text of ``/proc/cpuinfo``.

    Args:
        text: The file; empty where there is none.

    Returns:
        The name (empty if it is not told) and those of ``INSTRUCTIONS`` that it has.
    """
    fields = dict(re.findall(r"^([\w ]+?)\s*:[ \t]*(.*)$", text.split("\n\n")[0], re.MULTILINE))
    has = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name", ""), [name for name in INSTRUCTIONS if name in has]


def describe() -> dict[str, Any]:
    """The machine now, as JSON values.

    Returns:
        ``cpu``, ``cores`` (those this process may use), ``instructions``, ``memory_gib``, ``threads`` (torch's where it
        is loaded, else ``OMP_NUM_THREADS``, else null: the libraries' choice), ``load_average`` over 1, 5, 15 minutes.
    """
    cpuinfo = Path("/proc/cpuinfo")
    name, instructions = read_cpuinfo(cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else "")
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": name or platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "instructions": instructions,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": threads(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def threads() -> int | None:
    """Threads that tensor operations take; None: nobody has said."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else None


def in_words(result: dict[str, Any]) -> str:
    """One line on the machine of a stored result, with what it says and nothing else.

    >>> in_words({"machine": {"cpu": "A", "cores": 2, "instructions": ["avx2"], "memory_gib": 8, "threads": 1}})
    'A, 2 cores, avx2, 8 GiB, 1 thread'
    >>> in_words({"versions": {"cores": "2"}})
    'CPU not recorded, 2 cores'
    """
    machine = result.get("machine")
    told: dict[str, Any] = machine if isinstance(machine, dict) else {}
    cores = told.get("cores") or result.get("versions", {}).get("cores")
    best = next((name for name in TOLD if name in told.get("instructions", ())), None)
    count = told.get("threads")
    parts = [
        " ".join(re.sub(r"\((R|TM)\)", "", told.get("cpu") or "CPU not recorded").split()),
        f"{cores} cores" if cores else "",
        best or "",
        f"{told['memory_gib']:.0f} GiB" if "memory_gib" in told else "",
        f"{count} thread{'s' if count != 1 else ''}" if count else "",
    ]
    return ", ".join(part for part in parts if part)


def resident(name: str) -> int:
    """Bytes of this process that are in memory, now (``VmRSS``) or at most (``VmHWM``)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def forget_peak() -> int:
    """Has ``VmHWM`` begin anew, so that the peak of loading does not hide what comes after; returns what is in use."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmRSS")
