"""Score cases: every run and every trivial predictor against one ground truth."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2

from litemed.benchmarks.evaluate.cases import EvaluatedCase, Run, read_prediction, read_truth
from litemed.benchmarks.evaluate.metrics import ClassScore, score_classes
from litemed.benchmarks.evaluate.predictors import Trivial, predict
from litemed.runtime.errors import InputError
from litemed.runtime.readers import read_case
from litemed.train.prepare.pool import map_in_order

Status = Literal["scored", "missing", "bad"]


@dataclass(frozen=True)
class CaseScore:
    """The score of one run on one case.

    Attributes:
        run: name of the run or of the trivial predictor.
        classes: the scores of the classes, in the order of the labels; none unless `scored`.
        status: whether there was a usable prediction; where there was none DSC and NSD are 0.
        problem: one line that says what was wrong; empty where there was nothing.
    """

    run: str
    classes: tuple[ClassScore, ...]
    status: Status = "scored"
    problem: str = ""

    @property
    def dsc(self) -> float:
        """Mean over the classes, in [0, 1]."""
        return statistics.fmean(score.dsc for score in self.classes) if self.classes else 0.0

    @property
    def nsd(self) -> float:
        """Mean over the classes, in [0, 1]."""
        return statistics.fmean(score.nsd for score in self.classes) if self.classes else 0.0


@dataclass(frozen=True)
class CaseResult:
    """All scores of one case, in the order of the runs; or none, and one line that says why."""

    case: str
    modality: str
    scores: tuple[CaseScore, ...]
    problem: str = ""

    @property
    def problems(self) -> list[tuple[str | None, str]]:
        """What went wrong: the run, or None for the case itself, and a line."""
        found = [(None, self.problem), *((score.run, score.problem) for score in self.scores)]
        return [(run, line) for run, line in found if line]


def evaluate(
    cases: Sequence[EvaluatedCase],
    runs: Sequence[Run],
    trivial: Sequence[Trivial] = (),
    *,
    tolerance: float = 2.0,
    workers: int = 1,
) -> Iterator[CaseResult]:
    """Yield the scores of every case, in their order.

    Args:
        cases: as `find_cases` returns them.
        runs: the predictions, in the order of the tables' columns.
        trivial: predictors to score beside them.
        tolerance: of NSD, in mm (3D) or pixels (2D).
        workers: processes; each holds one case at a time. 1 stays in this process.

    Raises:
        LitemedError: a process was killed, most likely for want of memory.
    """
    score = functools.partial(score_case, runs=runs, trivial=trivial, tolerance=tolerance)
    return map_in_order(score, cases, workers)


def score_case(
    case: EvaluatedCase, runs: Sequence[Run], trivial: Sequence[Trivial] = (), tolerance: float = 2.0
) -> CaseResult:
    """Score every run and trivial predictor on one case.

    A prediction that is missing or cannot be used counts as zero, so that no run gains by leaving a hard case
    out. A ground truth (or, with trivial predictors, a case file) that cannot be used is nobody's fault: the
    case is left out for all.
    """
    try:
        truth, spacing = read_truth(case.truth)
        # First, because a case file that does not fit leaves the whole case out.
        source = read_case(case.source) if trivial and case.source is not None else None
        if source is not None and source.shape != truth.shape:
            raise InputError(
                f"{case.source}: image of {source.shape}, but the ground truth has {truth.shape}"
            )
    except InputError as error:
        return CaseResult(case.name, case.modality, (), str(error))

    def score_run(run: Run) -> CaseScore:
        path = run.folder / f"{case.name}.npz"
        if not path.is_file():
            return CaseScore(run.name, (), "missing", f"{path}: no prediction; the case counts as 0")
        try:
            labels = read_prediction(path)
            if labels.shape != truth.shape:
                raise InputError(f"{path}: segs has shape {labels.shape}, the ground truth {truth.shape}")
        except InputError as error:
            return CaseScore(run.name, (), "bad", f"{error}; the case counts as 0")
        return CaseScore(run.name, score_classes(truth, labels, spacing, tolerance))

    scores = [score_run(run) for run in runs]
    if source is not None:
        # The cases are what is done in parallel.
        cv2.setNumThreads(1)
        for name in trivial:
            classes = score_classes(truth, predict(source, name), spacing, tolerance)
            scores.append(CaseScore(name.value, classes))
    return CaseResult(case.name, case.modality, tuple(scores))
