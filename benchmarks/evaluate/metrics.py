"""DSC and NSD of one case, class by class, as the challenge scores them.

The rules are those of the evaluation script of "Segment Anything in Medical Images on Laptop" (CVPR 2024),
which the paper's Table 3 follows:

- classes are the labels 1 to the largest of the ground truth; a case's score is the mean over its classes;
- DSC = 2 |A and B| / (|A| + |B|); NSD is the surface dice at a tolerance of 2 by the published
  surface-distance definition, in 3D with the case's spacing in mm;
- a 2D case enters NSD as a volume of one slice with a spacing of 1: the surface is then both faces of the
  slice and not the contour alone, which gives higher values than contours do;
- NSD is 0 without being measured where the case's DSC is at most 0.2.

`NsdRule.CONTOUR` departs from the last two: contours in 2D, and NSD always measured.

A label below the largest that the ground truth does not have (labels 1, 3): the script's result is not a
number if the prediction does not have it either, and here the class is left out; where the prediction has
it, the class scores 0, as in the script.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from litemed.benchmarks.evaluate.surface import Mask, surface_dice, surface_distances
from litemed.runtime.errors import InputError

LabelMap = npt.NDArray[np.integer]

# The most that a uint16 label map holds, as in the runtime.
MAX_LABEL = 65_535
# Below this DSC the challenge does not measure NSD.
_NSD_NEEDS_DSC = 0.2


class NsdRule(enum.StrEnum):
    """How NSD is measured: see the module."""

    CHALLENGE = "challenge"
    CONTOUR = "contour"


@dataclass(frozen=True)
class ClassScore:
    """DSC and NSD, both in [0, 1], of one class of one case."""

    label: int
    dsc: float
    nsd: float


def dsc(first: Mask, second: Mask) -> float:
    """Return the Dice similarity coefficient of two bool masks of one shape; NaN if both are empty."""
    total = np.count_nonzero(first) + np.count_nonzero(second)
    return float(2 * np.count_nonzero(first & second) / total) if total else float("nan")


def nsd(first: Mask, second: Mask, spacing: Sequence[float], tolerance: float = 2.0) -> float:
    """Return the normalised surface distance of two bool masks; NaN if both are empty.

    Args:
        first: (H, W) or (D, H, W).
        second: the same shape.
        spacing: one length per axis, in the order of the axes.
        tolerance: in the unit of the spacing.
    """
    return surface_dice(surface_distances(first, second, spacing), tolerance)


def score_classes(
    truth: LabelMap,
    prediction: LabelMap,
    spacing: Sequence[float] | None,
    *,
    tolerance: float = 2.0,
    rule: NsdRule = NsdRule.CHALLENGE,
) -> tuple[ClassScore, ...]:
    """Score a label map against the ground truth, class by class, in the order of the labels.

    Args:
        truth: integer (H, W) or (D, H, W), labels 0 to 65535.
        prediction: integer, the same shape; labels above those of the ground truth do not count.
        spacing: mm along each axis of a volume; not used in 2D.
        tolerance: of NSD, in mm (3D) or pixels (2D).
        rule: see the module.

    Raises:
        InputError: an array is no label map.
        ValueError: the arrays differ in shape, a volume has no spacing, or there is no class to score.
    """
    for name, labels in (("ground truth", truth), ("prediction", prediction)):
        check_label_map(labels, name)
    if truth.shape != prediction.shape:
        raise ValueError(f"prediction of shape {prediction.shape} for ground truth of shape {truth.shape}")
    if truth.ndim == 3 and spacing is None:
        raise ValueError("a volume without spacing; NSD is measured in mm")
    lengths = (1.0, 1.0) if truth.ndim == 2 or spacing is None else tuple(spacing)
    top = int(truth.max(initial=0))
    if not top:
        raise ValueError("ground truth without a label above 0")

    boxes = _class_boxes(truth, prediction, top)

    def masks(label: int) -> tuple[Mask, Mask]:
        return truth[boxes[label]] == label, prediction[boxes[label]] == label

    dscs = {label: dsc(*masks(label)) for label in boxes}
    mean = sum(dscs.values()) / len(dscs)
    if rule is NsdRule.CHALLENGE and mean <= _NSD_NEEDS_DSC:
        return tuple(ClassScore(label, value, 0.0) for label, value in dscs.items())
    as_slice = rule is NsdRule.CHALLENGE and truth.ndim == 2
    scores = []
    for label, value in dscs.items():
        one, other = masks(label)
        if as_slice:
            distance = nsd(one[:, :, np.newaxis], other[:, :, np.newaxis], (1.0, 1.0, 1.0), tolerance)
        else:
            distance = nsd(one, other, lengths, tolerance)
        scores.append(ClassScore(label, value, distance))
    return tuple(scores)


def check_label_map(labels: npt.NDArray[np.generic], name: str) -> None:
    """Raise an InputError that begins with `name` unless `labels` is a label map as in `score_classes`."""
    if labels.dtype.kind not in "ui":
        raise InputError(f"{name} has dtype {labels.dtype}; labels are integers")
    if labels.ndim not in (2, 3):
        raise InputError(f"{name} has shape {labels.shape}; give (height, width) or (depth, height, width)")
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or high > MAX_LABEL:
        raise InputError(f"{name} has labels from {low} to {high}; they must lie in 0 to {MAX_LABEL}")


def _class_boxes(truth: LabelMap, prediction: LabelMap, top: int) -> dict[int, tuple[slice, ...]]:
    """Return the box round each label from 1 to `top` in both maps; a label in neither is left out."""
    boxes = {}
    places = zip(
        ndimage.find_objects(truth, max_label=top),
        ndimage.find_objects(prediction, max_label=top),
        strict=True,
    )
    for label, found in enumerate(places, start=1):
        present = [place for place in found if place is not None]
        if present:
            boxes[label] = tuple(
                slice(min(part.start for part in parts), max(part.stop for part in parts))
                for parts in zip(*present, strict=True)
            )
    return boxes
