"""Score one case: every run and every trivial predictor against one ground truth."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import cv2

from litemed.benchmarks.evaluate.cases import EvaluatedCase, Run, read_prediction, read_truth
from litemed.benchmarks.evaluate.metrics import ClassScore, LabelMap, NsdRule, score_classes
from litemed.benchmarks.evaluate.predictors import Trivial, predict
from litemed.runtime.errors import InputError


class Status(enum.StrEnum):
    """What became of a run's prediction of a case; all but SCORED count as DSC 0 and NSD 0."""

    SCORED = "scored"
    MISSING = "missing"
    BAD = "bad"


@dataclass(frozen=True)
class Settings:
    """How to score.

    Attributes:
        tolerance: of NSD, in mm (3D) or pixels (2D).
        rule: how NSD is measured, see `litemed.benchmarks.evaluate.metrics`.
        trivial: trivial predictors to score beside the runs.
    """

    tolerance: float = 2.0
    rule: NsdRule = NsdRule.CHALLENGE
    trivial: tuple[Trivial, ...] = ()


@dataclass(frozen=True)
class CaseScore:
    """The score of one run on one case.

    Attributes:
        case: name of the case.
        modality: of the case.
        run: name of the run or of the trivial predictor.
        dsc: mean over the classes, in [0, 1].
        nsd: mean over the classes, in [0, 1].
        classes: the scores of the classes, in the order of the labels; empty unless the status is SCORED.
        status: whether there was a usable prediction.
        problem: one line that says what was wrong; empty where the status is SCORED.
    """

    case: str
    modality: str
    run: str
    dsc: float
    nsd: float
    classes: tuple[ClassScore, ...]
    status: Status
    problem: str = ""


@dataclass(frozen=True)
class CaseResult:
    """All scores of one case, in the order of the runs; or none, and one line that says why."""

    case: str
    scores: tuple[CaseScore, ...]
    problem: str = ""


def score_case(case: EvaluatedCase, runs: Sequence[Run], settings: Settings) -> CaseResult:
    """Score every run and trivial predictor on one case.

    A prediction that is missing or cannot be used counts as zero, so that no run gains by leaving a hard case
    out. A ground truth (or, with trivial predictors, a case file) that cannot be used is nobody's fault: the
    case is left out for all.
    """
    try:
        truth = read_truth(case.truth)
        if truth.labels.ndim == 3 and truth.spacing is None:
            raise InputError(f"{case.truth}: a volume without `spacing`, which NSD in mm needs; add it")
        if not truth.labels.any():
            raise InputError(f"{case.truth}: no label above 0, nothing to score; leave the case out")
        # First, because a case file that does not fit leaves the whole case out.
        trivial = _trivial_scores(case, truth.labels, truth.spacing, settings)
    except InputError as error:
        return CaseResult(case.name, (), str(error))
    scores = [_score_run(case, run, truth.labels, truth.spacing, settings) for run in runs]
    return CaseResult(case.name, (*scores, *trivial))


def _trivial_scores(
    case: EvaluatedCase, truth: LabelMap, spacing: tuple[float, ...] | None, settings: Settings
) -> list[CaseScore]:
    if not settings.trivial or case.source is None:
        return []
    from litemed.runtime.readers import read_case

    source = read_case(case.source)
    if source.shape != truth.shape:
        raise InputError(f"{case.source}: image of {source.shape}, but the ground truth has {truth.shape}")
    # The cases are what is done in parallel.
    cv2.setNumThreads(1)
    return [
        _scored(case, predictor, score_classes_of(truth, predict(source, predictor), spacing, settings))
        for predictor in settings.trivial
    ]


def _score_run(
    case: EvaluatedCase, run: Run, truth: LabelMap, spacing: tuple[float, ...] | None, settings: Settings
) -> CaseScore:
    path = run.folder / f"{case.name}.npz"
    if not path.is_file():
        return _zero(case, run.name, Status.MISSING, f"{path}: no prediction; the case counts as 0")
    try:
        prediction = read_prediction(path)
        if prediction.shape != truth.shape:
            raise InputError(f"{path}: segs has shape {prediction.shape}, the ground truth {truth.shape}")
        return _scored(case, run.name, score_classes_of(truth, prediction, spacing, settings))
    except InputError as error:
        return _zero(case, run.name, Status.BAD, f"{error}; the case counts as 0")


def score_classes_of(
    truth: LabelMap, prediction: LabelMap, spacing: tuple[float, ...] | None, settings: Settings
) -> tuple[ClassScore, ...]:
    """Return `score_classes` with the tolerance and the rule of `settings`."""
    return score_classes(truth, prediction, spacing, tolerance=settings.tolerance, rule=settings.rule)


def _scored(case: EvaluatedCase, run: str, classes: tuple[ClassScore, ...]) -> CaseScore:
    return CaseScore(
        case=case.name,
        modality=case.modality,
        run=str(run),
        dsc=statistics.fmean(score.dsc for score in classes),
        nsd=statistics.fmean(score.nsd for score in classes),
        classes=classes,
        status=Status.SCORED,
    )


def _zero(case: EvaluatedCase, run: str, status: Status, problem: str) -> CaseScore:
    return CaseScore(case.name, case.modality, run, 0.0, 0.0, (), status, problem)
