"""From a label map at the network's scale to the boxes that are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from litemed.train.config import Prompts

REFERENCE_SIZE = 256
"""The input size that jitter in pixels refers to."""

_FINER_PIXEL = (0.2, 1.0)  # side of a pixel of a finer image, in those of the network's input


@dataclass(frozen=True, eq=False)
class ObjectBoxes:
    """Objects of a label map and their tight boxes.

    numbers: (N,) int64, labels above 0. xyxy: (N, 4) int64, x0 y0 x1 y1 of the smallest and largest pixel,
    both inclusive, as in the challenge; an object one pixel wide or high gets an x1 or y1 one larger.
    """

    numbers: NDArray[np.int64]
    xyxy: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)


def find_boxes(labels: NDArray[Any], min_pixels: int = 1) -> ObjectBoxes:
    """Return the objects of `labels`, (H, W) unsigned, that have at least `min_pixels` pixels."""
    counts = np.bincount(labels.ravel())
    places = ndimage.find_objects(labels)
    numbers = np.flatnonzero(counts[1:] >= max(1, min_pixels)) + 1
    xyxy = np.empty((len(numbers), 4), np.int64)
    for row, number in zip(xyxy, numbers.tolist(), strict=True):
        y, x = places[number - 1]
        row[:] = x.start, y.start, max(x.stop - 1, x.start + 1), max(y.stop - 1, y.start + 1)
    return ObjectBoxes(numbers, xyxy)


def choose(objects: ObjectBoxes, count: int, random: np.random.Generator) -> ObjectBoxes:
    """Return at most `count` of the objects, drawn at random without repetition."""
    if len(objects) <= count:
        return objects
    chosen = random.choice(len(objects), size=count, replace=False)
    return ObjectBoxes(objects.numbers[chosen], objects.xyxy[chosen])


def as_if_finer(xyxy: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Return tight boxes (N, 4) as the runtime would have made them from an image of more pixels.

    There an object begins and ends between the pixels of the network's input, and the runtime rounds both
    down, as published. So a box of a much finer image is a pixel wider and higher on average: little, but not
    to a cell of ten. The resolution is drawn once for all boxes.
    """
    pixel = random.uniform(*_FINER_PIXEL)
    moves = random.random(xyxy.shape) < (1 - pixel) / 2
    return np.maximum(xyxy + np.array([-1, -1, 1, 1]) * moves, 0)


def jitter(
    xyxy: NDArray[np.int64],
    shape: tuple[int, int],
    settings: Prompts,
    size: int,
    random: np.random.Generator,
) -> NDArray[np.float32]:
    """Return boxes as they come in practice, float32 (N, 4), whole numbers.

    xyxy: (N, 4), x0 y0 x1 y1 in pixels of an image of `shape` (height, width) that lies in the network's
    input of side `size`. Each edge moves outwards by 0 to `settings.jitter_pixels` pixels of a 256-pixel
    input (as published with LiteMedSAM) and either way by up to `settings.jitter_share` of the box's side.
    The boxes of `settings.finer` of the images are first turned into those of a finer one; see `as_if_finer`.
    The result is rounded to integers, up or down at random so that no edge tends to either side, lies within
    [0, width] x [0, height] and has an area.
    """
    height, width = shape
    if random.random() < settings.finer:
        xyxy = as_if_finer(xyxy, random)
    outwards = np.array([-1, -1, 1, 1])
    pixels = random.integers(0, settings.jitter_pixels, endpoint=True, size=xyxy.shape) * (
        size / REFERENCE_SIZE
    )
    sides = np.tile(xyxy[:, 2:] - xyxy[:, :2], 2)
    share = random.uniform(-settings.jitter_share, settings.jitter_share, xyxy.shape)
    limits = np.array([width, height, width, height])
    shifted = xyxy + outwards * pixels + sides * share
    moved = np.clip(np.floor(shifted + random.random(shifted.shape)), 0, limits)
    # An edge may have moved past the other one; both keep to the image.
    low = np.minimum(np.minimum(moved[:, :2], moved[:, 2:]), limits[:2] - 1)
    high = np.maximum(np.maximum(moved[:, :2], moved[:, 2:]), low + 1)
    return np.concatenate([low, high], axis=1).astype(np.float32)
