"""What a run did, as `report.json` in the output folder says it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import cv2
import numpy as np

from litemed.runtime.errors import OutputError
from litemed.runtime.inputs.scaling import DEFAULT_SCALING, Scaling
from litemed.runtime.method import Method
from litemed.runtime.outputs.objects import ObjectStatistics

if TYPE_CHECKING:
    from litemed.runtime.engines import Engine

SCHEMA = 2
REPORT = "report.json"

# Ten thousand cases of two objects take some 17 MB, one of 65,535 objects 26 MB.
MAX_REPORT_BYTES = 2**30
NOT_OURS = "not a report of this version of litemed; move it away or choose another output folder"
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, RecursionError)

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class FileRecord:
    """A file and the sha256 of its bytes, in hexadecimal; the path as given, of outputs the name alone."""

    path: str
    sha256: str


@dataclass(frozen=True)
class CaseReport:
    """What became of one case.

    Attributes:
        case: its name; for cases whose names collide the path.
        status: done; skipped: an earlier run's result still holds, the other fields are that run's; failed.
        error: one line, if it failed.
        warnings: one line each, such as boxes that were clipped.
        seconds: wall-clock, of read (with hashing the input), preprocess, encode, decode, merge, measure (the
            objects), write (with the picture, if any) and total; None if it failed.
        intensity: by which rule its grey levels were made; empty if they were given.
        encodings: how often the encoder ran: once for each slice, tile and plane.
        decodings: boxes decoded, each slice's and plane's counted.
        inputs: the npz, or the image, NIfTI or DICOM files and the sidecar.
        settings_sha256: of the settings it was run with (see `Settings`).
        output: the result in the folder; if this run failed, that of an earlier one, if any.
        overlay: the picture, if one was asked for.
        objects: what was measured of each.
    """

    case: str
    status: Status
    error: str | None = None
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] | None = None
    intensity: str = ""
    encodings: int = 0
    decodings: int = 0
    inputs: tuple[FileRecord, ...] = ()
    settings_sha256: str = ""
    output: FileRecord | None = None
    overlay: FileRecord | None = None
    objects: tuple[ObjectStatistics, ...] = ()

    @classmethod
    def of(cls, entry: dict[str, Any]) -> CaseReport:
        """Make an entry from its JSON; raises one of `MALFORMED` if it is none."""
        if entry["status"] not in get_args(Status):
            raise ValueError(f"status {entry['status']!r}")
        seconds, output, overlay = entry["seconds"], entry["output"], entry["overlay"]
        made = cls(
            **entry
            | {
                "case": str(entry["case"]),
                "warnings": tuple(map(str, entry["warnings"])),
                "seconds": seconds and {part: float(value) for part, value in seconds.items()},
                "inputs": tuple(FileRecord(**record) for record in entry["inputs"]),
                "output": output and FileRecord(**output),
                "overlay": overlay and FileRecord(**overlay),
                "objects": tuple(map(ObjectStatistics.of, entry["objects"])),
            }
        )
        if made.seconds and "total" not in made.seconds:
            raise ValueError("seconds without a total")
        return made


@dataclass(frozen=True)
class Settings:
    """What decides the labels of a given input.

    Attributes:
        litemed: version of litemed.
        bundle: the bundle's name.
        bundle_sha256: of its manifest, which holds the hashes of all its graphs.
        engine: onnxruntime or openvino.
        precision: that the engine computed in, one of the bundle's.
        method: how cases were segmented.
        scaling: how values that were not 8 bits became grey levels.
    """

    litemed: str
    bundle: str
    bundle_sha256: str
    engine: str
    precision: str
    method: Method
    scaling: Scaling = DEFAULT_SCALING

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of all fields, in hexadecimal; equal hashes mean equal labels."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


def load_report(path: Path) -> tuple[CaseReport, ...]:
    """Return the cases of a `report.json`; raises as `read_report`."""
    return read_report(path)[1]


def read_report(path: Path) -> tuple[dict[str, Any], tuple[CaseReport, ...]]:
    """Return all that a `report.json` holds, and its cases.

    Raises:
        OutputError: it cannot be read or is none.
    """
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MAX_REPORT_BYTES))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}")
        return content, tuple(map(CaseReport.of, content["cases"]))
    except (OSError, *MALFORMED) as error:
        raise OutputError(f"{path}: {NOT_OURS}") from error


def describe_environment(engine: Engine) -> dict[str, str | int]:
    """Return what a run is done with: versions as the packages give them, engine, threads, system and CPU.

    `choice` says why this engine and precision were chosen, empty if they were asked for by name.
    """
    return {
        "engine_version": engine.version,
        "choice": engine.choice,
        "threads": engine.threads,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "platform": platform.platform(),
        "cpu": _proc_field("cpuinfo", "model name") or platform.processor() or platform.machine(),
    }


def peak_memory_mib() -> float:
    """Return the most memory that this process has held, in MiB; 0 if the system does not say.

    Not from getrusage: what a process reports there begins with the peak of the one that started it.
    """
    return round(int(_proc_field("self/status", "VmHWM").removesuffix("kB") or 0) / 1024, 1)


def _proc_field(file: str, field: str) -> str:
    """Return a field of a file in Linux's /proc, empty where there is none."""
    try:
        lines = Path("/proc", file).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def litemed_version() -> str:
    """Return the version of the installed litemed."""
    return importlib.metadata.version("litemed")
