"""Score cases: every run and every trivial predictor against one ground truth."""

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from litemed.benchmarks.evaluate.label_maps import SUFFIXES, LabelFile, read_labels
from litemed.benchmarks.evaluate.metrics import ClassScore, LabelMap, score_classes
from litemed.benchmarks.evaluate.predictors import Trivial, predict
from litemed.runtime.case import spacing_doubt
from litemed.runtime.dice import dice_by_label
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.inputs.cases import read_case
from litemed.runtime.inputs.files import case_name
from litemed.runtime.modalities import modality_of_name


@dataclass(frozen=True)
class CaseScore:
    """The score of one run on one case: DSC and NSD, both in [0, 1], and those of its classes.

    `problem` is one line that says why there was no usable prediction, which counts as 0; else it is empty.
    """

    run: str
    classes: tuple[ClassScore, ...]
    problem: str = ""

    @property
    def dsc(self) -> float:
        """Mean over the classes."""
        return statistics.fmean(score.dsc for score in self.classes)

    @property
    def nsd(self) -> float:
        """Mean over the classes."""
        return statistics.fmean(score.nsd for score in self.classes)


@dataclass(frozen=True)
class CaseResult:
    """All scores of one case, in the order of the runs; or none, and one line that says why.

    dimensions: 2 of a slice or image, 3 of a volume, 0 if that is not known. note: one line on a spacing that
    is doubtful, or empty.
    """

    case: str
    modality: str
    dimensions: int
    scores: tuple[CaseScore, ...]
    problem: str = ""
    note: str = ""

    @property
    def problems(self) -> list[str]:
        """What went wrong, one line each."""
        return [line for line in (self.problem, *(score.problem for score in self.scores)) if line]


def find_cases(truths: Path, runs: Mapping[str, Path], sources: Path | None = None) -> list[tuple[Path, str]]:
    """Return every case of a ground-truth folder: its file and its modality, which its name begins with.

    `sources` is the folder of the cases themselves. Raises UsageError where a folder lacks cases.
    """
    files = [path for path in sorted(truths.glob("[!.]*")) if path.name.lower().endswith(SUFFIXES)]
    found = {path: modality_of_name(case_name(path)) for path in files if path.is_file()}
    if not found:
        raise UsageError(f"{truths}: no {', '.join(SUFFIXES)} file; give the folder of the ground truth")
    twice = [name for name, count in Counter(map(case_name, found)).items() if count > 1]
    if twice:
        raise UsageError(f"{truths}: has {twice[0]} as several kinds of files; leave one")
    for folder in runs.values():
        if not any(find_predictions(folder, case_name(path)) for path in found):
            raise UsageError(f"{folder}: has none of the {len(found)} cases of {truths}; names must be equal")
    if unknown := [path for path, modality in found.items() if modality is None]:
        raise UsageError(f"{unknown[0]}: no modality known; name the files like 2DBox_US_0525")
    if sources and (missing := [case_name(path) for path in found if not (sources / path.name).is_file()]):
        raise UsageError(f"{sources}: lacks {len(missing)} case(s), as {missing[0]}, which --trivial needs")
    return [(path, modality) for path, modality in found.items() if modality is not None]


def find_predictions(folder: Path, name: str) -> list[Path]:
    """Return the label maps of a case in a folder: one, unless runs of other options went into it, too."""
    files = (folder / f"{name}{suffix}" for suffix in SUFFIXES)
    return [path for path in files if path.is_file()]


def score_case(case: tuple[Path, str], runs: Mapping[str, Path], sources: Path | None = None) -> CaseResult:
    """Score every run on one case, and with `sources`, a folder of the cases, every trivial predictor.

    A prediction that is missing or cannot be used counts as zero, so that no run gains by leaving a hard case
    out. A ground truth or case file that cannot be used is nobody's fault: the case is left out for all.
    """
    file, modality = case
    name = case_name(file)
    try:
        true = read_truth(file)
        truth, spacing = true.labels, true.spacing
        source = read_case(sources / file.name) if sources is not None else None
        if source is not None and source.shape != truth.shape:
            raise InputError(
                f"{sources}/{file.name}: image of {source.shape}, but the ground truth has {truth.shape}"
            )
    except InputError as error:
        return CaseResult(name, modality, 0, (), str(error))

    def score_run(run: str, folder: Path) -> CaseScore:
        try:
            files = find_predictions(folder, name)
            if len(files) != 1:
                what = "no prediction" if not files else f"and {files[1].name}: two predictions; leave one"
                raise InputError(f"{files[0] if files else folder / file.name}: {what}")
            read = read_labels(files[0], "segs")
            read.refuse_other(true)
            labels = read.labels
            found = _values(labels)
            if found.size and not np.isin(found, wanted).any():
                has = f"has no label of the ground truth, but {_some(found)} for {_some(wanted)}"
                raise InputError(f"{files[0]}: {has}")
        except InputError as error:
            nothing = score_classes(truth, np.zeros_like(truth), spacing)
            return CaseScore(run, nothing, f"{error}; the case counts as 0")
        return CaseScore(run, score_classes(truth, labels, spacing))

    wanted = _values(truth)
    scores = [score_run(run, folder) for run, folder in runs.items()]
    if source is not None:
        # The cases are what is done in parallel.
        cv2.setNumThreads(1)
        for predictor in Trivial:
            scores.append(CaseScore(predictor, score_classes(truth, predict(source, predictor), spacing)))
    doubt = spacing_doubt(spacing)
    note = f"{file}: {doubt}; NSD depends on it" if doubt else ""
    return CaseResult(name, modality, truth.ndim, tuple(scores), note=note)


def read_truth(path: Path) -> LabelFile:
    """Read a ground truth, of an npz `gts`: at least one label above 0, with the spacing of a volume."""
    truth = read_labels(path, "gts")
    if not truth.labels.any():
        raise InputError(f"{path}: no label above 0, nothing to score; leave the case out")
    if truth.labels.ndim == 3 and truth.spacing is None:
        raise InputError(f"{path}: a volume without `spacing`, which NSD in mm needs; add it")
    return truth


def _values(labels: LabelMap) -> LabelMap:
    """Return the labels above 0, ascending."""
    return np.flatnonzero(dice_by_label(labels, labels, int(labels.max(initial=0))) == 1) + 1


def _some(values: LabelMap) -> str:
    return ", ".join(map(str, values[:3].tolist())) + (", ..." if len(values) > 3 else "")
