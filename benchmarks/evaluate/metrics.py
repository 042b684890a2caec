"""DSC and NSD of one case, class by class, as the challenge scores them.

The rules are those of the evaluation script of "Segment Anything in Medical Images on Laptop" (CVPR 2024),
which the paper's Table 3 follows:

- classes are the labels 1 to the largest of the ground truth; a case's score is the mean over its classes;
- DSC = 2 |A and B| / (|A| + |B|); NSD is the surface dice at a tolerance of 2 by the published
  surface-distance definition, in 3D with the case's spacing in mm;
- a 2D case enters NSD as a volume of one slice with a spacing of 1: the surface is then both faces of the
  slice and not the contour alone, which gives higher values than contours do;
- NSD is 0 without being measured where the case's DSC is at most 0.2.

A label below the largest that the ground truth does not have (labels 1, 3): the script's result is not a
number if the prediction does not have it either, and here the class is left out; where the prediction has
it, the class scores 0, as in the script.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from litemed.benchmarks.evaluate.surface import Spacing, nsd
from litemed.runtime.dice import dice_by_label

LabelMap = NDArray[np.integer]

# Below this DSC the challenge does not measure NSD.
_NSD_NEEDS_DSC = 0.2


@dataclass(frozen=True)
class ClassScore:
    """DSC and NSD, both in [0, 1], of one class of one case."""

    label: int
    dsc: float
    nsd: float


def score_classes(
    truth: LabelMap, prediction: LabelMap, spacing: Spacing | None, tolerance: float = 2.0
) -> tuple[ClassScore, ...]:
    """Score a label map against the ground truth, class by class, in the order of the labels.

    Args:
        truth: integer (H, W) or (D, H, W), at least one label above 0, none below.
        prediction: integer, the same shape; labels above those of the ground truth do not count.
        spacing: mm along each axis of a volume, z y x; not used in 2D.
        tolerance: of NSD, in mm (3D) or pixels (2D).
    """
    dice = dice_by_label(truth, prediction, int(truth.max()))
    present = np.flatnonzero(~np.isnan(dice))
    if np.nanmean(dice) <= _NSD_NEEDS_DSC:
        return tuple(ClassScore(int(index) + 1, float(dice[index]), 0.0) for index in present)
    if truth.ndim == 2 or spacing is None:
        truth, prediction, spacing = truth[..., np.newaxis], prediction[..., np.newaxis], (1.0, 1.0, 1.0)
    places = [ndimage.find_objects(labels, max_label=len(dice)) for labels in (truth, prediction)]
    scores = []
    for index in present.tolist():
        box = _union([found[index] for found in places if found[index]])
        one, other = (labels[box] == index + 1 for labels in (truth, prediction))
        scores.append(ClassScore(index + 1, float(dice[index]), nsd(one, other, spacing, tolerance)))
    return tuple(scores)


def _union(boxes: list[tuple[slice, ...]]) -> tuple[slice, ...]:
    """Return the box round some boxes."""
    return tuple(
        slice(min(part.start for part in axis), max(part.stop for part in axis))
        for axis in zip(*boxes, strict=True)
    )
