"""The Dice similarity coefficient of label maps, 2 |A and B| / (|A| + |B|)."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]


def dice_by_label(first: Labels, second: Labels, count: int) -> NDArray[np.float64]:
    """Return the Dice coefficient of each label from 1 to `count`, float64 (count,).

    NaN for a label that neither of the two maps has; labels above `count` do not count.

    Args:
        first, second: integer label maps (H, W) or (D, H, W) of one shape, no label below 0.
        count: the largest label to compare.
    """
    sizes, common = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    if first.ndim == 2:
        first, second = first[np.newaxis], second[np.newaxis]
    # Plane by plane: bincount takes a copy in int64.
    for one, other in zip(first, second, strict=True):
        sizes += _occurrences(one, count) + _occurrences(other, count)
        common += _occurrences(one[one == other], count)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * common[1:] / sizes[1:], np.float64)


def _occurrences(labels: Labels, count: int) -> NDArray[np.int64]:
    # Through int64, for bincount refuses uint64.
    return np.bincount(labels.ravel().astype(np.int64), minlength=count + 1)[: count + 1]
