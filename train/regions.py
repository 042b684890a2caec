"""Find regions in a picture that its own edges bound: objects to train on where nobody labelled any.

Slices are few, and most of what can be seen in them has no label: organs beside the tumour, cells of another
kind, shadows. What a box asks for is the thing in it, whatever it is called, and an outline that follows the
picture's edges all round is that of a thing. So a smoothed picture is cut at the level of one of its edges,
several times, and of the pieces those are taken that are compact and that a strong gradient bounds.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MOST_REGIONS = 24
_CUTS = 8
_SIGMAS = (0.003, 0.02)  # of the smoothing, as a share of the longest side
_AREAS = (0.0008, 0.2)  # of a region, as a share of the picture
_LEAST_EXTENT = 0.4  # of its box that a region fills
_LEAST_EDGE = 2.0  # mean gradient of its outline by that of the picture


def find_regions(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint16]:
    """Return regions of an image (H, W) or (H, W, 3): labels (H, W), numbered from 1, 0 elsewhere.

    At most 24; there may be none. random: draws the smoothing and the levels.
    """
    grey = np.ascontiguousarray(image if image.ndim == 2 else image.mean(2), np.float32)
    sigma = max(grey.shape) * math.exp(random.uniform(math.log(_SIGMAS[0]), math.log(_SIGMAS[1])))
    smooth = cv2.GaussianBlur(grey, (0, 0), sigma)
    slope = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    steep = np.flatnonzero(slope.ravel() >= np.quantile(slope, 0.9))
    labels = np.zeros(grey.shape, np.uint16)
    count = 0
    for level in smooth.ravel()[random.choice(steep, _CUTS)]:
        pieces = smooth > level if random.random() < 0.5 else smooth < level
        for place, piece in _compact(pieces, slope, random):
            free = piece & (labels[place] == 0)
            if count < MOST_REGIONS and np.count_nonzero(free) > 0.9 * np.count_nonzero(piece):
                count += 1
                labels[place][free] = count
    return labels


def _compact(
    pieces: NDArray[np.bool_], slope: NDArray[np.float32], random: np.random.Generator
) -> list[tuple[tuple[slice, slice], NDArray[Any]]]:
    """Return place and mask of those connected pieces that are bounded and compact, in random order."""
    _, numbered, stats, _ = cv2.connectedComponentsWithStats(pieces.astype(np.uint8), connectivity=4)
    x, y, width, height, area = stats.T
    share = area / pieces.size
    inside = (x > 0) & (y > 0) & (x + width < pieces.shape[1]) & (y + height < pieces.shape[0])
    suits = inside & (share > _AREAS[0]) & (share < _AREAS[1]) & (area >= _LEAST_EXTENT * width * height)
    suits[0] = False  # what is not cut out
    filled = random.random() < 0.7
    least = _LEAST_EDGE * slope.mean()
    found = []
    for number in random.permutation(np.flatnonzero(suits)).tolist():
        place = (slice(y[number], y[number] + height[number]), slice(x[number], x[number] + width[number]))
        piece = numbered[place] == number
        if filled:
            piece = ndimage.binary_fill_holes(piece)
        outline = piece & ~ndimage.binary_erosion(piece)
        if slope[place][outline].mean() >= least:
            found.append((place, piece))
    return found
