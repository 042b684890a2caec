"""The files that say what runs did in an output folder: `report.json`, `report.jsonl`, and tables.

The report lists every case that any run left in the folder, so that a later run can tell what is still to be
done. While a run is going on, each case is appended to `report.jsonl` as a line of its own, which a kill
survives; at the end, or on an interruption, the log is summarised into the report and goes. Several processes
may share a folder: whatever is read or written is so under a lock.
"""

import csv
import dataclasses
import datetime
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

from litemed.runtime.errors import OutputError
from litemed.runtime.files import FolderLock, atomic_write, refuse_odd_target, remove_leftovers
from litemed.runtime.outputs import objects
from litemed.runtime.report import (
    MALFORMED,
    MAX_REPORT_BYTES,
    NOT_OURS,
    REPORT,
    SCHEMA,
    CaseReport,
    Settings,
    load_report,
    peak_memory_mib,
)

LOG = "report.jsonl"
EFFICIENCY = "efficiency.csv"
TABLES = (EFFICIENCY, objects.OBJECTS)

_LINE = b'{"case": '


class ReportFile:
    """The report in an output folder and its log, which other processes may be writing too.

    Args:
        folder: the output folder; it exists.
        settings: of this run.
        environment: of this run.
        overwrite: replace tables though there is no report beside them.

    Raises:
        OutputError: there is a `report.json`, `report.jsonl` or table that is none of ours.
    """

    def __init__(
        self, folder: Path, settings: Settings, environment: dict[str, str | int], overwrite: bool = False
    ) -> None:
        """Read what earlier runs left."""
        self._folder = folder
        self._settings = settings
        self._environment = environment
        self._entries: dict[str, CaseReport] = {}
        self._summarised: tuple[int, int, int] | None = None
        self._log_read = 0
        with self._lock():  # another process may be about to write them
            self._catch_up()
            if not self._entries and self._summarised is None and not overwrite:
                for table in filter(Path.exists, (folder / name for name in TABLES)):
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
            self._entries[entry.case] = entry
            self._log_read += len(line)

    def summarise(self) -> None:
        """Write `report.json` and the tables, and remove the log; do nothing if there is none.

        Raises:
            OutputError: they cannot be written; the log stays.
        """
        with self._lock():
            self._catch_up()
            if not self._log_read:
                return
            cases = [self._entries[name] for name in sorted(self._entries)]
            report = {
                "schema": SCHEMA,
                "updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "settings": dataclasses.asdict(self._settings),
                "environment": self._environment,
                "peak_memory_mib": peak_memory_mib(),
                "cases": [dataclasses.asdict(case) for case in cases],
            }
            for name in (REPORT, *TABLES):
                remove_leftovers(self._folder / name)
            for name, text in zip(TABLES, (_efficiency(cases), objects.table(cases)), strict=True):
                with atomic_write(self._folder / name, durable=False) as file:
                    file.write(text.encode(errors="backslashreplace"))
            with atomic_write(self._folder / REPORT) as file:
                file.write((json.dumps(report, indent=1) + "\n").encode())
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
            self._entries = {entry.case: entry for entry in load_report(path)} if summarised else {}
            self._summarised, self._log_read = summarised, 0
        found, self._log_read = _read_log(self._folder / LOG, self._log_read)
        self._entries |= {entry.case: entry for entry in found}


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
            text = file.read(MAX_REPORT_BYTES)
        whole = text[: text.rfind(b"\n") + 1]
        torn = text[len(whole) :]  # by a kill or a full disk
        if torn[: len(_LINE)] != _LINE[: len(torn)]:
            raise ValueError("a line of other origin")
        return [CaseReport.of(json.loads(line)) for line in whole.splitlines()], start + len(whole)
    except FileNotFoundError:
        return [], 0
    except (OSError, *MALFORMED) as error:
        raise OutputError(f"{path}: {NOT_OURS}") from error


def _efficiency(cases: Iterable[CaseReport]) -> str:
    """Return the table of seconds per finished case."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", "seconds"])
    table.writerows([entry.case, f"{entry.seconds['total']:.4f}"] for entry in cases if entry.seconds)
    return text.getvalue()
