"""How good the network holds its own masks to be, put together from the slices of a case."""

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.engines.protocol import Float

_PIECE = 2**20  # pixels counted at once, for bincount takes a copy of eight bytes each


class PredictedIou:
    """Collects the predicted IoU of each box on each slice, and weighs them by what became of the masks."""

    def __init__(self, boxes: int) -> None:
        """Begin with nothing, of so many boxes."""
        self._boxes = boxes
        self._found: list[tuple[int, NDArray[np.int64], Float]] = []

    def add(self, position: int, boxes: NDArray[np.int64], iou: Float) -> None:
        """Take what the decoder said (n,) of the masks of some boxes, indices, on a slice."""
        self._found.append((position, boxes, iou))

    def mean(self, labels: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
        """Return the mean over the slices of each box (N,), weighted by its pixels in `labels` (D, H, W).

        NaN for a box that has no pixel.
        """
        total, pixels = np.zeros(self._boxes), np.zeros(self._boxes, np.int64)
        counted, counts = -1, np.zeros(0, np.int64)
        for position, boxes, iou in sorted(self._found, key=lambda one: one[0]):
            if position != counted:
                counted, counts = position, _count(labels[position], self._boxes)
            total[boxes] += iou * counts[boxes]
            pixels[boxes] += counts[boxes]
        with np.errstate(invalid="ignore"):
            return np.asarray(total / pixels, np.float64)


def _count(plane: NDArray[np.unsignedinteger], boxes: int) -> NDArray[np.int64]:
    """Return how many pixels (H, W) have each of the labels 1, 2, ..., (boxes,)."""
    flat, counts = plane.reshape(-1), np.zeros(boxes + 1, np.int64)
    for start in range(0, flat.size, _PIECE):
        counts += np.bincount(flat[start : start + _PIECE], minlength=boxes + 1)
    return counts[1:]
