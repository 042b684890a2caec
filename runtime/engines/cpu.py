"""What this machine's CPU is and can do, as Linux tells it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

_FIELDS = ("model name", "flags", "Features", "CPU part")


def cpu_identity() -> str:
    """Return a text that differs between CPUs for which compiled graphs, or what is fastest, may differ."""
    return hashlib.sha256(json.dumps([os.uname().machine, _fields()]).encode()).hexdigest()


def cpu_instructions() -> set[str]:
    """Return the names of the instruction sets that the CPU has, such as "avx2"; none if Linux tells none."""
    fields = _fields()
    return {name for key in ("flags", "Features") for name in fields[key].partition(":")[2].split()}


def _fields() -> dict[str, str]:
    """Return what /proc says of the first CPU; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return {key: next((line for line in lines if line.startswith(key)), "") for key in _FIELDS}
