"""What a run did: `report.json` and `efficiency.csv` in the output folder.

The report lists every case that any run left in the folder, so that a later run can tell what is still to be
done. While a run is going on, each case is appended to `report.jsonl` as a line of its own, which a kill
survives; at the end, or on an interruption, the log is summarised into the report and goes. Several processes
may share a folder: whatever is read or written is so under a lock.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import hashlib
import importlib.metadata
import io
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import cv2
import numpy as np

from litemed.runtime.errors import OutputError
from litemed.runtime.files import FolderLock, atomic_write, refuse_odd_target, remove_leftovers

if TYPE_CHECKING:
    from litemed.runtime.engines import Engine

SCHEMA = 1
REPORT = "report.json"
LOG = "report.jsonl"
EFFICIENCY = "efficiency.csv"

# Ten thousand cases take some 10 MB.
_MAX_REPORT_BYTES = 2**28

_NOT_OURS = "not a report of this version of litemed; move it away or choose another output folder"
_LINE = b'{"case": '
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, RecursionError)

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class FileRecord:
    """A file and the sha256 of its bytes, in hexadecimal; the path as given, of outputs the name alone."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds that one case took, part by part.

    ``read`` includes hashing the input, ``write`` the picture if one was asked for.
    """

    read: float
    preprocess: float
    encode: float
    decode: float
    merge: float
    write: float
    total: float


@dataclass(frozen=True)
class CaseReport:
    """What became of one case.

    Attributes:
        case: its name; for cases whose names collide the path.
        status: done; skipped: an earlier run's result still holds, the other fields are that run's; failed.
        error: one line, if it failed.
        warnings: one line each, such as boxes that were clipped.
        seconds: None if it failed.
        slices: slices encoded.
        boxes: boxes decoded, each slice's counted.
        inputs: the npz, or the image and its sidecar.
        settings_sha256: of the settings it was run with (see :class:`Settings`).
        output: the result in the folder; if this run failed, that of an earlier one, if any.
        overlay: the picture, if one was asked for.
    """

    case: str
    status: Status
    error: str | None = None
    warnings: tuple[str, ...] = ()
    seconds: Seconds | None = None
    slices: int = 0
    boxes: int = 0
    inputs: tuple[FileRecord, ...] = ()
    settings_sha256: str = ""
    output: FileRecord | None = None
    overlay: FileRecord | None = None


@dataclass(frozen=True)
class Settings:
    """What decides the labels of a given input.

    Attributes:
        litemed: version of litemed.
        bundle: the bundle's name.
        bundle_sha256: of its manifest, which holds the hashes of all its graphs.
        engine: onnxruntime or openvino.
        precision: that the engine computed in, one of the bundle's.
        propagate: whether volumes were segmented slice by slice from the middle.
        crop_masks: whether masks ended at their boxes.
        merge: the rule by which boxes were merged, nested or argmax (see `litemed.runtime.nesting`); null
            with `propagate`. A report without it is of a time when there was argmax only.
    """

    litemed: str
    bundle: str
    bundle_sha256: str
    engine: str
    precision: str
    propagate: bool
    crop_masks: bool = False
    merge: str | None = "argmax"

    @property
    def sha256(self) -> str:
        """Hash of all fields, in hexadecimal; equal hashes mean equal labels."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Environment:
    """Where a run took place; versions as the packages give them.

    ``choice`` says why this engine and precision were chosen, empty if they were asked for by name.
    """

    engine_version: str
    choice: str
    threads: int
    python: str
    numpy: str
    opencv: str
    platform: str
    cpu: str

    @classmethod
    def current(cls, engine: Engine) -> Environment:
        """Describe this process and machine, and the engine it computes with."""
        return cls(
            engine_version=engine.version,
            choice=engine.choice,
            threads=engine.threads,
            python=platform.python_version(),
            numpy=np.__version__,
            opencv=cv2.__version__,
            platform=platform.platform(),
            cpu=_cpu(),
        )


@dataclass(frozen=True)
class RunReport:
    """The content of `report.json`.

    Attributes:
        schema: version of the layout.
        updated: when it was written, ISO 8601 in UTC.
        settings: of the run that wrote last.
        environment: of the run that wrote last.
        peak_memory_mib: most memory that that run's process had held, in MiB; 0 if the system does not say.
        cases: every case that any run left in the folder, by name.
    """

    schema: int
    updated: str
    settings: Settings
    environment: Environment
    peak_memory_mib: float
    cases: tuple[CaseReport, ...]


class ReportFile:
    """The report in an output folder and its log, which other processes may be writing too.

    Args:
        folder: the output folder; it exists.
        settings: of this run.
        environment: of this run.
        overwrite: replace an `efficiency.csv` though there is no report beside it.

    Raises:
        OutputError: there is a `report.json`, `report.jsonl` or `efficiency.csv` that is none of ours.
    """

    def __init__(
        self, folder: Path, settings: Settings, environment: Environment, overwrite: bool = False
    ) -> None:
        """Read what earlier runs left."""
        self._folder = folder
        self._settings = settings
        self._environment = environment
        self._entries: dict[str, CaseReport] = {}
        self._summarised: tuple[int, int, int] | None = None
        self._log_read = 0
        with self._lock():
            self._catch_up()
        table = folder / EFFICIENCY
        if not self._entries and self._summarised is None and table.exists() and not overwrite:
            raise OutputError(
                f"{table}: exists, and no earlier run wrote it; move it away or give --overwrite"
            )

    def get(self, case: str) -> CaseReport | None:
        """Return what is known of a case now, by this process or another one."""
        with self._lock():
            self._catch_up()
            return self._entries.get(case)

    def put(self, entry: CaseReport) -> None:
        """Add or replace an entry, in the log.

        Raises:
            OutputError: it cannot be written.
        """
        path = self._folder / LOG
        line = json.dumps(dataclasses.asdict(entry)).encode() + b"\n"
        with self._lock():
            self._catch_up()
            try:
                with path.open("ab") as file:
                    file.truncate(self._log_read)  # what a process that was killed left of a line
                    file.write(line)
                    file.flush()
                    if entry.status != "skipped":
                        os.fsync(file.fileno())
            except OSError as error:
                raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error

    def summarise(self) -> None:
        """Write `report.json` and `efficiency.csv`, and remove the log; do nothing if there is none.

        Raises:
            OutputError: they cannot be written; the log stays.
        """
        with self._lock():
            self._catch_up()
            if not self._log_read:
                return
            report = RunReport(
                schema=SCHEMA,
                updated=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                settings=self._settings,
                environment=self._environment,
                peak_memory_mib=_peak_memory_mib(),
                cases=tuple(self._entries[name] for name in sorted(self._entries)),
            )
            for name in (REPORT, EFFICIENCY):
                remove_leftovers(self._folder / name)
            with atomic_write(self._folder / EFFICIENCY, durable=False) as file:
                file.write(_efficiency(report.cases).encode())
            with atomic_write(self._folder / REPORT) as file:
                file.write((json.dumps(dataclasses.asdict(report), indent=1) + "\n").encode())
            (self._folder / LOG).unlink(missing_ok=True)

    def _lock(self) -> FolderLock:
        # Not under the report's own name, which may be a case's: report.json.npz. None begins with a dot.
        return FolderLock(self._folder, f".{REPORT}", wait=True)

    def _catch_up(self) -> None:
        """Read what has been written since this was last called: of the log, its new lines only."""
        path = self._folder / REPORT
        # Each summary is a new file, so this tells; a new log begins with it.
        summarised = _stamp(path)
        if summarised != self._summarised:
            self._entries = {entry.case: entry for entry in load_report(path).cases} if summarised else {}
            self._summarised, self._log_read = summarised, 0
        found, self._log_read = _read_log(self._folder / LOG, self._log_read)
        self._entries |= {entry.case: entry for entry in found}


def load_cases(folder: Path) -> dict[str, CaseReport]:
    """Return what became of every case in an output folder, by name: from the report and from the log.

    Raises:
        OutputError: one of the two cannot be read or is none of ours.
    """
    path = folder / REPORT
    cases = load_report(path).cases if path.exists() else ()
    return {entry.case: entry for entry in (*cases, *_read_log(folder / LOG, 0)[0])}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what tells one version of a file from another, None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read_log(path: Path, start: int) -> tuple[list[CaseReport], int]:
    """Return the entries of a log from the byte `start` on, and where its last whole line ends."""
    refuse_odd_target(path)
    try:
        with path.open("rb") as file:
            file.seek(start)
            text = file.read(_MAX_REPORT_BYTES)
        whole = text[: text.rfind(b"\n") + 1]
        torn = text[len(whole) :]  # by a kill or a full disk
        if torn[: len(_LINE)] != _LINE[: len(torn)]:
            raise ValueError("a line of other origin")
        return [_case_report(json.loads(line)) for line in whole.splitlines()], start + len(whole)
    except FileNotFoundError:
        return [], 0
    except (OSError, *_MALFORMED) as error:
        raise OutputError(f"{path}: {_NOT_OURS}") from error


def load_report(path: Path) -> RunReport:
    """Read a `report.json`.

    Raises:
        OutputError: it cannot be read or is none.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_REPORT_BYTES)
        content = json.loads(text)
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}")
        return RunReport(
            schema=SCHEMA,
            updated=str(content["updated"]),
            settings=Settings(**content["settings"]),
            environment=Environment(**content["environment"]),
            peak_memory_mib=float(content["peak_memory_mib"]),
            cases=tuple(_case_report(entry) for entry in content["cases"]),
        )
    except (OSError, *_MALFORMED) as error:
        raise OutputError(f"{path}: {_NOT_OURS}") from error


def _case_report(entry: dict[str, Any]) -> CaseReport:
    """Make an entry from its JSON; raises KeyError, TypeError or ValueError if it is none."""
    if entry["status"] not in get_args(Status):
        raise ValueError(f"status {entry['status']!r}")
    seconds, output, overlay = entry["seconds"], entry["output"], entry["overlay"]
    return CaseReport(
        case=str(entry["case"]),
        status=entry["status"],
        error=None if entry["error"] is None else str(entry["error"]),
        warnings=tuple(map(str, entry["warnings"])),
        seconds=seconds and Seconds(**{part: float(value) for part, value in seconds.items()}),
        slices=int(entry["slices"]),
        boxes=int(entry["boxes"]),
        inputs=tuple(FileRecord(**record) for record in entry["inputs"]),
        settings_sha256=str(entry["settings_sha256"]),
        output=output and FileRecord(**output),
        overlay=overlay and FileRecord(**overlay),
    )


def _efficiency(cases: Iterable[CaseReport]) -> str:
    """Return the table of seconds per finished case."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", "seconds"])
    table.writerows([entry.case, f"{entry.seconds.total:.4f}"] for entry in cases if entry.seconds)
    return text.getvalue()


def _cpu() -> str:
    """Return the processor's name as Linux gives it, or what Python knows."""
    return _proc_field("cpuinfo", "model name") or platform.processor() or platform.machine()


def _peak_memory_mib() -> float:
    """Return the most memory that this process has held.

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
