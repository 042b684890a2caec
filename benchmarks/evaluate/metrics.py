"""DSC and NSD of one case, class by class, as the challenge scores them.

The rules are those of the evaluation script of "Segment Anything in Medical Images on Laptop" (CVPR 2024),
which the paper's Table 3 follows:

- classes are the labels 1 to the largest of the ground truth; a case's score is the mean over its classes;
- DSC = 2 |A and B| / (|A| + |B|); NSD is the surface dice at a tolerance of 2 by the published
  surface-distance definition, in 3D with the case's spacing in mm;
- a 2D case enters NSD as a volume of one slice with a spacing of 1, which gives higher values than contours;
- NSD is 0 without being measured where the case's DSC is at most 0.2.

A class that neither has, below the largest, makes the script's result not a number; here it is left out.

The surface distance is that of S. Nikolov et al. (2018), google-deepmind/surface-distance. Written anew: its
only release on PyPI fails with numpy 2 where one mask is empty, and calls what SciPy is about to remove.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from litemed.runtime.dice import dice_by_label
from litemed.runtime.preprocess import INPUT_SIZE

LabelMap = NDArray[np.integer]
Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

TOLERANCE = 2.0
"""Of NSD, in mm (3D) or pixels (2D)."""

# Below this DSC the challenge does not measure NSD.
_NSD_NEEDS_DSC = 0.2


@dataclass(frozen=True)
class ClassScore:
    """DSC and NSD, both in [0, 1], of one class of one case, and the size of its object.

    `size` is what the network sees of it: the longest side of the object's box in the ground truth, first to
    last pixel, across the slice, in pixels of an input of 256; None if the ground truth has no such label.
    """

    label: int
    dsc: float
    nsd: float
    size: float | None


def score_classes(truth: LabelMap, prediction: LabelMap, spacing: Spacing | None) -> tuple[ClassScore, ...]:
    """Score a label map against the ground truth, class by class, in the order of the labels.

    Args:
        truth: integer (H, W) or (D, H, W), from 0 to 65,535, at least one label above 0.
        prediction: integer, the same shape and range; labels above those of the ground truth do not count.
        spacing: mm along each axis of a volume, z y x; not used in 2D.
    """
    dice = dice_by_label(truth, prediction, int(truth.max()))
    places = ndimage.find_objects(truth)
    longest = max(truth.shape[-2:])
    sizes = [place and max(s.stop - s.start for s in place[-2:]) * INPUT_SIZE / longest for place in places]
    present = np.flatnonzero(~np.isnan(dice)).tolist()
    if np.nanmean(dice) <= _NSD_NEEDS_DSC:
        return tuple(ClassScore(index + 1, float(dice[index]), 0.0, sizes[index]) for index in present)
    found = ndimage.find_objects(prediction, max_label=len(places))
    if truth.ndim == 2 or spacing is None:
        truth, prediction, spacing = truth[..., np.newaxis], prediction[..., np.newaxis], (1.0, 1.0, 1.0)
    scores = []
    for index in present:
        # Where either has the label.
        sides = zip(*filter(None, (places[index], found[index])), strict=True)
        region = tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)
        surfaces = nsd(truth[region] == index + 1, prediction[region] == index + 1, spacing, TOLERANCE)
        scores.append(ClassScore(index + 1, float(dice[index]), surfaces, sizes[index]))
    return tuple(scores)


# The published marching-cubes table, one neighbourhood of each kind: the corners inside (4 z + 2 y + x), and
# the triangles of the surface between, as normals in eighths of a cell's faces; signs do not change areas.
_KINDS: tuple[tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]], ...] = (
    ((7,), ((1, 1, 1),)),
    ((7, 6), ((2, 2, 0), (2, 2, 0))),
    ((6, 5), ((1, 1, 1), (1, 1, 1))),
    ((7, 6, 5), ((4, 0, 0), (2, 2, 2), (1, 1, 1))),
    ((7, 6, 5, 4), ((4, 0, 0), (4, 0, 0))),
    ((6, 5, 3), ((1, 1, 1), (1, 1, 1), (1, 1, 1))),
    ((7, 6, 5, 3), ((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 1, 1))),
    ((3, 4), ((1, 1, 1), (1, 1, 1))),
    ((7, 3, 4), ((0, 2, 2), (0, 2, 2), (1, 1, 1))),
    ((7, 6, 4, 3), ((0, 2, 2), (2, 0, 2), (1, 1, 1), (3, 3, 3))),
    ((6, 5, 4, 3), ((4, 0, 0), (2, 2, 2), (1, 1, 1), (1, 1, 1))),
    ((5, 4, 3, 2), ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0))),
    ((7, 4, 2, 1), ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))),
)


def nsd(first: Mask, second: Mask, spacing: Spacing, tolerance: float) -> float:
    """Return the share of both surfaces that lies within `tolerance` of the other surface.

    A surface element lies between the voxels where a 2 x 2 x 2 neighbourhood is neither all inside nor all
    outside. 0 if one of the masks is empty, NaN if both are.

    Args:
        first, second: bool (D, H, W); outside of them everything is background.
        spacing: positive distance between neighbours along each axis, z y x.
        tolerance: in the unit of the spacing.
    """
    element_areas = _element_areas(spacing)
    codes = [_neighbour_codes(mask) for mask in (first, second)]
    borders = [(code != 0) & (code != 255) for code in codes]
    near = total = 0.0
    for code, own, other in zip(codes, borders, borders[::-1], strict=True):
        places = np.nonzero(own)
        areas = element_areas[code[places]]
        total += areas.sum()
        if other.any():
            near += areas[_distances(places, other, spacing) <= tolerance].sum()
    return float(near / total) if total else float("nan")


def _neighbour_codes(mask: Mask) -> NDArray[np.uint8]:
    """Return which of the 8 voxels round each voxel corner are inside, bit 4 z + 2 y + x; uint8."""
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([side + 1 for side in mask.shape], np.uint8)
    depth, height, width = codes.shape
    for bit, (z, y, x) in enumerate(itertools.product((0, 1), repeat=3)):
        codes |= padded[z : z + depth, y : y + height, x : x + width] << np.uint8(bit)
    return codes


@functools.lru_cache(maxsize=64)
def _element_areas(spacing: Spacing) -> NDArray[np.float64]:
    """Return the area of the surface element of each neighbour code, float64 (256,)."""
    z, y, x = spacing
    faces = np.array([y * x, z * x, z * y]) / 8
    areas = np.zeros(256)
    for inside, normals in _KINDS:
        corners = np.array(inside)[:, np.newaxis] >> [2, 1, 0] & 1
        for order in map(list, itertools.permutations(range(3))):
            area = np.linalg.norm(np.array(normals)[:, order] * faces, axis=1).sum()
            for flips in itertools.product((0, 1), repeat=3):
                numbers = (corners[:, order] ^ flips) @ [4, 2, 1]
                code = sum(1 << number for number in numbers.tolist())
                areas[code] = areas[255 - code] = area
    return areas


def _distances(places: tuple[NDArray[np.intp], ...], border: Mask, spacing: Spacing) -> NDArray[np.float64]:
    """Return how far each of `places` is from the nearest true element of `border`."""
    # Only where the nearest element lies: the distances of all voxels would take five times the memory.
    nearest = ndimage.distance_transform_edt(
        ~border, sampling=spacing, return_distances=False, return_indices=True
    )
    offsets = [(nearest[axis][places] - places[axis]) * length for axis, length in enumerate(spacing)]
    return np.sqrt(np.sum(np.square(offsets), axis=0))
