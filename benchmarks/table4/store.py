"""The measurements of a run: a JSON file that grows by one measurement at a time and never loses one."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from litemed.benchmarks.table4.machine import Machine
from litemed.runtime.errors import OutputError, UsageError
from litemed.runtime.files import atomic_write

SCHEMA = 2

Clock = Literal["process", "warm"]


@dataclass(frozen=True)
class Measurement:
    """One contender on one case, once.

    Attributes:
        key: hash of all that decides it; a measurement of the same key is not repeated.
        contender: its title.
        row: the case.
        clock: process: from start to exit of a fresh process; warm: model loaded, from file to file.
        repeat: from 0.
        seconds: wall clock.
        peak_mib: peak resident memory; on the warm clock that of the process so far.
        stages: seconds by stage, None if the contender does not say.
        slices, boxes: encoded and decoded, None if the contender does not say.
        load_average: of the machine in the minute before.
    """

    key: str
    contender: str
    row: str
    clock: Clock
    repeat: int
    seconds: float
    peak_mib: float
    stages: dict[str, float] | None
    slices: int | None
    boxes: int | None
    load_average: float


@dataclass(frozen=True)
class Agreement:
    """How far a contender's label map is that of another.

    Attributes:
        key: hash of all that decides it.
        row: the case.
        contender, reference: titles.
        dice: mean over the labels that either has; None if there is no comparison, see `problem`.
        equal: share of pixels or voxels with the same label.
        problem: why there is no comparison.
    """

    key: str
    row: str
    contender: str
    reference: str
    dice: float | None
    equal: float | None
    problem: str | None = None


class Store:
    """The JSON file.

    Args:
        path: the file; what is in it stays.
        description: what the tables need besides the measurements, replaced on each run.

    Raises:
        OutputError: the file is none of ours.
        UsageError: it was written on another machine, or with other versions of what computes.
    """

    def __init__(self, path: Path, machine: Machine, description: dict[str, Any]) -> None:
        """Read what is there."""
        self.path = path
        self.measurements: dict[str, Measurement] = {}
        self.agreements: dict[str, Agreement] = {}
        self._head = {"schema": SCHEMA, "machine": dataclasses.asdict(machine), **description}
        if path.exists():
            self._read(machine)

    def add(self, entry: Measurement | Agreement) -> None:
        """Add a measurement or an agreement and write the file, whole or not at all."""
        if isinstance(entry, Measurement):
            self.measurements[entry.key] = entry
        else:
            self.agreements[entry.key] = entry
        self.write()

    def write(self) -> None:
        """Write the file."""
        content = self._head | {
            "measurements": [dataclasses.asdict(entry) for entry in self.measurements.values()],
            "agreements": [dataclasses.asdict(entry) for entry in self.agreements.values()],
        }
        with atomic_write(self.path) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())

    def _read(self, machine: Machine) -> None:
        try:
            content = json.loads(self.path.read_text())
            if content["schema"] != SCHEMA:
                raise ValueError(f"schema {content['schema']!r}")
            measured_on = Machine(**content["machine"] | {"features": tuple(content["machine"]["features"])})
            measurements = [Measurement(**entry) for entry in content["measurements"]]
            agreements = [Agreement(**entry) for entry in content["agreements"]]
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutputError(
                f"{self.path}: no measurements of this version of litemed-bench; move it away"
            ) from error
        if measured_on.identity != machine.identity:
            raise UsageError(
                f"{self.path}: was measured on another machine or with other versions "
                f"({measured_on.line()}); choose another output folder"
            )
        self.measurements = {entry.key: entry for entry in measurements}
        self.agreements = {entry.key: entry for entry in agreements}
