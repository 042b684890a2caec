"""From boxes in any frame to the pixels that they hold, by one rule.

A box holds the pixels whose centres lie in it, edges included; where there is none along an axis, the one
that its middle lies in. So boxes of whole pixels come back as they were from every frame:

    index   a pixel's centre lies at its index: tables and sidecars
    edge    a pixel reaches from its index to the next, its centre lies at + 0.5: COCO, labelme
    RAS     mm to the right, front and top of the patient, as in NIfTI
    LPS     mm to the left, back and top, as in DICOM, ITK and Slicer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.boxes import MAX_BOXES, Boxes
from litemed.runtime.errors import InputError, UsageError

FRAMES: Final = ("index", "edge", "RAS", "LPS")
_TOLERANCE: Final = 1e-3  # of a pixel, by which files round


@dataclass(frozen=True, eq=False)
class Given:
    """A box as a file gives it.

    Attributes:
        corners: (K, 2) x y or (K, 3) x y z, float64, what the box goes round.
        frame: one of `FRAMES`; x, y and z are columns, rows and slices as stored, or those of the patient.
        where: in the file, for messages.
        z: the slice of a volume on which a box of x and y lies.
    """

    corners: NDArray[np.float64]
    frame: str
    where: str
    z: int | None = None


@dataclass(frozen=True, eq=False)
class Grid:
    """The pixels of a case as stored.

    Attributes:
        shape: along x, y and, of a volume, z.
        affine: (4, 4), from indices to RAS in mm; None where the file has no place in the patient.
        spacing: along the same axes in mm; None if not known.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64] | None = None
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Margin:
    """By how much boxes are made larger on every side; along an axis in mm by the nearest number."""

    size: float = 0.0
    in_mm: bool = False

    def pixels(self, grid: Grid, source: object) -> NDArray[np.int64]:
        """Return the number of pixels along each axis. Raises InputError if mm have no spacing."""
        if not self.in_mm:
            return np.full(len(grid.shape), round(self.size), np.int64)
        if grid.spacing is None:
            raise InputError(f"{source}: has no spacing for a margin in mm; give pixels")
        return np.rint(self.size / np.array(grid.spacing[: len(grid.shape)])).astype(np.int64)


def parse_margin(text: str) -> Margin:
    """Return a margin written as a number of pixels, or of mm such as 2.5mm. Raises UsageError."""
    number, in_mm = text.removesuffix("mm"), text.endswith("mm")
    try:
        size = float(number)
        if not 0 <= size <= 1000 or not (in_mm or size.is_integer()):
            raise ValueError
    except ValueError:
        raise UsageError(f"margin {text!a}: give whole pixels, or mm as in 2.5mm, up to 1000") from None
    return Margin(size, in_mm)


def boxes_of(given: Sequence[Given], grid: Grid, margin: Margin, source: object) -> Boxes:
    """Return the pixels that boxes hold, each from its first to its last, on the grid of a case.

    One that holds a single pixel along an axis is not widened yet, see `Boxes.widened`. What reaches out is
    clipped. Raises InputError, which begins with `source`, for a box that does not fit the case.
    """
    if not 0 < len(given) <= MAX_BOXES:
        raise InputError(f"{source}: {len(given)} boxes; give 1 to {MAX_BOXES}")
    ends = np.array([_ends(one, grid, source) for one in given])  # (N, 2, axes)
    grown = np.tile(margin.pixels(grid, source), (len(given), 1))
    on_slice = np.array([one.z is not None for one in given])
    grown[on_slice, 2:] = 0
    first, last = ends[:, 0] - grown, ends[:, 1] + grown
    size = np.array(grid.shape)
    # Boxes given in pixels may end at width and height, see `Boxes.parse`.
    most = np.tile(size - 1, (len(given), 1))
    most[:, :2] += (ends[:, 1] >= size)[:, :2] & np.array([[one.frame == "index"] for one in given])
    for number in np.flatnonzero(((last < 0) | (first >= size)).any(axis=1)).tolist():
        where, sides = given[number].where, " x ".join(map(str, grid.shape))
        raise InputError(f"{source}: {where} lies outside of the image, of {sides} pixels")
    clipped = np.flatnonzero(((first < 0) | (last > most)).any(axis=1)) + 1
    first, last = np.maximum(first, 0), np.minimum(last, most)
    z = np.column_stack([first[:, 2], last[:, 2]]) if len(size) == 3 else None
    return Boxes(np.column_stack([first[:, :2], last[:, :2]]), z, tuple(clipped.tolist()), on_slice)


def _ends(given: Given, grid: Grid, source: object) -> NDArray[np.int64]:
    """Return the first and the last pixel of a box along each axis, (2, axes)."""
    corners, axes = given.corners, len(grid.shape)
    if not np.isfinite(corners).all() or np.abs(corners).max() > 1e9:
        raise InputError(f"{source}: {given.where} is not finite, or too large")
    if given.frame in ("RAS", "LPS"):
        if grid.affine is None or axes != 3 or corners.shape[1] != 3:
            raise InputError(
                f"{source}: {given.where} is in mm of the patient, for which both it and the case must have "
                "three axes and a place there; give pixels"
            )
        if given.frame == "LPS":
            corners = corners * [-1, -1, 1]
        corners = (corners - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T
    elif given.frame == "edge":
        corners = corners - 0.5
    low, high = corners.min(axis=0), corners.max(axis=0)
    first, last = np.ceil(low - _TOLERANCE), np.floor(high + _TOLERANCE)
    first, last = np.where(last < first, np.floor((low + high) / 2 + 0.5), [first, last])
    if len(first) == 2 and axes == 3:
        if given.z is None:
            raise InputError(f"{source}: {given.where} has no z; of a volume give z0 and z1, or a slice z")
        first, last = np.append(first, given.z), np.append(last, given.z)
    elif len(first) != axes or (axes == 2 and given.z is not None):
        raise InputError(f"{source}: {given.where} has a z, but the case is no volume")
    return np.array([first, last]).astype(np.int64)
