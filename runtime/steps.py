"""The three steps of a case of a run: begin (hash and read), segment, finish (write and report)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from litemed.runtime.case import Case, spacing_doubt
from litemed.runtime.errors import InputError, LitemedError, OutputError, printable
from litemed.runtime.files import (
    atomic_write,
    make_folder,
    refuse_odd_target,
    remove_leftovers,
    sha256_of_file,
)
from litemed.runtime.inputs.cases import case_files, read_case
from litemed.runtime.inputs.dicom import Dicom
from litemed.runtime.jobs import Job
from litemed.runtime.outputs.label_files import write_labels
from litemed.runtime.outputs.objects import ObjectStatistics
from litemed.runtime.outputs.overlay import draw_case, encode_png
from litemed.runtime.report import CaseReport, FileRecord, Settings
from litemed.runtime.report_files import ReportFile

if TYPE_CHECKING:
    from litemed.runtime.inputs.nifti import Nifti
    from litemed.runtime.inputs.raster import Raster
    from litemed.runtime.prompts.source import BoxSource
    from litemed.runtime.segmenter import Result, Segmenter

_LISTED = 10


@dataclass(frozen=True)
class Begun:
    """What came of beginning a case.

    Attributes:
        job: the case and where its results go.
        earlier: what the report said of it.
        inputs: its files.
        case: what was read; None if the outcome is settled, or it is no longer needed.
        warnings: about what was read.
        seconds: how long hashing and reading took.
        intensity: by which rule the case's grey levels were made.
        origin: in whose geometry the label map is written; None: as npz.
        outcome: skipped or failed, if that is settled already.
        objects: what was measured of each, once they are segmented.
        error: what it failed of.
    """

    job: Job
    earlier: CaseReport | None = None
    inputs: tuple[FileRecord, ...] = ()
    case: Case | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    intensity: str = ""
    origin: Nifti | Raster | Dicom | None = None
    outcome: CaseReport | None = None
    error: Exception | None = None
    objects: tuple[ObjectStatistics, ...] = ()


class CaseSteps:
    """The steps of each case of a run, and the report that they keep.

    Whatever goes wrong in one case, even by a fault of ours, is reported and costs none of the others.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        settings: Settings,
        report: ReportFile,
        overwrite: bool,
        prompts: BoxSource | None = None,
        guard: Callable[[Path], None] | None = None,
    ) -> None:
        """Use a segmenter; `guard` raises InputError for a case that is not to be read."""
        self._segmenter, self._prompts, self._guard = segmenter, prompts, guard
        self._settings, self._report, self._overwrite = settings, report, overwrite

    def begin(self, job: Job, abandoned: bool) -> Begun:
        """Hash and read a case, whose lock is held, unless an earlier result holds.

        `abandoned` says that a process was killed while it wrote the result: what lies there is ours.
        """
        start = time.perf_counter()
        earlier = None
        try:
            earlier = self._report.get(job.name)
            if job.refusal is not None:
                raise OutputError(job.refusal)
            if abandoned:
                for path in job.results:
                    remove_leftovers(path)
            inputs = _hash_inputs(job.path, self._prompts)
            if earlier and not self._overwrite and self._holds(job, inputs, earlier):
                return Begun(job, outcome=dataclasses.replace(earlier, status="skipped"))
            if abandoned:
                earlier = self._failure(job, KeyboardInterrupt(), _present(job.target), _present(job.picture))
                self._report.put(earlier)
            self._claim(job, earlier)
            if self._guard is not None:
                self._guard(job.path)
            case = read_case(job.path, self._settings.scaling, self._prompts)
            seconds, found = time.perf_counter() - start, (case.intensity, case.origin)
            return Begun(job, earlier, inputs, case, case_warnings(case), seconds, *found)
        except Exception as error:
            return Begun(job, earlier, outcome=self._kept(job, earlier, error), error=error)

    def segment(
        self, begun: Begun, case: Case, progress: Callable[[int, int], None], last: bool
    ) -> tuple[Begun, Result | Exception]:
        """Return a case with its objects measured, and its result or what it failed of.

        `last` if none comes after it.

        Raises:
            EngineError: the engine accepts no case, for it does not accept the bundle's graphs.
        """
        self._segmenter.engine.ready()
        try:
            result = self._segmenter.run(case, self._settings.method, progress=progress, last=last)
            # Here, not where it is written: values that are read again are gone before the next case is read.
            start = time.perf_counter()
            begun = dataclasses.replace(begun, objects=result.objects(case))
            result.seconds["measure"] = time.perf_counter() - start
            return begun, result
        except Exception as error:
            return begun, error

    def finish(
        self, begun: Begun, result: Result | BaseException | None
    ) -> tuple[CaseReport, Exception | None]:
        """Write the result of a case, if there is one, and report it; return what became of it and why."""
        job, outcome, error = begun.job, cast(CaseReport, begun.outcome), begun.error
        if isinstance(result, BaseException):
            outcome = self._kept(job, begun.earlier, result)
            error = result if isinstance(result, Exception) else None
        elif result is not None:
            try:
                outcome = self._write(begun, result)
            except Exception as raised:
                # Some of it may have been written, and is ours to replace.
                outcome = self._failure(job, raised, _present(job.target), _present(job.picture))
                error = raised
        self._report.put(outcome)
        return outcome, error

    def _claim(self, job: Job, earlier: CaseReport | None) -> None:
        """Make sure that whatever lies where the results go is ours to replace."""
        output = earlier.output if earlier else None
        recorded = output is not None and output.path == job.target.name  # not as another kind of file
        # Pictures may go to another folder than last time, so that one is ours only if it is that very file.
        drawn = job.picture is not None and _is(job.picture, earlier.overlay if earlier else None)
        for path, ours in zip(job.results, (recorded, drawn), strict=False):
            refuse_odd_target(path)
            if path.exists() and not (ours or self._overwrite):
                raise OutputError(
                    f"{path}: exists, and no earlier run wrote it; move it away or give --overwrite"
                )

    def _write(self, begun: Begun, result: Result) -> CaseReport:
        start = time.perf_counter()
        job = begun.job
        for path in job.results:
            make_folder(path.parent)
        with atomic_write(job.target) as file:
            write_labels(file, job.target.suffix, result.labels, result.boxes, begun.origin)
        if job.picture is not None and begun.case is not None:
            with atomic_write(job.picture, durable=False) as file:
                file.write(encode_png(draw_case(begun.case, result.labels)))
        output, overlay = _present(job.target), _present(job.picture)
        seconds = {"read": begun.seconds, **result.seconds, "write": time.perf_counter() - start}
        return CaseReport(
            case=job.name,
            status="done",
            warnings=(*begun.warnings, *untiled(result.untiled, result.boxes), *_empty(result)),
            seconds=seconds | {"total": sum(seconds.values())},
            intensity=begun.intensity,
            encodings=result.encodings,
            decodings=result.decodings,
            inputs=begun.inputs,
            settings_sha256=self._settings.sha256,
            output=output,
            overlay=overlay,
            objects=begun.objects,
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

    def _kept(self, job: Job, earlier: CaseReport | None, error: BaseException) -> CaseReport:
        """Report a failure before anything was written: an earlier result stays, and is still ours."""
        output, overlay = (earlier.output, earlier.overlay) if earlier else (None, None)
        return self._failure(job, error, output, overlay)

    def _failure(
        self, job: Job, error: BaseException, output: FileRecord | None, overlay: FileRecord | None
    ) -> CaseReport:
        return CaseReport(
            case=job.name,
            status="failed",
            error=_line(error, job.path),
            settings_sha256=self._settings.sha256,
            output=output,
            overlay=overlay,
        )


def _hash_inputs(path: Path, prompts: BoxSource | None) -> tuple[FileRecord, ...]:
    """Hash the files of a case, and the boxes that it is given from elsewhere.

    A file that is absent, or no file, is left to the reader to complain about.
    """
    files = case_files(path, own_boxes=prompts is None)
    given = () if prompts is None else (FileRecord(str(prompts.path), prompts.sha256(path)),)
    try:
        return *(FileRecord(str(file), sha256_of_file(file)) for file in files if file.is_file()), *given
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _present(path: Path | None) -> FileRecord | None:
    """Return the record of the plain file at a path, None if there is none."""
    if path is None or not path.is_file() or path.is_symlink():
        return None
    return FileRecord(path.name, sha256_of_file(path))


def _is(path: Path, record: FileRecord | None) -> bool:
    """Return whether a plain file lies at ``path`` that is the one on record."""
    return record is not None and _present(path) == record


def case_warnings(case: Case) -> tuple[str, ...]:
    """Return one line for each thing about a case that may not be meant."""
    lines = []
    if clipped := case.boxes.clipped:
        count = f"{len(clipped)} of {len(case.boxes)} boxes"
        lines.append(f"{count} reach out of the image and were clipped: {_listed(clipped)}")
    if doubt := spacing_doubt(case.spacing):
        lines.append(doubt)
    if isinstance(case.origin, Dicom) and case.origin.no_seg:
        lines.append(f"the label map is npz: {case.origin.no_seg}")
    if (low := case.image.min()) == case.image.max():
        lines.append(f"the image is {low} everywhere")
    return tuple(lines)


def untiled(count: int, boxes: int) -> tuple[str, ...]:
    """Return a line on small boxes for which there is no tile left."""
    return (f"{count} of {boxes} boxes are small and have no tile; see --max-zoom-tiles",) if count else ()


def _empty(result: Result) -> tuple[str, ...]:
    """Return a line on the boxes, numbered from 1, that no pixel has the label of."""
    labels, boxes = result.labels, result.boxes
    found = np.zeros(boxes + 1, np.bool_)
    for plane in labels:  # one by one, for indices take eight bytes each
        found[plane] = True
    empty = np.flatnonzero(~found[1:]) + 1
    return (f"{len(empty)} of {boxes} labels have no pixel: {_listed(empty.tolist())}",) if len(empty) else ()


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:_LISTED])) + (", ..." if len(numbers) > _LISTED else "")


def _line(error: BaseException, path: Path) -> str:
    """Return one printable line that names the case and says what happened."""
    if isinstance(error, LitemedError):
        text = str(error)
    elif isinstance(error, KeyboardInterrupt):
        text = "interrupted"
    elif isinstance(error, MemoryError):
        text = "there is not enough memory for this case"
    else:
        text = f"unexpected {type(error).__name__}: {error}; please report it, --debug shows where"
    if str(path) not in text:
        text = f"{path}: {text}"
    return printable(text)
