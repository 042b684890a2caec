"""Run many cases into one output folder: each on its own, resumable, reported.

One case's failure leaves the others alone. A case is skipped if an earlier run into the same folder finished
it and the hashes of its input files, of the settings (the bundle's among them) and of its result still hold;
otherwise it is run, and its result replaced. What no run of litemed wrote is not replaced unless asked.
Several processes may work on one folder: they share the cases.

The cases overlap (see `litemed.runtime.pipeline`); the seconds reported of a case are those of its own steps,
not those for which it waited while another case was at work.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from litemed.runtime.errors import OutputError
from litemed.runtime.files import make_folder
from litemed.runtime.jobs import plan_jobs
from litemed.runtime.nesting import merge_rule
from litemed.runtime.pipeline import Pipeline, RunObserver
from litemed.runtime.readers import list_cases
from litemed.runtime.report import CaseReport, Environment, Settings, litemed_version
from litemed.runtime.report_files import ReportFile
from litemed.runtime.steps import CaseSteps

if TYPE_CHECKING:
    from litemed.runtime.segmenter import Segmenter

__all__ = ["RunObserver", "run_cases"]


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
        cases: files and folders, as `litemed.runtime.readers.list_cases` takes them.
        output: folder of the results; made if need be.
        segmenter: from `litemed.runtime.load`.
        merge: "nested" or "argmax", see `litemed.runtime.nesting`; None: nested, or with ``propagate``
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
    try:
        with Pipeline(output, steps, observer or RunObserver()) as pipeline:
            outcomes = pipeline.run(jobs)
    except BaseException:
        with contextlib.suppress(OutputError):  # the log has it all, and the first error is the one to tell
            report.summarise()
        raise
    report.summarise()
    return outcomes
