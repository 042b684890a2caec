"""Segmentations that need no network: what a box alone, or its grey values, already give.

A model that does not beat the best of these has learnt nothing worth shipping. Boxes are taken as the
challenge makes them: x0 y0 x1 y1 are the first and last pixel of the object, both inclusive.
"""

import enum

import cv2
import numpy as np
from numpy.typing import NDArray

from litemed.runtime.boxes import Boxes
from litemed.runtime.case import Case

Region = tuple[slice, ...]
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

# GrabCut sees the box with half its side round it, at most this long: more changes little and takes minutes.
_GRABCUT_SIDE = 256
_GRABCUT_ITERATIONS = 5
# Pixels on either side that GrabCut's five Gaussians need.
_GRABCUT_LEAST = 5


class Trivial(enum.StrEnum):
    """The trivial predictors; the values name them in tables."""

    BOX = "filled box"
    ELLIPSE = "ellipse/ellipsoid"
    OTSU = "Otsu in box"
    GRABCUT = "GrabCut"


def predict(case: Case, predictor: Trivial) -> NDArray[np.unsignedinteger]:
    """Return the label map (H, W) or (D, H, W) of a case, label i = box i; the smaller box is on top."""
    regions = [box_region(case.boxes, index, case.shape) for index in range(len(case.boxes))]
    sizes = [np.prod(_extent(region)) for region in regions]
    labels = np.zeros(case.shape, np.min_scalar_type(len(regions)))
    for index in np.argsort(sizes, kind="stable")[::-1]:
        labels[regions[index]][_mask(case.image, regions[index], predictor)] = index + 1
    return labels


def box_region(boxes: Boxes, index: int, shape: tuple[int, ...]) -> Region:
    """Return the pixels of box `index` (from 0) in a label map of `shape`, as slices in axis order."""
    x0, y0, x1, y1 = (int(value) for value in boxes.xyxy[index])
    plane = (slice(y0, min(y1 + 1, shape[-2])), slice(x0, min(x1 + 1, shape[-1])))
    if boxes.z is None:
        return plane
    z0, z1 = (int(value) for value in boxes.z[index])
    return slice(z0, z1 + 1), *plane


def _mask(image: Image, region: Region, predictor: Trivial) -> Mask:
    """Return the object in a box, bool of the box's shape."""
    if predictor is Trivial.ELLIPSE:
        return _ellipse(_extent(region))
    if predictor is Trivial.OTSU:
        return _otsu(image, region)
    if predictor is Trivial.BOX:
        return np.ones(_extent(region), np.bool_)
    if len(region) == 2:
        return _grabcut(image, region)
    return np.stack([_grabcut(plane, region[1:]) for plane in image[region[0]]])


def _ellipse(extent: tuple[int, ...]) -> Mask:
    """Return the inscribed ellipse, in a volume the ellipsoid: pixels whose centres lie inside it."""
    axes = np.ogrid[tuple(slice(0, side) for side in extent)]
    squares = [((axis + 0.5) / side * 2 - 1) ** 2 for axis, side in zip(axes, extent, strict=True)]
    return np.asarray(sum(squares) <= 1)


def _otsu(image: Image, region: Region) -> Mask:
    """Return the side of Otsu's threshold that is commoner in the box than round it; one per box."""
    grey = image if image.ndim == len(region) else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    values = grey[region]
    threshold, _ = cv2.threshold(values.reshape(1, -1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    bright = values > threshold
    view = (*region[:-2], *map(_widened, region[-2:], grey.shape[-2:]))
    bright_in_view = grey[view] > threshold
    round_it = bright_in_view.size - bright.size
    if not round_it or bright.all() or not bright.any():
        return np.ones(bright.shape, np.bool_)
    share_round_it = (np.count_nonzero(bright_in_view) - np.count_nonzero(bright)) / round_it
    return bright if bright.mean() >= share_round_it else ~bright


def _grabcut(image: Image, region: Region) -> Mask:
    """Return GrabCut's object in a box of one image, (H, W) or (H, W, 3); the whole box if there is none."""
    extent = _extent(region)
    view = tuple(map(_widened, region, image.shape))
    scene = image[view]
    scale = min(1.0, _GRABCUT_SIDE / max(scene.shape[:2]))
    if scale < 1:
        size = [max(1, round(side * scale)) for side in scene.shape[1::-1]]
        scene = np.asarray(cv2.resize(scene, size, interpolation=cv2.INTER_AREA), np.uint8)
    colour = scene if scene.ndim == 3 else cv2.cvtColor(scene, cv2.COLOR_GRAY2BGR)
    inner = tuple(
        slice(round((part.start - seen.start) * scale), round((part.stop - seen.start) * scale))
        for part, seen in zip(region, view, strict=True)
    )
    classes = np.full(scene.shape[:2], cv2.GC_BGD, np.uint8)
    classes[inner] = cv2.GC_PR_FGD
    inside = np.count_nonzero(classes)
    if min(inside, classes.size - inside) < _GRABCUT_LEAST:
        return np.ones(extent, np.bool_)
    # GrabCut starts from random cluster centres: the same ones every time.
    cv2.setRNGSeed(0)
    back, front = np.zeros((2, 1, 65))
    mode = cv2.GC_INIT_WITH_MASK
    cv2.grabCut(np.ascontiguousarray(colour), classes, (0, 0, 0, 0), back, front, _GRABCUT_ITERATIONS, mode)
    found = np.isin(classes[inner], (cv2.GC_FGD, cv2.GC_PR_FGD))
    if not found.any():
        return np.ones(extent, np.bool_)
    return cv2.resize(found.view(np.uint8), extent[::-1], interpolation=cv2.INTER_NEAREST).astype(np.bool_)


def _widened(part: slice, side: int) -> slice:
    """Return `part` with half its length added at both ends, within [0, side]."""
    margin = (part.stop - part.start + 1) // 2
    return slice(max(0, part.start - margin), min(side, part.stop + margin))


def _extent(region: Region) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in region)
