"""From label maps to objects: size limits, consecutive numbers, boxes."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from litemed.runtime.errors import InputError

_PIECE: Final = 2**22
# Values below it are counted in a table, which takes no sorting.
_LARGEST_TABLE: Final = 2**20


@dataclass(frozen=True)
class Objects:
    """Objects numbered from 1 without gaps.

    labels: smallest unsigned dtype that holds them, (H, W) or (D, H, W). sizes: (N,), of each object.
    """

    labels: NDArray[Any]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sizes)


def number(labels: NDArray[Any]) -> Objects:
    """Return the distinct values above 0 of `labels` as objects, in ascending order of value."""
    if labels.max(initial=0) >= _LARGEST_TABLE:
        values, inverse = np.unique(labels, return_inverse=True)
        labels = inverse.reshape(labels.shape) + (values[0] != 0)
    flat = labels.reshape(-1)
    counts = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    # In pieces: bincount works on a copy in 64 bits.
    for start in range(0, flat.size, _PIECE):
        counts += np.bincount(flat[start : start + _PIECE], minlength=len(counts))
    found = np.flatnonzero(counts[1:]) + 1
    table = np.zeros(len(counts), np.min_scalar_type(len(found)))
    table[found] = np.arange(1, len(found) + 1)
    return Objects(table[labels], counts[found])


def keep(objects: Objects, wanted: NDArray[np.bool_]) -> Objects:
    """Return only the objects for which `wanted`, (N,), is true, numbered anew in the same order."""
    return objects if wanted.all() else number(objects.labels * np.append(False, wanted)[objects.labels])


def boxes_of(objects: Objects) -> NDArray[np.int64]:
    """Return the boxes of all objects: (N, 4) x0 y0 x1 y1, or (N, 6) x0 y0 z0 x1 y1 z1 for a volume.

    As the challenge's boxes: the smallest and largest pixel of the object, both inclusive. Of an object that
    is one pixel wide or high x1 or y1 is one larger (at most W or H): the runtime refuses a box without area.
    """
    places = ndimage.find_objects(objects.labels)
    bounds = np.array([[(part.start, part.stop - 1) for part in place[::-1]] for place in places], np.int64)
    low, high = np.moveaxis(bounds.reshape(len(places), objects.labels.ndim, 2), 2, 0)
    high[:, :2] = np.maximum(high[:, :2], low[:, :2] + 1)
    return np.concatenate([low, high], axis=1)


def number_sharp(labels: NDArray[Any], source: object) -> Objects:
    """Return `number` of labels as a file has them.

    Raises InputError for soft edges: where most values, in a volume on its fullest slice, are steps from one
    to another, which is that a third of their pixels have a lower and a higher value next to them.
    """
    objects = number(labels)
    plane, shown = objects.labels, objects
    if plane.ndim == 3:
        fullest = np.count_nonzero(plane, axis=(1, 2)).argmax()
        plane, labels = plane[fullest], labels[fullest]
        shown = number(plane)
    steps = (ndimage.minimum_filter(plane, 3) < plane) & (plane < ndimage.maximum_filter(plane, 3))
    counts = np.bincount(shown.labels[steps], minlength=len(shown) + 1)[1:]
    soft = np.flatnonzero(3 * counts > shown.sizes)
    if 2 * len(soft) > len(shown) > 2:
        raise InputError(
            f"{source}: labels have soft edges: {len(soft)} of {len(shown)} values are steps to others "
            f"({', '.join(map(str, np.unique(labels)[1:5]))}, ...); save them without smoothing"
        )
    return objects
