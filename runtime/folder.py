"""Run many cases into one output folder: each on its own, resumable, reported.

One case's failure leaves the others alone. A case is skipped if an earlier run into the same folder finished
it and the hashes of its input files, of the settings (the bundle's among them) and of its result still hold;
otherwise it is run, and its result replaced. What no run of litemed wrote is not replaced unless asked.
Several processes may work on one folder: they share the cases.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from litemed.runtime.boxes import Boxes
from litemed.runtime.errors import InputError, LitemedError, OutputError
from litemed.runtime.files import (
    FolderLock,
    LockedError,
    atomic_write,
    make_folder,
    refuse_odd_target,
    remove_leftovers,
    sha256_of_file,
)
from litemed.runtime.jobs import Job, plan_jobs
from litemed.runtime.npz import write_npz
from litemed.runtime.overlay import draw_case, encode_png
from litemed.runtime.readers import case_files, list_cases, read_case
from litemed.runtime.report import (
    CaseReport,
    Environment,
    FileRecord,
    ReportFile,
    Seconds,
    Settings,
    litemed_version,
)

if TYPE_CHECKING:
    from litemed.runtime.segmenter import Segmenter

_LISTED = 10


class RunObserver:
    """Is told how a run goes on; override what is of interest."""

    def case_started(self, case: str, number: int, total: int) -> None:
        """A case is begun, the ``number``-th of ``total``, counted from 1."""

    def slices_done(self, done: int, total: int) -> None:
        """Slices of the present case have been segmented."""

    def case_finished(self, report: CaseReport, error: Exception | None) -> None:
        """A case is done, skipped or failed; ``error`` is what it failed of."""


def run_cases(
    cases: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    segmenter: Segmenter,
    *,
    propagate: bool = False,
    overlay: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    observer: RunObserver | None = None,
) -> tuple[CaseReport, ...]:
    """Segment cases into a folder: NAME.npz with ``segs``, `report.json` and `efficiency.csv`.

    Args:
        cases: files and folders, as :func:`litemed.runtime.readers.list_cases` takes them.
        output: folder of the results; made if need be.
        segmenter: from :func:`litemed.runtime.load`.
        propagate: segment volumes from each box's middle slice outwards, as the published baseline does.
        overlay: folder for a picture NAME.png of each result; made if need be.
        overwrite: run every case, and replace files that no earlier run wrote.
        observer: is told how the run goes on.

    Returns:
        What became of each case of this run, in the order of the cases. A case that failed is in there
        with its error and raises nothing.

    Raises:
        UsageError: there are no such cases, or a result would replace an input.
        OutputError: the folder or its report cannot be written.
        KeyboardInterrupt: after the report was brought up to date.
    """
    output = Path(output)
    overlay = None if overlay is None else Path(overlay)
    jobs = plan_jobs(list_cases(cases), output, overlay)
    make_folder(output)
    if overlay is not None:
        make_folder(overlay)
    settings = Settings(
        litemed=litemed_version(),
        bundle=segmenter.bundle.name,
        bundle_sha256=segmenter.bundle.digest,
        engine=segmenter.engine.name,
        propagate=propagate,
    )
    report = ReportFile(output, settings, Environment.current(segmenter.engine))
    run = _Run(segmenter, settings, report, propagate, overwrite, observer or RunObserver())
    outcomes: dict[Job, CaseReport] = {}
    try:
        for wait in (False, True):  # first what no other process is at, then what is left
            for job in [job for job in jobs if job not in outcomes]:
                try:
                    with FolderLock(output, job.name, wait=wait) as lock:
                        run.observer.case_started(job.name, len(outcomes) + 1, len(jobs))
                        outcomes[job] = run.case(job, lock.abandoned)
                except LockedError:
                    continue
    finally:
        run.write_skipped()
    return tuple(outcomes[job] for job in jobs)


class _Run:
    """Runs one case after the other and keeps the report."""

    def __init__(
        self,
        segmenter: Segmenter,
        settings: Settings,
        report: ReportFile,
        propagate: bool,
        overwrite: bool,
        observer: RunObserver,
    ) -> None:
        self.observer = observer
        self._segmenter = segmenter
        self._settings_sha256 = settings.sha256
        self._report = report
        self._propagate = propagate
        self._overwrite = overwrite
        self._skipped: list[CaseReport] = []

    def case(self, job: Job, abandoned: bool) -> CaseReport:
        """Run one case, whose lock is held; report and return what became of it.

        ``abandoned`` says that a process was killed over it: a result without a record is that one's.
        """
        start = time.perf_counter()
        earlier = self._report.entries().get(job.name)
        outcome, failure, claimed = None, None, False
        try:
            try:
                if job.refusal is not None:
                    raise OutputError(job.refusal)
                inputs = _hash_inputs(job.path)
                if earlier and not self._overwrite and self._holds(job, inputs, earlier):
                    outcome = dataclasses.replace(earlier, status="skipped")
                else:
                    self._claim(job, earlier, abandoned)
                    claimed = True
                    outcome = self._segment(job, inputs, start)
            # Whatever goes wrong in one case, even by a fault of ours, is told and must not cost the others.
            except Exception as error:
                failure = error
                outcome = self._failed(job, earlier, claimed, _line(error, job.path))
            self._put(outcome)
        except KeyboardInterrupt:
            # What lies in the folder must be on record, or the next run takes it for somebody else's.
            self._put(outcome or self._failed(job, earlier, claimed, f"{job.path}: interrupted"))
            raise
        self.observer.case_finished(outcome, failure)
        return outcome

    def write_skipped(self) -> None:
        """Report the cases skipped since the last writing."""
        if self._skipped:
            self._report.put(self._skipped)
            self._skipped = []

    def _put(self, entry: CaseReport) -> None:
        """Report a case; skipped ones come in thousands and wait for the next that is not."""
        if entry.status == "skipped":
            self._skipped.append(entry)
        else:
            self._report.put([*self._skipped, entry])
            self._skipped = []

    def _claim(self, job: Job, earlier: CaseReport | None, abandoned: bool) -> None:
        """Make sure that whatever lies where the results go is ours to replace."""
        for path, record in (
            (job.target, earlier and earlier.output),
            (job.picture, earlier and earlier.overlay),
        ):
            if path is None:
                continue
            remove_leftovers(path)
            refuse_odd_target(path)
            if path.exists() and record is None and not abandoned and not self._overwrite:
                raise OutputError(
                    f"{path}: exists, and no earlier run wrote it; move it away or give --overwrite"
                )

    def _segment(self, job: Job, inputs: tuple[FileRecord, ...], start: float) -> CaseReport:
        """Read, segment and write; ``start`` is when work on the case began."""
        case = read_case(job.path)
        read = time.perf_counter()
        result = self._segmenter.run(case, propagate=self._propagate, progress=self.observer.slices_done)
        segmented = time.perf_counter()
        with atomic_write(job.target) as file:
            write_npz(file, {"segs": result.labels})
        overlay = None
        if job.picture is not None:
            with atomic_write(job.picture, durable=False) as file:
                file.write(encode_png(draw_case(case, result.labels)))
            overlay = _record(job.picture)
        output = _record(job.target)
        end = time.perf_counter()
        return CaseReport(
            case=job.name,
            status="done",
            warnings=_warnings(case.boxes),
            seconds=Seconds(
                read=read - start,
                preprocess=result.timings.preprocess,
                encode=result.timings.encode,
                decode=result.timings.decode,
                merge=result.timings.merge,
                write=end - segmented,
                total=end - start,
            ),
            slices=result.slices_encoded,
            boxes=result.boxes_decoded,
            inputs=inputs,
            settings_sha256=self._settings_sha256,
            output=output,
            overlay=overlay,
        )

    def _holds(self, job: Job, inputs: tuple[FileRecord, ...], earlier: CaseReport) -> bool:
        """Return whether the earlier result is what running the case again would give."""
        return (
            earlier.status in ("done", "skipped")
            and earlier.settings_sha256 == self._settings_sha256
            and [file.sha256 for file in earlier.inputs] == [file.sha256 for file in inputs]
            and _is(job.target, earlier.output)
            and (job.picture is None or _is(job.picture, earlier.overlay))
        )

    def _failed(self, job: Job, earlier: CaseReport | None, claimed: bool, line: str) -> CaseReport:
        """Report a failure, and what of ours lies where the results go, be it an earlier run's."""
        output, overlay = (earlier.output, earlier.overlay) if earlier else (None, None)
        if claimed:
            output = _record(job.target) if job.target.exists() else None
            overlay = _record(job.picture) if job.picture and job.picture.exists() else overlay
        return CaseReport(
            case=job.name,
            status="failed",
            error=line,
            settings_sha256=self._settings_sha256,
            output=output,
            overlay=overlay,
        )


def _hash_inputs(path: Path) -> tuple[FileRecord, ...]:
    """Hash the files of a case; one that is absent is left to the reader to complain about."""
    try:
        return tuple(
            FileRecord(str(file), sha256_of_file(file)) for file in case_files(path) if file.exists()
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _record(path: Path) -> FileRecord:
    return FileRecord(path.name, sha256_of_file(path))


def _is(path: Path, record: FileRecord | None) -> bool:
    """Return whether a plain file lies at ``path`` that is the one on record."""
    return record is not None and path.is_file() and not path.is_symlink() and _record(path) == record


def _warnings(boxes: Boxes) -> tuple[str, ...]:
    if not boxes.clipped:
        return ()
    numbers = ", ".join(map(str, boxes.clipped[:_LISTED])) + (", ..." if len(boxes.clipped) > _LISTED else "")
    return (f"{len(boxes.clipped)} of {len(boxes)} boxes reach out of the image and were clipped: {numbers}",)


def _line(error: Exception, path: Path) -> str:
    """Return one printable line that names the case and says what happened."""
    if isinstance(error, LitemedError):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = "there is not enough memory for this case"
    else:
        text = f"unexpected {type(error).__name__}: {error}; please report it, --debug shows where"
    if str(path) not in text:
        text = f"{path}: {text}"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
