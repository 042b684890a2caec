"""Run many cases into one output folder: each on its own, resumable, reported.

One case's failure leaves the others alone. A case is skipped if an earlier run into the same folder finished
it and the hashes of its input files, of the settings (the bundle's among them) and of its result still hold;
otherwise it is run, and its result replaced. What no run of litemed wrote is not replaced unless asked.
Several processes may work on one folder: they share the cases.

While the network is at one case the next is read and the last one's result compressed and written, one case
ahead and one behind at most (see `litemed.runtime.pipeline`). The seconds reported of a case are those of its
own steps, not those for which it waited while another case was at work.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from litemed.runtime.boxes import Boxes
from litemed.runtime.case import Case
from litemed.runtime.errors import InputError, LitemedError, OutputError, printable
from litemed.runtime.files import (
    atomic_write,
    make_folder,
    refuse_odd_target,
    remove_leftovers,
    sha256_of_file,
)
from litemed.runtime.jobs import Job, plan_jobs
from litemed.runtime.nesting import merge_rule
from litemed.runtime.npz import write_npz
from litemed.runtime.overlay import draw_case, encode_png
from litemed.runtime.pipeline import Pipeline, RunObserver
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
    from litemed.runtime.segmenter import Result, Segmenter

__all__ = ["RunObserver", "run_cases"]

_LISTED = 10


def run_cases(
    cases: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    segmenter: Segmenter,
    *,
    merge: str | None = None,
    propagate: bool = False,
    crop_masks: bool = False,
    overlay: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    observer: RunObserver | None = None,
) -> tuple[CaseReport, ...]:
    """Segment cases into a folder: NAME.npz with ``segs``, `report.json` and `efficiency.csv`.

    Args:
        cases: files and folders, as :func:`litemed.runtime.readers.list_cases` takes them.
        output: folder of the results; made if need be.
        segmenter: from :func:`litemed.runtime.load`.
        merge: "nested" or "argmax", see :mod:`litemed.runtime.nesting`; None: nested, or with ``propagate``
            neither.
        propagate: segment volumes from each box's middle slice outwards, as the published baseline does.
        crop_masks: whether masks end at their boxes.
        overlay: folder for a picture NAME.png of each result; made if need be.
        overwrite: run every case, and replace files that no earlier run wrote.
        observer: is told how the run goes on.

    Returns:
        What became of each case of this run, in the order of the cases. A case that failed is in there
        with its error and raises nothing.

    Raises:
        UsageError: there are no such cases, a result would replace an input, or ``merge`` is unknown or given
            beside ``propagate``.
        OutputError: the folder or its report cannot be written.
        EngineError: the engine does not accept the bundle's graphs.
        KeyboardInterrupt: after the report was brought up to date.
    """
    rule = merge_rule(merge, propagate)
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
        precision=segmenter.engine.precision,
        propagate=propagate,
        crop_masks=crop_masks,
        merge=rule,
    )
    report = ReportFile(output, settings, Environment.current(segmenter.engine), overwrite)
    steps = CaseSteps(segmenter, settings, report, overwrite)
    with Pipeline(output, steps, observer or RunObserver(), len(jobs)) as pipeline:
        for job in jobs:  # first what no other process is at
            pipeline.add(job, wait=False)
        pipeline.drain()
        for job in [job for job in jobs if job not in pipeline.outcomes]:  # then what is left
            pipeline.add(job, wait=True)
            pipeline.drain()
        return tuple(pipeline.outcomes[job] for job in jobs)


@dataclass(frozen=True)
class Begun:
    """What came of beginning a case.

    Attributes:
        job: the case and where its results go.
        earlier: what the report said of it.
        inputs: its files.
        claimed: whether what lies where the results go is ours to replace.
        case: what was read; None if it is skipped or failed, or no longer needed.
        warnings: about what was read.
        outcome: skipped or failed, if that is settled already.
        error: what it failed of.
        seconds: how long hashing and reading took.
    """

    job: Job
    earlier: CaseReport | None = None
    inputs: tuple[FileRecord, ...] = ()
    claimed: bool = False
    case: Case | None = None
    warnings: tuple[str, ...] = ()
    outcome: CaseReport | None = None
    error: Exception | None = None
    seconds: float = 0.0


class CaseSteps:
    """The three steps of a case, each in its own thread, and the report that they keep."""

    def __init__(
        self,
        segmenter: Segmenter,
        settings: Settings,
        report: ReportFile,
        overwrite: bool,
    ) -> None:
        self._segmenter = segmenter
        self._settings = settings
        self._report = report
        self._overwrite = overwrite
        self._skipped: list[CaseReport] = []

    def begin(self, job: Job, abandoned: bool) -> Begun:
        """Hash and read a case, whose lock is held, unless an earlier result holds.

        ``abandoned`` says that a process was killed over it: a result without a record is that one's.
        """
        start = time.perf_counter()
        begun = Begun(job)
        try:
            begun = dataclasses.replace(begun, earlier=self._report.entries().get(job.name))
            if job.refusal is not None:
                raise OutputError(job.refusal)
            begun = dataclasses.replace(begun, inputs=_hash_inputs(job.path))
            if begun.earlier and not self._overwrite and self._holds(job, begun.inputs, begun.earlier):
                return dataclasses.replace(
                    begun, outcome=dataclasses.replace(begun.earlier, status="skipped")
                )
            self._claim(job, begun.earlier, abandoned)
            begun = dataclasses.replace(begun, claimed=True)
            case = read_case(job.path)
            seconds = time.perf_counter() - start
            return dataclasses.replace(begun, case=case, warnings=_warnings(case.boxes), seconds=seconds)
        # Whatever goes wrong in one case, even by a fault of ours, is told and must not cost the others.
        except Exception as error:
            return dataclasses.replace(begun, outcome=self._failed(begun, error), error=error)

    def segment(
        self, begun: Begun, progress: Callable[[int, int], None], last: bool
    ) -> tuple[Begun, Result | Exception]:
        """Return the result of a case that was read, or what it failed of; `last` if none comes after it.

        With it comes what is left of the case: without the image, unless a picture is to be drawn of it.

        Raises:
            EngineError: the engine accepts no case, for it does not accept the bundle's graphs.
        """
        self._segmenter.engine.ready()
        rest = begun if begun.job.picture else dataclasses.replace(begun, case=None)
        try:
            case = cast(Case, begun.case)
            result = self._segmenter.run(
                case,
                merge=self._settings.merge,
                propagate=self._settings.propagate,
                crop_masks=self._settings.crop_masks,
                progress=progress,
                last=last,
            )
            return rest, result
        except Exception as error:  # as above
            return rest, error

    def finish(self, begun: Begun, result: Result | Exception | None) -> tuple[CaseReport, Exception | None]:
        """Write the result of a case, if there is one, and report it; return what became of it and why."""
        outcome, error = begun.outcome, begun.error
        try:
            try:
                if isinstance(result, Exception):
                    raise result
                if result is not None:
                    outcome = self._write(begun, result)
            except Exception as raised:  # as above
                outcome, error = self._failed(begun, raised), raised
            outcome = outcome or self._failed(begun, None)
            self._put(outcome)
        except KeyboardInterrupt:
            # What lies in the folder must be on record, or the next run takes it for somebody else's.
            self._put(outcome or self._failed(begun, None))
            raise
        return outcome, error

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
        recorded = earlier is not None and earlier.output is not None
        # Pictures may go to another folder than last time, so that one is ours only if it is that very file.
        drawn = job.picture is not None and _is(job.picture, earlier.overlay if earlier else None)
        for path, ours in ((job.target, recorded), (job.picture, drawn)):
            if path is None:
                continue
            remove_leftovers(path)
            refuse_odd_target(path)
            if path.exists() and not (ours or abandoned or self._overwrite):
                raise OutputError(
                    f"{path}: exists, and no earlier run wrote it; move it away or give --overwrite"
                )

    def _write(self, begun: Begun, result: Result) -> CaseReport:
        start = time.perf_counter()
        job = begun.job
        with atomic_write(job.target) as file:
            write_npz(file, {"segs": result.labels})
        overlay = None
        if job.picture is not None:
            with atomic_write(job.picture, durable=False) as file:
                file.write(encode_png(draw_case(cast(Case, begun.case), result.labels)))
            overlay = _record(job.picture)
        output = _record(job.target)
        seconds = {
            "read": begun.seconds,
            **dataclasses.asdict(result.timings),
            "write": time.perf_counter() - start,
        }
        return CaseReport(
            case=job.name,
            status="done",
            warnings=begun.warnings,
            seconds=Seconds(**seconds, total=sum(seconds.values())),
            slices=result.slices_encoded,
            boxes=result.boxes_decoded,
            inputs=begun.inputs,
            settings_sha256=self._settings.sha256,
            output=output,
            overlay=overlay,
        )

    def _holds(self, job: Job, inputs: tuple[FileRecord, ...], earlier: CaseReport) -> bool:
        """Return whether the earlier result is what running the case again would give."""
        return (
            earlier.status in ("done", "skipped")
            and earlier.settings_sha256 == self._settings.sha256
            and [file.sha256 for file in earlier.inputs] == [file.sha256 for file in inputs]
            and _is(job.target, earlier.output)
            and (job.picture is None or _is(job.picture, earlier.overlay))
        )

    def _failed(self, begun: Begun, error: Exception | None) -> CaseReport:
        """Report a failure, or an interruption, and what of ours lies where the results go."""
        job, earlier = begun.job, begun.earlier
        output, overlay = (earlier.output, earlier.overlay) if earlier else (None, None)
        if begun.claimed:
            output = _record(job.target) if job.target.exists() else None
            overlay = _record(job.picture) if job.picture and job.picture.exists() else overlay
        return CaseReport(
            case=job.name,
            status="failed",
            error=f"{job.path}: interrupted" if error is None else _line(error, job.path),
            settings_sha256=self._settings.sha256,
            output=output,
            overlay=overlay,
        )


def _hash_inputs(path: Path) -> tuple[FileRecord, ...]:
    """Hash the files of a case; one that is absent, or no file, is left to the reader to complain about."""
    try:
        return tuple(
            FileRecord(str(file), sha256_of_file(file)) for file in case_files(path) if file.is_file()
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
    return printable(text)
