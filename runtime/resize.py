"""Logits resized to the image, block by block: only where a value of 0 or more may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.preprocess import Frame

BLOCK_ELEMENTS = 1 << 17
"""Elements of a block: 512 KiB of float32. With less, numpy's calls cost more than the caches save
(1920 x 2560, masks everywhere: 19 ms a box at 2**16, 15 at 2**17, 13 at 2**18, AMD EPYC 7003); with more, two
buffers of a block no longer fit a laptop's L2 cache."""

# An interpolated value is negative if the four samples around it are, unless products of tiny numbers round
# to zero. No product of two weights is below 2**-52, so with samples below this none does.
_SURELY_NEGATIVE = np.float32(-1e-20)


Crop = tuple[slice, slice]
"""Rows and columns of a label map."""

Block = tuple[slice, slice, NDArray[np.float32]]
"""Rows and columns of a label map, and the values there."""


def crop_of(box: NDArray[np.int64]) -> Crop:
    """Return the rows and columns of a box (4,), x0 y0 x1 y1, both ends inclusive."""
    x0, y0, x1, y1 = box.tolist()
    return slice(y0, y1 + 1), slice(x0, x1 + 1)


@dataclass(frozen=True)
class AxisTable:
    """Between which two samples each output position of one axis lies, and how much each of them weighs.

    All (n_out,): `lower` and `upper` are int64 indices into the samples, neither ever decreases;
    `lower_weight` + `upper_weight` = 1, float32.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    lower_weight: NDArray[np.float32]
    upper_weight: NDArray[np.float32]

    @classmethod
    def of(cls, n_in: int, n_out: int) -> AxisTable:
        """Return the table from `n_in` samples to `n_out` positions, half-pixel centres, edges repeated.

        The weights are those of PyTorch's `interpolate(align_corners=False)` in float32: the step is rounded
        to float32, the position only once, as by the fused multiply-add that PyTorch is compiled to. (Rounded
        otherwise, logits of +-10 differ by up to 4e-4.)
        """
        step = np.float64(np.float32(n_in) / np.float32(n_out))
        position = (step * (np.arange(n_out) + 0.5) - 0.5).astype(np.float32)
        np.maximum(position, 0, out=position)
        lower = np.minimum(position.astype(np.int64), n_in - 1)
        upper_weight = np.minimum(position - lower.astype(np.float32), np.float32(1))
        return cls(
            lower=lower,
            upper=np.minimum(lower + 1, n_in - 1),
            lower_weight=np.float32(1) - upper_weight,
            upper_weight=upper_weight,
        )

    def reach(self, samples: slice) -> slice:
        """Return the output positions that read at least one of `samples`."""
        start = np.searchsorted(self.upper, samples.start, side="left")
        stop = np.searchsorted(self.lower, samples.stop - 1, side="right")
        return slice(int(start), int(stop))

    def read_by(self, positions: slice) -> slice:
        """Return the samples that the output `positions` (at least one) read."""
        return slice(int(self.lower[positions.start]), int(self.upper[positions.stop - 1]) + 1)


class LogitResizer:
    """Resizes logit planes of one frame to the original size; it begins at `top` and `left` of the label map.

    The tables and buffers are made once for a frame. Every output element comes from the same float32
    multiplications and additions, first along the row and then along the column, whichever block it is
    computed in: a block is bitwise equal to its part of the full plane. (cv2.resize of a part is not.)
    """

    def __init__(self, frame: Frame, top: int = 0, left: int = 0) -> None:
        self.frame = frame
        self._top, self._left = top, left
        self._rows = AxisTable.of(frame.scaled_height, frame.height)
        self._columns = AxisTable.of(frame.scaled_width, frame.width)
        # At least one row at a time, however long.
        self._buffer_elements = max(BLOCK_ELEMENTS, frame.width)
        self._values = np.empty(self._buffer_elements, np.float32)
        self._upper = np.empty(self._buffer_elements, np.float32)

    def resize(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return one plane (size, size) float32 without its padding at the original size, (H, W) float32."""
        out = np.empty((self.frame.height, self.frame.width), np.float32)
        everywhere = np.ones((self.frame.scaled_height, self.frame.scaled_width), bool)
        for rows, columns, values in self._blocks(logits, everywhere):
            out[rows, columns] = values
        return out

    def winnable_blocks(self, logits: NDArray[np.float32], crop: Crop | None = None) -> Iterator[Block]:
        """Yield rows and columns of the label map and values of blocks that hold all values >= 0 of a plane.

        `logits` is one plane (size, size) float32; `crop`, rows and columns of the label map, leaves out what
        lies elsewhere. The blocks do not overlap. `values` is a buffer: it is overwritten when the next
        block is asked for.
        """
        if crop is not None:
            crop = _moved(crop[0], -self._top), _moved(crop[1], -self._left)
        for rows, columns, values in self._blocks(logits, self._support(logits), crop):
            yield _moved(rows, self._top), _moved(columns, self._left), values

    def winnable_rows(self, logits: NDArray[np.float32]) -> slice:
        """Return the rows of the label map outside which a plane (size, size) has no value >= 0."""
        sample_rows = _extent(self._support(logits).any(axis=1))
        return slice(0, 0) if sample_rows is None else _moved(self._rows.reach(sample_rows), self._top)

    def _support(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        return logits[: self.frame.scaled_height, : self.frame.scaled_width] >= _SURELY_NEGATIVE

    def _blocks(
        self, logits: NDArray[np.float32], support: NDArray[np.bool_], crop: Crop | None = None
    ) -> Iterator[Block]:
        """Yield the blocks that read a sample where `support` (scaled size) is set, within `crop`."""
        sample_rows = _extent(support.any(axis=1))
        sample_columns = _extent(support.any(axis=0))
        if sample_rows is None or sample_columns is None:
            return
        rows, columns = self._rows.reach(sample_rows), self._columns.reach(sample_columns)
        if crop is not None:
            rows, columns = common(rows, crop[0]), common(columns, crop[1])
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return  # nothing of it in the crop; or an image smaller than the network's input skips samples
        read = self._rows.read_by(rows)
        stretched = self._stretch(logits[read], columns)
        height = max(1, self._buffer_elements // (columns.stop - columns.start))
        for start in range(rows.start, rows.stop, height):
            strip = slice(start, min(start + height, rows.stop))
            # A stray positive sample far off would make every strip as wide as the whole.
            inside = _extent(support[self._rows.read_by(strip), sample_columns].any(axis=0))
            if inside is None:
                continue
            shifted = slice(inside.start + sample_columns.start, inside.stop + sample_columns.start)
            part = common(self._columns.reach(shifted), columns)
            if part.start >= part.stop:
                continue
            needed = self._rows.read_by(strip)
            within = stretched[
                needed.start - read.start : needed.stop - read.start,
                part.start - columns.start : part.stop - columns.start,
            ]
            yield strip, part, self._combine(within, needed.start, strip)

    def _stretch(self, samples: NDArray[np.float32], columns: slice) -> NDArray[np.float32]:
        """Return rows of samples interpolated along the row to the output `columns`."""
        table = self._columns
        stretched = samples[:, table.lower[columns]]
        stretched *= table.lower_weight[columns]
        upper = samples[:, table.upper[columns]]
        upper *= table.upper_weight[columns]
        stretched += upper
        return stretched

    def _combine(
        self, stretched: NDArray[np.float32], first_sample: int, strip: slice
    ) -> NDArray[np.float32]:
        """Return the output rows `strip` from stretched rows, of which the first is sample `first_sample`."""
        table, width = self._rows, stretched.shape[1]
        shape = (strip.stop - strip.start, width)
        elements = shape[0] * width
        values = self._values[:elements].reshape(shape)
        upper = self._upper[:elements].reshape(shape)
        # mode="clip" only because numpy then writes into `out` without a buffer of its own.
        np.take(stretched, table.lower[strip] - first_sample, axis=0, out=values, mode="clip")
        np.take(stretched, table.upper[strip] - first_sample, axis=0, out=upper, mode="clip")
        values *= table.lower_weight[strip, np.newaxis]
        upper *= table.upper_weight[strip, np.newaxis]
        values += upper
        return values


def interpolate(values: NDArray[np.float32], at: NDArray[np.floating], axis: int) -> NDArray[np.float32]:
    """Return values linearly interpolated at fractional indices of an axis, the ends repeated beyond them."""
    at = np.clip(at, 0, values.shape[axis] - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    weight = (at - low).astype(np.float32)
    weight = weight.reshape(-1, *[1] * (values.ndim - 1 - axis))
    return values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight


def _moved(part: slice, by: int) -> slice:
    return slice(max(0, part.start + by), max(0, part.stop + by))


def common(a: slice, b: slice) -> slice:
    """Return what two slices share; it may be empty, and then start after it stops."""
    return slice(max(a.start, b.start), min(a.stop, b.stop))


def _extent(flags: NDArray[np.bool_] | np.bool_) -> slice | None:
    """Return the slice from the first to the last flag that is set, None if there is none."""
    set_at = np.flatnonzero(flags)
    return slice(int(set_at[0]), int(set_at[-1]) + 1) if set_at.size else None
