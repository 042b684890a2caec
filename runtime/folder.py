"""Run many cases into one output folder: each on its own, resumable, reported.

One case's failure leaves the others alone. A case is skipped if an earlier run into the same folder finished
it and the hashes of its input files, of the settings (the bundle's among them) and of its result still hold;
otherwise it is run, and its result replaced. What no run of litemed wrote is not replaced unless asked.
Several processes may work on one folder: they share the cases.

A result is written while the network is at the next case; the seconds reported of a case are those of its own
steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from litemed.runtime.errors import OutputError
from litemed.runtime.files import FolderLock, LockedError, make_folder
from litemed.runtime.inputs.cases import list_cases
from litemed.runtime.inputs.memory import check_memory, engine_bytes
from litemed.runtime.inputs.scaling import DEFAULT_SCALING, Scaling
from litemed.runtime.jobs import Job, plan_jobs
from litemed.runtime.method import Method
from litemed.runtime.outputs.page import claim_page, write_page
from litemed.runtime.report import CaseReport, Settings, describe_environment, litemed_version
from litemed.runtime.report_files import ReportFile
from litemed.runtime.steps import Begun, CaseSteps

if TYPE_CHECKING:
    from litemed.runtime.prompts.source import BoxSource
    from litemed.runtime.segmenter import Result, Segmenter


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


def run_cases(
    cases: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    segmenter: Segmenter,
    *,
    method: Method | None = None,
    scaling: Scaling = DEFAULT_SCALING,
    prompts: BoxSource | None = None,
    overlay: str | os.PathLike[str] | None = None,
    png: bool = False,
    html: bool = False,
    ways: Mapping[Path, Path] | None = None,
    max_memory: int | None = None,
    overwrite: bool = False,
    observer: RunObserver | None = None,
) -> tuple[CaseReport, ...]:
    """Segment cases into a folder: NAME.npz with ``segs``, `report.json` and tables.

    Of a NIfTI the result is NAME.nii.gz, of DICOM NAME.dcm.

    Args:
        cases: files and folders, as `litemed.runtime.inputs.cases.list_cases` takes them.
        output: folder of the results; made if need be.
        segmenter: from `litemed.runtime.load`.
        method: how to segment them; the default one if it is None.
        scaling: how values that are not 8 bits become grey levels.
        prompts: where their boxes are, if not in the npz or the sidecar of each.
        overlay: folder for a picture NAME.png of each result; made if need be.
        png: write label maps of images as NAME.png, see `litemed.runtime.outputs.label_files.write_png`.
        html: write `report.html` at the end, with the pictures of `overlay`, if any.
        ways: of folders of cases, to which folder below those of results theirs go; see
            `litemed.runtime.inputs.subfolders.find_below`.
        max_memory: bytes that the process may take: cases that may need more fail before they are read, see
            `litemed.runtime.inputs.memory`, and no case is begun before the last one is written.
        overwrite: run every case, and replace files that no earlier run wrote.
        observer: is told how the run goes on.

    Returns:
        What became of each case of this run, in the order of the cases. A case that failed is in there
        with its error and raises nothing.

    Raises:
        UsageError: there are no such cases, a result would replace an input, or `prompts` are of one case.
        OutputError: the folder or its report cannot be written.
        EngineError: the engine does not accept the bundle's graphs.
        KeyboardInterrupt: after the report was brought up to date.
    """
    output = Path(output)
    overlay = None if overlay is None else Path(overlay)
    paths = list_cases(cases)
    if prompts is not None:
        prompts.check(paths)
    jobs = plan_jobs(paths, output, overlay, png, ways)
    make_folder(output)
    if overlay is not None:
        make_folder(overlay)
    if html:
        claim_page(output, overwrite)
    settings = Settings(
        litemed=litemed_version(),
        bundle=segmenter.bundle.name,
        bundle_sha256=segmenter.bundle.digest,
        engine=segmenter.engine.name,
        precision=segmenter.engine.precision,
        method=(method or Method()).with_decoders(segmenter.engine.decoders),
        scaling=scaling,
    )
    report = ReportFile(output, settings, describe_environment(segmenter.engine), overwrite)
    steps = CaseSteps(segmenter, settings, report, overwrite, prompts, _guard(segmenter, scaling, max_memory))
    run = _Run(output, steps, observer or RunObserver(), one_by_one=max_memory is not None)
    try:
        with run.writer:
            outcomes = run.do(jobs)
    except BaseException:
        with contextlib.suppress(OutputError):  # the log has it all, and the first error is the one to tell
            report.summarise()
        raise
    report.summarise()
    if html:
        write_page(output, overlay)
    return outcomes


def _guard(segmenter: Segmenter, scaling: Scaling, max_memory: int | None) -> Callable[[Path], None] | None:
    """Return what refuses cases that may need more memory; None if all is allowed."""
    if max_memory is None:
        return None
    graphs = sum(graph.bytes for graph in segmenter.bundle.manifest.graphs.values())
    base = engine_bytes(segmenter.engine.name, graphs)
    return functools.partial(check_memory, limit=max_memory, base=base, volume_index=scaling.volume_index)


class _Run:
    """Takes cases through their steps; a thread of its own writes results, one behind.

    So an interrupt (Ctrl-C) does not reach it: what is being written then is written to the end and reported,
    the case that the network is at is reported as interrupted.
    """

    def __init__(self, folder: Path, steps: CaseSteps, observer: RunObserver, one_by_one: bool) -> None:
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="litemed-write")
        self._folder = folder
        self._steps = steps
        self._one_by_one = one_by_one
        self._observer = observer
        self._started = 0
        self._outcomes: dict[Job, CaseReport] = {}
        self._writing: tuple[Job, Future[tuple[CaseReport, Exception | None]]] | None = None

    def do(self, jobs: list[Job]) -> tuple[CaseReport, ...]:
        """Do all cases and return what became of each: first those that no other process is at."""
        for wait in (False, True):
            left = [job for job in jobs if job not in self._outcomes]
            for job in left:
                lock = FolderLock(self._folder, job.name, wait=wait)
                with contextlib.suppress(LockedError):
                    self._process(job, lock, len(jobs), last=job is left[-1])
            self._settle()
        return tuple(self._outcomes[job] for job in jobs)

    def _process(self, job: Job, lock: FolderLock, total: int, last: bool) -> None:
        """Lock, read and segment a case, and begin to write its result, after which the lock goes."""
        begun, result = None, None
        try:
            lock.__enter__()
            self._started += 1
            self._observer.case_started(job.name, self._started, total)
            if self._one_by_one:
                self._settle()
            begun = self._steps.begin(job, lock.abandoned)
            if begun.case is not None:
                begun, result = self._steps.segment(begun, begun.case, self._slices_done, last)
                lock.mark()
            self._settle()
        except BaseException as error:
            if begun is not None and isinstance(error, KeyboardInterrupt):
                self.writer.submit(self._finish, begun, error, lock)
            else:
                lock.__exit__(None, None, None)
            raise
        if job.picture is None:
            begun = dataclasses.replace(begun, case=None)  # not to be held while it is written
        self._writing = job, self.writer.submit(self._finish, begun, result, lock)

    def _finish(
        self, begun: Begun, result: Result | BaseException | None, lock: FolderLock
    ) -> tuple[CaseReport, Exception | None]:
        try:
            return self._steps.finish(begun, result)
        except OutputError:  # of the report: the next run must know the result for ours all the same
            lock.abandon()
            raise
        finally:
            lock.__exit__(None, None, None)

    def _slices_done(self, done: int, total: int) -> None:
        if self._writing is not None and self._writing[1].done():
            self._settle()  # told now, not once a long volume has ended
        self._observer.slices_done(done, total)

    def _settle(self) -> None:
        """Wait until the last result is written, and tell the observer."""
        if self._writing is not None:
            job, finishing = self._writing
            self._writing = None
            self._outcomes[job], error = finishing.result()
            self._observer.case_finished(self._outcomes[job], error)
