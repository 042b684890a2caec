"""Time every contender on every row, contenders interleaved, and keep what was measured."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from litemed.benchmarks.table4.agreement import compare_files
from litemed.benchmarks.table4.contenders import PROPOSED, Contender
from litemed.benchmarks.table4.machine import load_average
from litemed.benchmarks.table4.processes import ContenderError, Run, Worker, run_process
from litemed.benchmarks.table4.rows import Prepared
from litemed.benchmarks.table4.stages import read_timing
from litemed.benchmarks.table4.store import Agreement, Clock, Measurement, Store
from litemed.runtime.errors import InputError
from litemed.runtime.files import make_folder


@dataclass(frozen=True)
class Task:
    """One measurement to be made."""

    contender: Contender
    prepared: Prepared
    clock: Clock
    repeat: int

    @property
    def key(self) -> str:
        """Hash of all that decides the measurement."""
        return _hash(
            self.contender.title,
            self.contender.identity,
            self.prepared.sha256,
            self.clock,
            self.repeat,
        )


class Observer:
    """Is told how the run goes on; override what is of interest."""

    def measured(self, task: Task, measurement: Measurement, remaining: Sequence[Task]) -> None:
        """A measurement was made; `remaining` are still to come."""

    def failed(self, task: Task, error: ContenderError) -> None:
        """A contender failed on a row; the rest of the row goes on without it."""


def plan(
    rows: Sequence[Prepared],
    contenders: Sequence[Contender],
    clocks: Sequence[Clock],
    repeats: int,
) -> list[Task]:
    """Return all measurements in the order in which they are made.

    Each repeat is a pass through all rows, so that the spread of a cell shows the drifts of the machine as
    well. Within a row contender by contender, beginning with another one in each pass: a machine that grows
    slower or faster does so for all alike.
    """
    tasks = []
    for repeat in range(repeats):
        shift = repeat % len(contenders)
        for prepared in rows:
            for contender in (*contenders[shift:], *contenders[:shift]):
                for clock in clocks:
                    if clock == "process" or contender.has_warm_clock:
                        tasks.append(Task(contender, prepared, clock, repeat))
    return tasks


def run(tasks: Sequence[Task], store: Store, folder: Path, observer: Observer) -> set[tuple[str, str]]:
    """Make the measurements that the store lacks, and compare the label maps.

    Args:
        tasks: from `plan`.
        store: takes the measurements.
        folder: where label maps are kept for the comparison.
        observer: is told how it goes.

    Returns:
        Pairs of contender and row that failed.
    """
    failed: set[tuple[str, str]] = set()
    pending = [task for task in tasks if task.key not in store.measurements]
    for (_, prepared), group in itertools.groupby(tasks, lambda task: (task.repeat, task.prepared)):
        here = list(group)
        with _Row(prepared, folder) as row:
            for task in here:
                name = (task.contender.title, prepared.row.name)
                if task not in pending:
                    continue
                pending.remove(task)
                if name in failed:
                    continue
                try:
                    measurement = row.measure(task)
                except ContenderError as error:
                    failed.add(name)
                    observer.failed(task, error)
                    continue
                store.add(measurement)
                observer.measured(task, measurement, pending)
            for agreement in row.agreements(here, store):
                store.add(agreement)
    return failed


class _Row:
    """Works on one row: its workers stay loaded until the row is done in this pass. A context manager."""

    def __init__(self, prepared: Prepared, folder: Path) -> None:
        self._prepared = prepared
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> _Row:
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="litemed-bench-")))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self, task: Task) -> Measurement:
        """Make one measurement. Raises ContenderError if the contender fails."""
        case = self._case()
        with tempfile.TemporaryDirectory(dir=self._scratch) as scratch:
            output = Path(scratch)
            before = load_average()
            taken = self._take(task, case, output)
            labels = output / case.name
            if not labels.is_file():
                raise ContenderError(f"wrote no {case.name} into its output folder")
            kept = self._labels(task.contender)
            if not kept.exists():
                make_folder(kept.parent)
                shutil.copyfile(labels, kept)
        timing = taken.timing
        return Measurement(
            key=task.key,
            contender=task.contender.title,
            row=self._prepared.row.name,
            clock=task.clock,
            repeat=task.repeat,
            seconds=taken.seconds,
            peak_mib=round(taken.peak_mib, 1),
            stages=None if timing is None else timing.stages,
            slices=None if timing is None else timing.slices,
            boxes=None if timing is None else timing.boxes,
            load_average=before,
        )

    def agreements(self, tasks: Sequence[Task], store: Store) -> list[Agreement]:
        """Compare the label maps that the store knows nothing of with those of the column Proposed."""
        contenders = dict.fromkeys(task.contender for task in tasks)
        proposed = next((one for one in contenders if one.title == PROPOSED), None)
        if proposed is None:
            return []
        found = []
        for contender in contenders:
            key = _agreement_key(contender, proposed, self._prepared)
            labels = self._labels(contender)
            if contender is proposed or key in store.agreements or not labels.exists():
                continue
            row, titles = self._prepared.row.name, (contender.title, proposed.title)
            try:
                comparison = compare_files(labels, self._labels(proposed))
            except InputError as error:
                found.append(Agreement(key, row, *titles, None, None, str(error)))
                continue
            found.append(Agreement(key, row, *titles, comparison.dice, comparison.equal))
        return found

    def _take(self, task: Task, case: Path, output: Path) -> Run:
        contender = task.contender
        if task.clock == "warm":
            worker = self._workers.get(contender.title)
            if worker is None:
                worker = self._workers[contender.title] = self._stack.enter_context(
                    Worker(contender.worker())
                )
            return worker.run(case, output)
        taken = run_process(contender.process(case.parent, output))
        return Run(taken.seconds, taken.peak_mib, read_timing(output, case.stem))

    def _case(self) -> Path:
        """Return the row's file, alone in a folder."""
        path = self._scratch / "case" / self._prepared.path.name
        if not path.exists():
            make_folder(path.parent)
            shutil.copyfile(self._prepared.path, path)
        return path

    def _labels(self, contender: Contender) -> Path:
        """Return where a contender's label map is kept; the name tells what it was made of and by."""
        made_by = _hash(contender.identity, self._prepared.sha256)[:12]
        return self._folder / contender.folder / f"{self._prepared.row.name}-{made_by}.npz"


def agreement_keys(tasks: Sequence[Task]) -> list[str]:
    """Return the keys of the agreements that belong to a plan."""
    proposed = next((task.contender for task in tasks if task.contender.title == PROPOSED), None)
    if proposed is None:
        return []
    keys = [_agreement_key(task.contender, proposed, task.prepared) for task in tasks]
    return list(dict.fromkeys(keys))


def _agreement_key(contender: Contender, proposed: Contender, prepared: Prepared) -> str:
    return _hash("agreement", contender.title, contender.identity, proposed.identity, prepared.sha256)


def _hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
