"""What `litemed-run` tells, as JSON: one object a line on stderr, for programs that follow a run."""

import datetime
import io
import json
import time
from collections.abc import Mapping
from typing import Any, Final, TextIO

from litemed.runtime.folder import RunObserver
from litemed.runtime.report import CaseReport

_LEVELS: Final = ("error", "warning", "note", "interrupted")


class JsonLines(io.TextIOBase):
    """A text stream that writes each line, of tracebacks too, as an object of event "message"."""

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self, stream: TextIO) -> None:
        """Write to a stream."""
        super().__init__()
        self._stream = stream
        self._begun = ""

    def write(self, text: str, /) -> int:
        """Write the lines that are whole, and keep what is begun of the next one."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(None, lines):
            level, colon, rest = line.partition(": ")
            told = {"level": level, "text": rest} if colon and level in _LEVELS else {"text": line}
            self.event("message", told)
        return len(text)

    def event(self, kind: str, content: Mapping[str, Any]) -> None:
        """Write one object, of what happened and when, in UTC."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self._stream.write(json.dumps({"time": now, "event": kind, **content}) + "\n")
        self._stream.flush()


class JsonLog(RunObserver):
    """Tells of cases in events: case_started, case_finished."""

    def __init__(self, lines: JsonLines) -> None:
        """Tell nothing yet."""
        self._lines = lines
        self._left = TimeLeft()
        self._finished = self._total = 0

    def case_started(self, case: str, number: int, total: int) -> None:
        """Tell which case is begun."""
        self._total = total
        self._lines.event("case_started", {"case": case, "number": number, "total": total})

    def case_finished(self, report: CaseReport, error: Exception | None) -> None:
        """Tell what became of a case, and how long the others may take."""
        self._finished += 1
        about: dict[str, Any] = {"case": report.case, "status": report.status}
        if report.error is not None:
            about["error"] = report.error
        if report.status != "skipped":
            about |= {"warnings": report.warnings, "seconds": report.seconds}
        left = self._left.after(self._finished, self._total)
        self._lines.event("case_finished", about | {"finished": self._finished, "total": self._total} | left)


class TimeLeft:
    """Says how long a run may still take: as long for each case as those so far took on average."""

    def __init__(self) -> None:
        """Begin to count."""
        self._start = time.monotonic()

    def after(self, finished: int, total: int) -> dict[str, float]:
        """Return the seconds left, by their name, once some cases of a total are finished."""
        average = (time.monotonic() - self._start) / finished
        return {"seconds_left": round(average * (total - finished), 1)}
