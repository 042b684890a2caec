"""Bounding-box prompts: checked and clipped once, trusted afterwards; scaled to the network's input."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from litemed.runtime.errors import InputError
from litemed.runtime.preprocess import Frame

PROFILE_FLOOR = 0.15
"""Of the squared sides of an ellipsoid's cross-section: at its ends there is a box, too."""

# Label 65535 is the last that a uint16 label map holds.
MAX_BOXES = 65_535

_INT64_MAX = np.iinfo(np.int64).max
# The first float that int64 does not hold; as a float64, because a float16 beside a Python float overflows.
_PAST_INT64 = np.float64(2.0**63)


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of one image, numbered from 1 in the order given; box i becomes label i.

    Made by `parse`, which checks them.

    Attributes:
        xyxy: int64 (N, 4), x0 y0 x1 y1 in pixels of the original image, 0 <= x0 < x1 <= width and
            0 <= y0 < y1 <= height.
        z: int64 (N, 2), first and last slice, both inclusive; None for a 2D image.
        clipped: 1-based numbers of the boxes that reached out of the image or volume and were cut.
        on_slice: bool (N,), which were drawn on one slice of a volume, for its object there and not to say
            where it ends; None: none of them.
    """

    xyxy: NDArray[np.int64]
    z: NDArray[np.int64] | None
    clipped: tuple[int, ...] = ()
    on_slice: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.xyxy)

    @classmethod
    def parse(cls, array: npt.ArrayLike, shape_of_image: tuple[int, ...], source: str = "boxes") -> Boxes:
        """Check boxes against their image and clip what reaches out of it.

        Args:
            array: (N, 4) as x0 y0 x1 y1 for an image, (N, 6) as x0 y0 z0 x1 y1 z1 for a volume, in
                pixels and slices of the original image, z0 and z1 both inclusive; or (N, 5) as x0 y0 x1 y1 z,
                drawn on one slice of a volume each.
            shape_of_image: (height, width) or (height, width, 3) of an image, (depth, height, width)
                or (depth, height, width, 3) of a volume. A last axis of 3 is always colour.
            source: names the boxes in error messages.

        Integers of any dtype and floats that are whole numbers are taken; what is partly outside is clipped.
        Refused are: none at all, more than 65535, other shapes and dtypes, (N, 6) for an image and (N, 4) for
        a volume, NaN, infinity, fractions, boxes inverted or without area, and wholly outside.

        Raises:
            InputError: a box is refused; the message numbers the first one, from 1, and counts the others.
        """
        depth, height, width = _extent(shape_of_image, source)
        corners, on_slice = _whole_numbers(_table(array, depth is not None, source), source), None
        if corners.shape[1] == 5:
            corners, on_slice = corners[:, [0, 1, 4, 2, 3, 4]], np.ones(len(corners), np.bool_)
        columns = (0, 1, 3, 4) if depth is not None else (0, 1, 2, 3)
        x0, y0, x1, y1 = (corners[:, column] for column in columns)
        _refuse(source, corners, (x1 <= x0) | (y1 <= y0), "needs x0 < x1 and y0 < y1")
        size = f"is outside the image of {width} x {height} pixels (width x height)"
        _refuse(source, corners, (x1 <= 0) | (y1 <= 0) | (x0 >= width) | (y0 >= height), size)
        given = np.stack([x0, y0, x1, y1], axis=1)
        xyxy = np.clip(given, 0, np.array([width, height, width, height], np.int64))
        cut, z = (xyxy != given).any(axis=1), None
        if depth is not None:
            given_z = corners[:, [2, 5]]
            first, last = given_z.T
            _refuse(source, corners, last < first, "needs z0 <= z1")
            _refuse(source, corners, (last < 0) | (first >= depth), f"is outside slices 0 to {depth - 1}")
            z = np.clip(given_z, 0, depth - 1)
            cut |= (z != given_z).any(axis=1)
        return cls(xyxy, z, tuple((np.flatnonzero(cut) + 1).tolist()), on_slice)

    def widened(self) -> Boxes:
        """Return the same, with boxes of one pixel as wide as the challenge's of such objects are."""
        low, high = self.xyxy[:, :2], np.maximum(self.xyxy[:, 2:], self.xyxy[:, :2] + 1)
        return replace(self, xyxy=np.concatenate([low, high], axis=1))


def scale_boxes(
    xyxy: NDArray[np.int64] | NDArray[np.floating], frame: Frame, fractions: bool = False
) -> NDArray[np.float32]:
    """Return boxes in the coordinates of the network's input, float32 (N, 4), x0 y0 x1 y1.

    `xyxy` is (N, 4), pixels of the original image. Each coordinate is multiplied by 256 / longest side, and
    unless `fractions` are kept truncated to an integer, as published.
    """
    scaled = xyxy * (frame.size / max(frame.height, frame.width))
    return (scaled if fractions else np.trunc(scaled)).astype(np.float32)


def shrink(xyxy: NDArray[np.int64] | NDArray[np.float64], offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shrink boxes (n, 4) about their centres to an ellipsoid's cross-sections.

    `offset` (n,), from -1 to 1, is where the section lies along the axis across it, 0 being the middle.
    """
    factor = np.sqrt(np.maximum(PROFILE_FLOOR, 1 - offset**2))[:, np.newaxis]
    centre, half = (xyxy[:, :2] + xyxy[:, 2:]) / 2, (xyxy[:, 2:] - xyxy[:, :2]) / 2
    return np.concatenate([centre - factor * half, centre + factor * half], axis=1)


def is_image(shape: tuple[int, ...]) -> bool:
    """Return whether an array of a shape is (H, W) or (H, W, 3), of which the last axis is always colour."""
    return len(shape) == 2 or shape[2:] == (3,)


def _extent(shape: tuple[int, ...], source: str) -> tuple[int | None, int, int]:
    """Return depth (None in 2D), height and width of an image's shape."""
    if is_image(shape):
        return None, shape[0], shape[1]
    if len(shape) == 3 or (len(shape) == 4 and shape[3] == 3):
        return shape[:3]
    raise InputError(
        f"{source}: an image of shape {tuple(shape)} takes no boxes; give (height, width), "
        "(height, width, 3), (depth, height, width) or (depth, height, width, 3)"
    )


def _table(array: npt.ArrayLike, is_volume: bool, source: str) -> np.ndarray:
    """Return the boxes as an array of a numeric dtype and the right shape."""
    try:
        table = np.asarray(array)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{source}: not a table of numbers; give (N, 4) or (N, 6)") from error
    if table.size == 0:
        raise InputError(f"{source}: there are no boxes; give at least one")
    if table.ndim != 2 or table.shape[1] not in ((6, 5) if is_volume else (4,)):
        needed = (
            "volume needs (N, 6) as x0 y0 z0 x1 y1 z1" if is_volume else "image needs (N, 4) as x0 y0 x1 y1"
        )
        raise InputError(f"{source}: boxes have shape {table.shape}; the {needed}")
    if len(table) > MAX_BOXES:
        raise InputError(f"{source}: {len(table)} boxes; the most is {MAX_BOXES}")
    if table.dtype.kind not in "iuf":
        raise InputError(f"{source}: boxes have dtype {table.dtype}; give integers")
    return table


def _whole_numbers(table: np.ndarray, source: str) -> NDArray[np.int64]:
    """Return the boxes in int64; refuses what an integer pixel cannot be."""
    if table.dtype.kind == "f":
        _refuse(source, table, ~np.isfinite(table).all(axis=1), "is not finite")
        _refuse(source, table, (table != np.floor(table)).any(axis=1), "is not in whole pixels")
        _refuse(source, table, np.any(np.abs(table) >= _PAST_INT64, axis=1), "is too large")
    elif table.dtype.kind == "u":
        _refuse(source, table, np.any(table > _INT64_MAX, axis=1), "is too large")
    return table.astype(np.int64)


def _refuse(source: str, table: np.ndarray, bad: NDArray[np.bool_], why: str) -> None:
    """Raise an InputError if any row is marked as bad."""
    if not bad.any():
        return
    first = int(np.argmax(bad))
    values = ", ".join(f"{value:g}" if table.dtype.kind == "f" else str(value) for value in table[first])
    others = f" (and {bad.sum() - 1} more)" if bad.sum() > 1 else ""
    raise InputError(f"{source}: box {first + 1} [{values}] {why}{others}")
