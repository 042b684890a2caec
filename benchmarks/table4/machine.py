"""What the times were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from litemed.runtime.engines import available_threads

FEATURES = (
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "i8mm",
    "bf16",
)
"""CPU flags that decide how fast matrices are multiplied."""

PACKAGES = ("litemed", "numpy", "opencv-python-headless", "onnxruntime", "openvino", "torch")


@dataclass(frozen=True)
class Machine:
    """The machine and what is installed.

    Attributes:
        cpu: name of the processor.
        features: those of `FEATURES` that it has.
        cores: that this process may use.
        memory_gib: of the machine.
        system: platform string.
        python: version.
        versions: of `PACKAGES`, where installed.
    """

    cpu: str
    features: tuple[str, ...]
    cores: int
    memory_gib: float
    system: str
    python: str
    versions: dict[str, str]

    @classmethod
    def current(cls) -> Machine:
        """Describe this machine."""
        info = _fields("/proc/cpuinfo")
        flags = set((info.get("flags") or info.get("Features") or "").split())
        memory = int(_fields("/proc/meminfo").get("MemTotal", "0").split()[0]) / 2**20
        return cls(
            cpu=info.get("model name") or platform.processor() or platform.machine(),
            features=tuple(feature for feature in FEATURES if feature in flags),
            cores=available_threads(),
            memory_gib=round(memory, 1),
            system=platform.platform(),
            python=platform.python_version(),
            versions={name: version for name in PACKAGES if (version := _version(name))},
        )

    @property
    def identity(self) -> str:
        """What must be equal for times to belong into one table."""
        return f"{self.cpu}, {self.cores}, {self.python}, {sorted(self.versions.items())}"

    def line(self) -> str:
        """Describe it in a line."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.cpu}, {self.cores} cores ({' '.join(self.features) or 'no known features'}), "
            f"{self.memory_gib:g} GiB; {self.system}; Python {self.python}, {versions}"
        )


def load_average() -> float:
    """Return how many processes wanted to run in the last minute, on average."""
    return round(os.getloadavg()[0], 2)


def _fields(path: str) -> dict[str, str]:
    """Return the first value of every field of a file such as /proc/cpuinfo; empty where there is none."""
    fields: dict[str, str] = {}
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return fields
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
