"""Overlap the cases of a run: the network is at one while the next is read and the last one's result written.

Memory is bounded, for there is never more than one case ahead and one behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from litemed.runtime.files import FolderLock, LockedError
from litemed.runtime.jobs import Job
from litemed.runtime.report import CaseReport
from litemed.runtime.steps import Begun, CaseSteps


class RunObserver:
    """Is told how a run goes on, in the thread that runs it; override what is of interest.

    Cases are begun and finished in the same order, but one may have slices done before the last is finished.
    """

    def case_started(self, case: str, number: int, total: int) -> None:
        """A case is begun, the ``number``-th of ``total``, counted from 1."""

    def slices_done(self, done: int, total: int) -> None:
        """Slices of the case that was begun last have been segmented."""

    def case_finished(self, report: CaseReport, error: Exception | None) -> None:
        """A case is done, skipped or failed; ``error`` is what it failed of."""


class Pipeline:
    """Takes the cases of a run through their steps; a context manager that lets go of all locks.

    Locks are taken, the network is run and the observer told in the calling thread; one thread reads, another
    writes results. So an interrupt (Ctrl-C) reaches neither of the two: what is being written when it comes
    is written to the end and reported, the case that the network is at is reported as interrupted, and the
    one that was read ahead is forgotten.

    Args:
        folder: in which cases are locked.
        steps: what is done with a case.
        observer: is told how the run goes on.
    """

    def __init__(self, folder: Path, steps: CaseSteps, observer: RunObserver) -> None:
        """Begin nothing yet."""
        self._folder = folder
        self._steps = steps
        self._observer = observer
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="litemed-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="litemed-write")
        self._locks: dict[Job, FolderLock] = {}
        self._outcomes: dict[Job, CaseReport] = {}
        self._writing: tuple[Job, Future[tuple[CaseReport, Exception | None]]] | None = None

    def __enter__(self) -> Pipeline:
        """Return the pipeline itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for what is being read and written, and let go of the locks."""
        self._reader.shutdown()
        self._writer.shutdown()
        for job in tuple(self._locks):
            self._release(job)

    def run(self, jobs: list[Job]) -> tuple[CaseReport, ...]:
        """Do all cases and return what became of each: first those that no other process is at."""
        started = 0
        for wait in (False, True):
            left = [job for job in jobs if job not in self._outcomes]
            for job, reading, last in self._read_ahead(left, wait):
                started += 1
                self._observer.case_started(job.name, started, len(jobs))
                self._process(job, reading.result(), last)
            self._settle()
        return tuple(self._outcomes[job] for job in jobs)

    def _read_ahead(self, jobs: Iterable[Job], wait: bool) -> Iterator[tuple[Job, Future[Begun], bool]]:
        """Lock cases and yield them as they are read, and whether it is the last, while the next one is read.

        A case that another process is at is left out. With `wait` its end is awaited; then none is read
        ahead, for two processes that wait for each other's would do so for ever.
        """
        ahead: tuple[Job, Future[Begun]] | None = None
        for job in jobs:
            lock = self._locks[job] = FolderLock(self._folder, job.name, wait=wait)
            try:
                lock.__enter__()
            except LockedError:
                continue
            reading = self._reader.submit(self._steps.begin, job, lock.abandoned)
            if wait:
                yield job, reading, True
                self._settle()
                continue
            if ahead is not None:
                yield *ahead, False
            ahead = job, reading
        if ahead is not None:
            yield *ahead, True

    def _process(self, job: Job, begun: Begun, last: bool) -> None:
        """Segment a case and begin to write its result."""
        result = None
        try:
            if begun.case is not None:
                result = self._steps.segment(begun.case, self._slices_done, last)
                self._locks[job].mark()
            self._settle()
        except KeyboardInterrupt as interrupt:
            self._writer.submit(self._steps.finish, begun, interrupt)
            raise
        if job.picture is None:
            begun = dataclasses.replace(begun, case=None)  # not to be held while it is written
        self._writing = job, self._writer.submit(self._steps.finish, begun, result)

    def _slices_done(self, done: int, total: int) -> None:
        if self._writing is not None and self._writing[1].done():
            self._settle()
        self._observer.slices_done(done, total)

    def _settle(self) -> None:
        """Wait until the last result is written, and tell the observer."""
        if self._writing is not None:
            job, finishing = self._writing
            report, error = finishing.result()
            self._writing = None
            self._release(job)
            self._outcomes[job] = report
            self._observer.case_finished(report, error)

    def _release(self, job: Job) -> None:
        self._locks[job].__exit__(None, None, None)
        del self._locks[job]
