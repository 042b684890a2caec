"""How a volume of a scanner is turned to be seen: permuted and flipped, never resampled, and back again.

Slices are those of the file, its third stored axis, which is what the challenge's own conversion keeps.
Within a slice, rows and columns come to the usual view of the nearest plane:

    axial      rows front to back,  columns right to left of the patient, slices upwards
    coronal    rows downwards,      columns right to left of the patient, slices front to back
    sagittal   rows downwards,      columns front to back,                slices right to left
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.boxes import Boxes


@dataclass(frozen=True)
class View:
    """Which stored axis becomes which, and which of them run backwards.

    Attributes:
        rows: the stored axis, 0 or 1, that becomes the rows; the other one becomes the columns.
        flips: axes of what is seen, 0 slices, 1 rows, 2 columns, that run against what is stored.
    """

    rows: int = 1
    flips: tuple[int, ...] = ()

    @classmethod
    def of(cls, affine: NDArray[np.float64]) -> Self:
        """Return the usual view of a volume stored as (i, j, k).

        `affine` (4, 4) takes i, j, k to millimetres to the right, front and top of the patient. Raises
        ValueError where two axes run the same way.
        """
        import nibabel

        # Row a: the world axis (0 right, 1 front, 2 up) nearest to stored axis a, and its sign.
        world = nibabel.orientations.io_orientation(affine)
        if np.isnan(world).any():
            raise ValueError("two axes run the same way")
        nearest = [int(axis) for axis in world[:, 0]]
        view = cls(rows=max((0, 1), key=lambda axis: nearest[axis]))
        # Columns run to the patient's left or back, rows to the back or down: against the world axes.
        # Slices run up, back or left.
        along_world = (nearest[2] == 2, False, False)
        turned = zip(range(3), view.order, along_world, strict=True)
        return dataclasses.replace(
            view, flips=tuple(place for place, axis, wanted in turned if (world[axis, 1] > 0) != wanted)
        )

    @property
    def order(self) -> tuple[int, int, int]:
        """The stored axes that become slices, rows and columns."""
        return 2, self.rows, 1 - self.rows

    def show_lengths(self, stored: Sequence[float]) -> tuple[float, float, float]:
        """Return lengths of a voxel along i, j and k as those of slices, rows and columns."""
        z, y, x = (stored[axis] for axis in self.order)
        return z, y, x

    def show(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return a volume stored as (i, j, k), or (i, j, k, 3), as (slices, rows, columns), C-contiguous."""
        axes = *self.order, *range(3, stored.ndim)
        return np.ascontiguousarray(np.flip(stored.transpose(axes), self.flips))

    def store(self, shown: NDArray[Any]) -> NDArray[Any]:
        """Return a volume (slices, rows, columns) as it is stored, (i, j, k): what `show` undoes."""
        return np.flip(shown, self.flips).transpose(np.argsort(self.order))

    def show_boxes(self, boxes: Boxes, shape: tuple[int, ...]) -> Boxes:
        """Return boxes of a volume stored with a shape (i, j, k) as boxes of what is seen.

        Of the given ones, which have slices, x, y and z count voxels along i, j and k. A box names its first
        and its last voxel, so that there and back it stays where it was; one that ends at the volume's far
        side, by one more than the last voxel, ends at that one.
        """
        z = np.asarray(boxes.z)
        low = np.column_stack([boxes.xyxy[:, :2], z[:, 0]])
        high = np.minimum(np.column_stack([boxes.xyxy[:, 2:], z[:, 1]]), np.array(shape) - 1)
        low, high = low[:, list(self.order)], high[:, list(self.order)]
        for axis in self.flips:
            last = shape[self.order[axis]] - 1
            low[:, axis], high[:, axis] = last - high[:, axis], last - low[:, axis]
        xyxy = np.column_stack([low[:, 2], low[:, 1], high[:, 2], high[:, 1]])
        return dataclasses.replace(boxes, xyxy=xyxy, z=np.column_stack([low[:, 0], high[:, 0]])).widened()
