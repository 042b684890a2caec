"""Boxes anywhere on an image, with inscribed ellipses for masks: what a box means, without a picture.

A network that is trained on few images learns where a box lies only slowly. Ellipses teach it on any image,
at every place and size; they are also what is left to say of an object where the image tells nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SMALLEST, _LARGEST = 0.015, 0.85  # geometric mean of the sides, as a share of the input's side
_ASPECT, _THIN_ASPECT = 0.4, 1.4  # standard deviations of half the logarithm of the sides' ratio
_THIN = 0.2  # share of the boxes with the latter
_LEAST_PIXELS = 2


def random_boxes(count: int, size: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Return boxes (count, 4), x0 y0 x1 y1 in whole pixels, both included, of an input of side `size`."""
    side = size * np.exp(random.uniform(np.log(_SMALLEST), np.log(_LARGEST), count))
    spread = np.where(random.random(count) < _THIN, _THIN_ASPECT, _ASPECT)
    aspect = np.exp(spread * random.standard_normal(count))
    sides = np.clip(np.rint([side * aspect, side / aspect]), _LEAST_PIXELS, size - 2).T
    low = np.floor(random.random((count, 2)) * (size - sides))
    return np.concatenate([low, low + sides - 1], axis=1).astype(np.float32)


def inscribed_ellipses(boxes: Tensor, size: int) -> Tensor:
    """Return the masks of the ellipses in boxes (N, 4), both ends included: uint8 (N, size, size)."""
    low, high = boxes[:, :2], boxes[:, 2:]
    centre, half = (low + high) / 2, (high - low + 1) / 2
    pixel = torch.arange(size, device=boxes.device)
    square = ((pixel - centre[:, :, None]) / half[:, :, None]).square()  # (N, 2, size), along x and y
    return (square[:, 0, None, :] + square[:, 1, :, None] <= 1).to(torch.uint8)
