"""The precisions beside float32 that a bundle is to offer: how well their masks agree with those of float32.

Every case, a real image, is segmented by every engine in float32 and in each precision, by the runtime's own
code. The label maps are compared box by box, with each other and, where there is one, with the ground truth;
what is written into the manifest are means over the cases of a modality. Whether they are good enough is
judged by `litemed.runtime.precision`.
"""

import collections
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from litemed.export.quantise import KEY, KEY_BF16, Image, calibration_images
from litemed.runtime.bundle import Bundle
from litemed.runtime.dice import dice_by_label
from litemed.runtime.engines import open_engine
from litemed.runtime.engines.openvino_engine import computes_bf16
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.inputs.cases import list_cases, read_case
from litemed.runtime.inputs.npz import NpzReader
from litemed.runtime.modalities import modality_of_name
from litemed.runtime.precision import (
    ENGINES,
    REFERENCE,
    ROLES,
    Agreement,
    EngineAgreement,
    ModalityAgreement,
    Precision,
)
from litemed.runtime.segmenter import Segmenter

MIN_CASES = 10  # fewer say nothing about the images of others
MAX_LABEL = 65_535

Labels = NDArray[np.integer]
Progress = Callable[[str], None]


class MeasuredCase(NamedTuple):
    """A case to measure on: its file, and that of its ground truth if it has one."""

    path: pathlib.Path
    modality: str
    truth: pathlib.Path | None


class Plan(NamedTuple):
    """What to try, by name, with an agreement of no engine yet; what to calibrate and to measure on."""

    precisions: dict[str, Precision]
    images: Sequence[Image] = ()
    cases: Sequence[MeasuredCase] = ()


def plan(
    int8: bool, calibration: pathlib.Path | None, agreement: pathlib.Path | None, truths: pathlib.Path | None
) -> Plan:
    """Check what precisions need, and read the images for them, before anything long is begun.

    Raises:
        UsageError: images or cases are missing or too few, or serve nothing.
        InputError: one of them cannot be read.
    """
    if int8 != (calibration is not None) or (int8 and agreement is None):
        raise UsageError(
            "--int8, --calibration (a folder of real cases to quantise with) and --agreement (another, to "
            "measure on) go together"
        )
    if agreement is None:
        if truths is not None:
            raise UsageError("--ground-truth is that of cases; name their folder with --agreement")
        return Plan({})
    encoders = {"int8": KEY} if int8 else {}
    if computes_bf16():
        encoders |= {"bf16": "encoder"} | ({"int8-bf16": KEY_BF16} if int8 else {})
    if not encoders:
        raise UsageError("--agreement has nothing to measure: this CPU computes no bf16; pass --int8 as well")
    cases = find_measured_cases(agreement, truths)
    # bf16 in the encoder alone: the decoder does not bear it (benchmarks/results/agreement.md).
    precisions = {
        name: Precision(key, "decoder", Agreement(len(cases), {}), ROLES[:1] if "bf16" in name else ())
        for name, key in encoders.items()
    }
    return Plan(precisions, calibration_images(calibration) if calibration else (), cases)


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
        raise UsageError(f"{truths}: has the ground truth of no case in {folder}; names must be equal")
    return cases


def measure_agreement(
    folder: pathlib.Path, precisions: Sequence[str], cases: Sequence[MeasuredCase], progress: Progress
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
        progress(f"measuring {' and '.join(run)} on {engine}, {len(cases)} cases")
        segmenters = {
            name: Segmenter(bundle, open_engine(engine, bundle, precision=name)) for name in (REFERENCE, *run)
        }
        # Of each precision and modality: Dice with float32, and the change of DSC, of every case.
        measured: dict[str, dict[str, list[tuple[float, float | None]]]] = {
            name: collections.defaultdict(list) for name in run
        }
        for path, modality, truth_path in cases:
            case = read_case(path)
            truth = None if truth_path is None else _read_truth(truth_path, case.shape)
            labels = {name: segmenter.run(case).labels for name, segmenter in segmenters.items()}
            expected = labels[REFERENCE]
            for name in run:
                dice, change = mean_dice(labels[name], expected, len(case.boxes)), None
                if truth is not None:
                    count = int(truth.max())
                    change = mean_dice(truth, labels[name], count) - mean_dice(truth, expected, count)
                measured[name][modality].append((dice, change))
        for name in run:
            means = {modality: _means(pairs) for modality, pairs in sorted(measured[name].items())}
            found[name][engine] = EngineAgreement(means)
    return {name: Agreement(len(cases), engines) for name, engines in found.items()}


def _means(cases: Sequence[tuple[float, float | None]]) -> ModalityAgreement:
    """The means over the cases of one modality, to six places."""
    changes = [change for _, change in cases if change is not None]
    return ModalityAgreement(
        cases=len(cases),
        dice=round(statistics.fmean(dice for dice, _ in cases), 6),
        dsc_change=round(statistics.fmean(changes), 6) if changes else None,
    )


def mean_dice(first: Labels, second: Labels, count: int) -> float:
    """Return the mean Dice of the labels 1 to `count` that either label map has; 1 if neither has one."""
    dice = dice_by_label(first, second, count)
    return 1.0 if np.isnan(dice).all() else float(np.nanmean(dice))


def _read_truth(path: pathlib.Path, shape: tuple[int, ...]) -> Labels:
    with NpzReader(path) as archive:
        labels = archive.read("gts")
    if labels.dtype.kind in "ui" and labels.shape == shape and labels.min() >= 0 < labels.max() <= MAX_LABEL:
        return labels.astype(np.uint16, copy=False)
    raise InputError(
        f"{path}: gts is {labels.dtype} of shape {labels.shape}; give integers of shape {shape}, 0 and some "
        f"of 1 to {MAX_LABEL}"
    )


def passing(
    tried: Mapping[str, Precision], measured: Mapping[str, Agreement], progress: Progress
) -> dict[str, Precision]:
    """Return the precisions that pass on one engine at least; the runtime judges each."""
    kept = {}
    for name, agreement in measured.items():
        for engine, found in agreement.engines.items():
            lowest, modality = min((one.dice, modality) for modality, one in found.modalities.items())
            progress(
                f"{name} on {engine}: masks agree with float32's to {lowest:.4f} in {modality} at worst: "
                f"{found.shortcoming() or 'passes'}"
            )
        if all(found.shortcoming() for found in agreement.engines.values()):
            progress(f"{name} is left out of the bundle: it passes on no engine")
        else:
            kept[name] = replace(tried[name], agreement=agreement)
    return kept
