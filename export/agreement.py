"""How well the masks of a bundle's other precisions agree with those of float32, measured on real images.

Every case is segmented by every engine in float32 and in each precision, by the runtime's own code. The label
maps are compared box by box, with each other and, where there is one, with the ground truth; what is written
into the manifest are means over the cases of a modality. Whether they are good enough is judged by
`litemed.runtime.precision`.
"""

from __future__ import annotations

import collections
import pathlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.bundle import Bundle
from litemed.runtime.case import Case
from litemed.runtime.dice import dice_by_label
from litemed.runtime.engines import open_engine
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.modalities import modality_of_name
from litemed.runtime.npz import NpzReader
from litemed.runtime.precision import ENGINES, REFERENCE, Agreement, EngineAgreement, ModalityAgreement
from litemed.runtime.readers import list_cases, read_case
from litemed.runtime.segmenter import Segmenter

MIN_CASES = 10
"""Fewer say nothing about the images of others."""

MAX_LABEL = 65_535

Labels = NDArray[np.integer]
Found = tuple[str, float, float | None]
"""Of one case: its modality, Dice with float32's label map, and DSC minus float32's, if known."""


class MeasuredCase(NamedTuple):
    """A case to measure on: its file, its modality, and the file of its ground truth if it has one."""

    path: pathlib.Path
    modality: str
    truth: pathlib.Path | None


def find_measured_cases(folder: pathlib.Path, truths: pathlib.Path | None = None) -> list[MeasuredCase]:
    """Return the cases of a folder, as `litemed-run` reads them, named after their modality (2DBox_US_0525).

    `truths` is a folder of NAME.npz with `gts`, label i for box i; not every case needs one.

    Raises:
        UsageError: fewer than `MIN_CASES`, a name without a modality, or a ground truth for none of them.
    """
    cases = []
    for path in list_cases([folder]):
        modality = modality_of_name(path.stem)
        if modality is None:
            raise UsageError(f"{path}: no modality known; name the file like 2DBox_US_0525")
        truth = None if truths is None else truths / f"{path.stem}.npz"
        cases.append(MeasuredCase(path, modality, truth if truth is not None and truth.is_file() else None))
    if len(cases) < MIN_CASES:
        raise UsageError(
            f"{folder}: {len(cases)} cases to measure agreement on; at least {MIN_CASES} are needed, of all "
            "the modalities that the model is meant for"
        )
    if truths is not None and all(case.truth is None for case in cases):
        raise UsageError(
            f"{truths}: has the ground truth of none of the cases in {folder}; names must be equal"
        )
    return cases


def measure_agreement(
    folder: pathlib.Path,
    precisions: Sequence[str],
    cases: Sequence[MeasuredCase],
    progress: Callable[[str], None],
) -> dict[str, Agreement]:
    """Measure precisions that a bundle lists, float32 not among them, on every engine that runs them.

    Raises:
        InputError: a case or a ground truth cannot be used.
        EngineError: an engine fails.
    """
    bundle = Bundle.open(folder)
    found: dict[str, dict[str, EngineAgreement]] = {name: {} for name in precisions}
    for engine in ENGINES:
        run = [name for name in precisions if engine in bundle.manifest.precisions[name].runs_on]
        if not run:
            continue
        segmenters = {
            name: Segmenter(bundle, open_engine(engine, bundle, precision=name)) for name in (REFERENCE, *run)
        }
        measured: dict[str, list[Found]] = {name: [] for name in run}
        progress(f"measuring {' and '.join(run)} on {engine}, {len(cases)} cases")
        for one in cases:
            case = read_case(one.path)
            truth = None if one.truth is None else _read_truth(one.truth, case)
            labels = {name: segmenter.run(case).labels for name, segmenter in segmenters.items()}
            expected = labels[REFERENCE]
            for name in run:
                dice, change = mean_dice(labels[name], expected, len(case.boxes)), None
                if truth is not None:
                    count = int(truth.max())
                    change = mean_dice(truth, labels[name], count) - mean_dice(truth, expected, count)
                measured[name].append((one.modality, dice, change))
        for name in run:
            found[name][engine] = summarise(measured[name])
    return {name: Agreement(len(cases), engines) for name, engines in found.items()}


def summarise(cases: Iterable[Found]) -> EngineAgreement:
    """Return the means over the cases of each modality; numbers to six places."""
    by_modality = collections.defaultdict(list)
    for modality, dice, change in cases:
        by_modality[modality].append((dice, change))
    modalities = {}
    for name, some in sorted(by_modality.items()):
        changes = [change for _, change in some if change is not None]
        modalities[name] = ModalityAgreement(
            cases=len(some),
            dice=round(statistics.fmean(dice for dice, _ in some), 6),
            dsc_change=round(statistics.fmean(changes), 6) if changes else None,
        )
    return EngineAgreement(modalities)


def mean_dice(first: Labels, second: Labels, count: int) -> float:
    """Return the mean Dice of the labels 1 to `count` that either label map has; 1 if neither has one."""
    dice = dice_by_label(first, second, count)
    return 1.0 if np.isnan(dice).all() else float(np.nanmean(dice))


def _read_truth(path: pathlib.Path, case: Case) -> Labels:
    with NpzReader(path) as archive:
        labels = archive.read("gts")
    fits = labels.dtype.kind in "ui" and labels.shape == case.shape
    if not fits or int(labels.min()) < 0 or not 0 < int(labels.max()) <= MAX_LABEL:
        raise InputError(
            f"{path}: gts is {labels.dtype} of shape {labels.shape}; give integers of shape {case.shape}, "
            f"0 and some of 1 to {MAX_LABEL}"
        )
    return labels.astype(np.uint16, copy=False)
