"""Where the time of a case goes, stage by stage."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from litemed.runtime.files import atomic_write
from litemed.runtime.report import REPORT, load_report

STAGES = ("read", "preprocess", "encode", "decode", "merge", "write")
TIMINGS = "timing.json"


@dataclass(frozen=True)
class CaseTiming:
    """What one case took.

    Attributes:
        case: its name.
        stages: wall-clock seconds by stage, in the order of `STAGES`.
        slices: how often the encoder ran.
        boxes: how many boxes were decoded; a box counts once for each of its slices.
    """

    case: str
    stages: dict[str, float]
    slices: int
    boxes: int


@dataclass
class StageClock:
    """Adds up seconds by stage while a case is worked on, and counts what the network did."""

    slices: int = 0
    boxes: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextlib.contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add the time spent within to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def result(self, case: str) -> CaseTiming:
        """Return what was added up."""
        return CaseTiming(case, dict(self.seconds), self.slices, self.boxes)


def write_timings(folder: Path, timings: Iterable[CaseTiming]) -> None:
    """Leave in an output folder what its cases took."""
    with atomic_write(folder / TIMINGS, durable=False) as file:
        file.write(json.dumps([dataclasses.asdict(timing) for timing in timings], indent=1).encode())


def read_timing(folder: Path, case: str) -> CaseTiming | None:
    """Return what a case took as its output folder tells, by `write_timings` or litemed-run; else None."""
    if (folder / TIMINGS).is_file():
        for entry in json.loads((folder / TIMINGS).read_text()):
            if entry["case"] == case:
                return CaseTiming(**entry)
    if (folder / REPORT).is_file():
        for report in load_report(folder / REPORT).cases:
            if report.case == case and report.seconds is not None:
                stages = {stage: getattr(report.seconds, stage) for stage in STAGES}
                return CaseTiming(case, stages, report.slices, report.boxes)
    return None
