"""Boxes as people draw them, looser than their objects: the mask of a first pass says where to look again.

The bundle's second mask decoder was trained on loose boxes and finds the object in them; the first one is
better where the box is tight, and fills a loose one. So the second one's mask decides which box the first is
given: the mask's, where that is much smaller than what was drawn, otherwise the one that was drawn.
"""

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.preprocess import Frame

MOST_SHARE = 0.6
"""A mask's box takes the place of the drawn one where its area is below this share of it."""

TIGHT_SHARE = 0.8
"""A box is tight where its mask's box has this share of its area or more."""

# Of a mask's pixels, cut off at each side: strays do not count.
_TRIMMED = 0.005

Float = NDArray[np.float32]


def refit(logits: Float, prompts: Float, frame: Frame) -> tuple[Float, NDArray[np.bool_]]:
    """Return the prompts of the second pass.

    Args:
        logits: float32 (n, S, S), of the first pass.
        prompts: float32 (n, 4), of the first pass, x0 y0 x1 y1 in pixels of the network's input.
        frame: where the image lies in the network's input.

    Returns:
        Float32 (n, 4), each the mask's box or the same as before; and bool (n,), which were tight.
    """
    masks = logits[:, : frame.scaled_height, : frame.scaled_width] > 0
    (x0, x1), (y0, y1) = _extent(masks.sum(axis=1)), _extent(masks.sum(axis=2))
    boxes = np.stack([x0, y0, x1, y1], axis=1).astype(np.float32)
    found = boxes[:, 0] < boxes[:, 2]
    smaller = found & (_area(boxes) < MOST_SHARE * _area(prompts))
    tight = ~found | (_area(boxes) >= TIGHT_SHARE * _area(prompts))
    return np.where(smaller[:, np.newaxis], boxes, prompts), tight


def _extent(counts: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Return where masks begin and end on an axis, from the pixels (n, S) along it."""
    upto = counts.cumsum(axis=1)
    cut = _TRIMMED * upto[:, -1:]
    begin = (upto <= cut).sum(axis=1)
    end = (upto < upto[:, -1:] - cut).sum(axis=1) + 1
    return begin, np.where(upto[:, -1] > 0, end, begin)


def _area(boxes: Float) -> Float:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
