"""Overlap the cases of a run: the network is at one while the next is read and the last one's result written.

Memory is bounded, for there is never more than one case ahead and one behind. What is told to the observer,
and what becomes of each case, is as if one case followed the other: a case begins for the observer when the
one before it is written and on record, and what happened to it meanwhile is told then.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from litemed.runtime.files import FolderLock, LockedError
from litemed.runtime.jobs import Job
from litemed.runtime.report import CaseReport

if TYPE_CHECKING:
    from litemed.runtime.folder import Begun, CaseSteps


class RunObserver:
    """Is told how a run goes on, in the thread that runs it; override what is of interest."""

    def case_started(self, case: str, number: int, total: int) -> None:
        """A case is begun, the ``number``-th of ``total``, counted from 1."""

    def slices_done(self, done: int, total: int) -> None:
        """Slices of the present case have been segmented."""

    def case_finished(self, report: CaseReport, error: Exception | None) -> None:
        """A case is done, skipped or failed; ``error`` is what it failed of."""


@dataclass(frozen=True)
class _Ahead:
    """A case whose lock is held and that is being read, or was."""

    job: Job
    lock: FolderLock
    reading: Future[Begun]


@dataclass(frozen=True)
class _Behind:
    """A case whose result is being written."""

    job: Job
    lock: FolderLock
    finishing: Future[tuple[CaseReport, Exception | None]]


class Pipeline:
    """Takes cases one by one; a context manager that on leaving lets go of all locks.

    Locks are taken, the network is run and the observer told in the calling thread; one thread reads, another
    writes results and the report. So an interrupt (Ctrl-C) reaches neither of the two: what is being written
    when it comes is written to the end and reported, the case that the network is at is reported as
    interrupted, and the one that was read ahead is forgotten.

    Args:
        folder: in which cases are locked.
        steps: what is done with a case.
        observer: is told how the run goes on.
        total: how many cases there will be.

    Attributes:
        outcomes: what became of the cases that are finished.
    """

    def __init__(self, folder: Path, steps: CaseSteps, observer: RunObserver, total: int) -> None:
        """Begin nothing yet."""
        self.outcomes: dict[Job, CaseReport] = {}
        self._folder = folder
        self._steps = steps
        self._observer = observer
        self._total = total
        self._started = 0
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="litemed-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="litemed-write")
        self._held: set[FolderLock] = set()
        self._ahead: _Ahead | None = None
        self._behind: _Behind | None = None
        self._untold: list[Callable[[], None]] = []

    def __enter__(self) -> Pipeline:
        """Return the pipeline itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for what is being read and written, and let go of the locks."""
        ahead = self._ahead
        self._reader.shutdown()
        if ahead is not None and ahead.lock.abandoned:
            # Its lock's file goes, and with it the trace of the process that was killed over it.
            self._writer.submit(self._steps.finish, ahead.reading.result(), None)
        skipped = self._writer.submit(self._steps.write_skipped)
        self._writer.shutdown()
        for lock in tuple(self._held):
            self._release(lock)
        if kind is None:
            skipped.result()

    def add(self, job: Job, *, wait: bool) -> None:
        """Begin to read a case, and segment meanwhile the one that was added before.

        If another process is at it nothing is done, or with ``wait`` its end awaited.
        """
        lock = FolderLock(self._folder, job.name, wait=wait)
        self._held.add(lock)  # before it is taken: an interrupt may come anywhere
        try:
            lock.__enter__()
        except LockedError:
            self._held.remove(lock)
            return
        reading = self._reader.submit(self._steps.begin, job, lock.abandoned)
        current, self._ahead = self._ahead, _Ahead(job, lock, reading)
        if current is not None:
            self._process(current, last=False)

    def drain(self) -> None:
        """Bring everything that was added to its end."""
        current, self._ahead = self._ahead, None
        if current is not None:
            self._process(current, last=True)
        self._settle()

    def _process(self, current: _Ahead, *, last: bool) -> None:
        """Segment a case and begin to write its result."""
        self._started += 1
        number, name = self._started, current.job.name
        begun: Begun | None = None
        finishing = None
        try:
            self._tell(lambda: self._observer.case_started(name, number, self._total))
            begun = current.reading.result()
            result = None
            if begun.outcome is None:
                begun, result = self._steps.segment(begun, self._slices_done, last)
            self._settle()
            if result is not None:
                current.lock.mark()
            finishing = self._writer.submit(self._steps.finish, begun, result)
            self._behind = _Behind(current.job, current.lock, finishing)
        except KeyboardInterrupt:
            if finishing is None:
                self._writer.submit(self._steps.finish, begun or current.reading.result(), None).result()
            raise
        finally:
            if finishing is None:
                self._release(current.lock)

    def _release(self, lock: FolderLock) -> None:
        lock.__exit__(None, None, None)
        self._held.discard(lock)

    def _slices_done(self, done: int, total: int) -> None:
        self._tell(lambda: self._observer.slices_done(done, total))

    def _tell(self, event: Callable[[], None]) -> None:
        """Tell the observer of the present case, now or when the one before is finished."""
        self._untold.append(event)
        if self._behind is None or self._behind.finishing.done():
            self._settle()

    def _settle(self) -> None:
        """Wait until the last result is written, and tell the observer what is untold."""
        behind = self._behind
        if behind is not None:
            report, error = behind.finishing.result()
            self._behind = None
            self._release(behind.lock)
            self.outcomes[behind.job] = report
            self._observer.case_finished(report, error)
        while self._untold:
            self._untold.pop(0)()
