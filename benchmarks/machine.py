"""What times were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil

from litemed.runtime.engines import available_threads
from litemed.runtime.engines.cpu import cpu_instructions

PACKAGES = ("litemed", "numpy", "opencv-python-headless", "onnxruntime", "openvino", "torch")

_FAST = re.compile("avx|fma$|amx|asimd$|i8mm|bf16")
"""The instruction sets that decide how fast matrices are multiplied."""


def describe_machine() -> dict[str, Any]:
    """Return what must be equal for times to belong into one table: CPU, cores, memory, system, versions."""
    installed = {one.name: one.version for one in importlib.metadata.distributions()}
    return {
        "cpu": _cpu_name(),
        "instructions": sorted(filter(_FAST.match, cpu_instructions())),
        "cores": available_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := installed.get(name))},
    }


def machine_line(machine: dict[str, Any]) -> str:
    """Return what `describe_machine` returned as one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['instructions'])}), "
        f"{machine['memory_gib']:g} GiB; {machine['system']}; Python {machine['python']}, {versions}"
    )


def load_average() -> float:
    """Return how many processes wanted to run in the last minute, on average."""
    return round(os.getloadavg()[0], 2)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
