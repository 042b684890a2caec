"""Coronal and sagittal planes through a 3D box, whose logits correct those of its slices.

Slice by slice the network does not see an object whole, and near its ends it has little to go by. So a few
planes across the slices are prompted by the box as slices are (shrunk like an ellipsoid's cross-section),
their logits are interpolated between them, and within the box the mean of the three directions takes the
place of a slice's own logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from litemed.runtime.boxes import scale_boxes, shrink
from litemed.runtime.inference import Inference
from litemed.runtime.preprocess import Frame
from litemed.runtime.resize import interpolate

MOST_PLANES = 4
"""Planes of each direction; eight were no better."""

LEAST_SLICES = 16
"""A box of fewer slices gets no planes: they would show too little of its object."""

# Slices thicker than that many pixels are stretched to so many.
_MOST_STRETCH = 8.0

Float = NDArray[np.float32]


def planes_per_box(xyxy: NDArray[np.int64], z: NDArray[np.int64], slices: int) -> NDArray[np.int64]:
    """Return how many planes of either direction each box gets, (N,).

    Args:
        xyxy: (N, 4) boxes in pixels of a slice.
        z: (N, 2) their first and last slices.
        slices: how many are encoded: all planes of a case together are not more.
    """
    sides = (xyxy[:, 2:] - xyxy[:, :2]).min(axis=1, initial=2**31)
    eligible = (z[:, 1] - z[:, 0] + 1 >= LEAST_SLICES) & (sides >= MOST_PLANES)
    each = min(MOST_PLANES, slices // (2 * max(1, int(eligible.sum()))))
    return np.where(eligible, each if each > 1 else 0, 0)


@dataclass(frozen=True, eq=False)
class _Direction:
    """Logits of the planes of one direction at the network's pixels of each slice.

    Attributes:
        values: float32 (planes, slices, pixels along a plane).
        between: float64 (pixels across the planes,), the plane, in fractions, that each of them lies at.
    """

    values: Float
    between: NDArray[np.floating]


class CrossPlanes:
    """What the planes of one box say of its slices.

    Args:
        inference: encodes and decodes the planes.
        volume: uint8 (D, H, W) or (D, H, W, 3).
        box: int64 (4,), x0 y0 x1 y1 in pixels of a slice.
        z: int64 (2,), its first and last slice.
        spacing: of slices, rows and columns in mm; None if not known: a slice is then as thick as a pixel is
            wide.
        frame: of a slice.
        count: planes of each direction.
    """

    def __init__(
        self,
        inference: Inference,
        volume: NDArray[np.uint8],
        box: NDArray[np.int64],
        z: NDArray[np.int64],
        spacing: tuple[float, ...] | None,
        frame: Frame,
        count: int,
    ) -> None:
        self._inference, self._volume, self._z, self._count = inference, volume, z, count
        x0, y0, x1, y1 = box.tolist()
        # The network's pixels on a slice whose centres, in pixels of the slice, lie in the box.
        x = (np.arange(frame.scaled_width) + 0.5) * (frame.width / frame.scaled_width)
        y = (np.arange(frame.scaled_height) + 0.5) * (frame.height / frame.scaled_height)
        columns, rows = np.flatnonzero((x0 <= x) & (x < x1)), np.flatnonzero((y0 <= y) & (y < y1))
        self._within = np.ix_(rows, columns)
        thickness = (1.0, 1.0) if spacing is None else (spacing[0] / spacing[1], spacing[0] / spacing[2])
        self._coronal = self._decode(1, (y0, y1), (x0, x1), y[rows], x[columns], thickness[1])
        self._sagittal = self._decode(2, (x0, x1), (y0, y1), x[columns], y[rows], thickness[0])

    def correct(self, logits: Float, position: int) -> None:
        """Put the mean of the three directions into a slice's logits (S, S), within the box."""
        index = position - self._z[0]
        coronal = interpolate(self._coronal.values[:, index], self._coronal.between, axis=0)
        sagittal = interpolate(self._sagittal.values[:, index], self._sagittal.between, axis=0)
        logits[self._within] = (logits[self._within] + coronal + sagittal.T) / 3

    def _decode(
        self,
        axis: int,
        across: tuple[int, int],
        along: tuple[int, int],
        pixels_across: NDArray[np.floating],
        pixels_along: NDArray[np.floating],
        thickness: float,
    ) -> _Direction:
        """Encode and decode the planes that cut an axis of the volume.

        Args:
            axis: 1 or 2.
            across: where the box begins and ends on that axis.
            along: where it begins and ends on the other one.
            pixels_across: centres of the network's pixels on that axis, in pixels of a slice.
            pixels_along: the same on the other one.
            thickness: of a slice in pixels of the other axis.
        """
        (low, high), (first, last) = across, self._z.tolist()
        places = np.floor(low + (np.arange(self._count) + 0.5) * (high - low) / self._count).astype(np.int64)
        places = np.minimum(places, self._volume.shape[axis] - 1)
        stretch = min(max(thickness, 1.0), _MOST_STRETCH)
        # Not much higher than a slice is wide: deeper ones would leave the box few of the network's pixels.
        width, slices = self._volume.shape[3 - axis], last - first + 1
        margin = max(round(width / stretch) - slices, slices) // 2
        begin, end = max(first - margin, 0), min(last + 1 + margin, len(self._volume))
        ends_with_volume = first == 0, last == len(self._volume) - 1
        first, last, depth = first - begin, last - begin, end - begin
        height = round(depth * stretch)
        scale = height / depth
        values = []
        for place in places.tolist():
            image = np.ascontiguousarray(self._volume[begin:end].take(place, axis=axis))
            if height != depth:
                image = cv2.resize(image, (image.shape[1], height), interpolation=cv2.INTER_LINEAR)
            frame = Frame.of(image.shape[0], image.shape[1], self._inference.size)
            box = np.array([[along[0], first * scale, along[1], (last + 1) * scale]])
            prompt = shrink(box, np.array([(2 * place + 1 - low - high) / (high - low)]))
            # Where the box ends with the volume, its object probably does not end there.
            prompt[:, 1] = box[:, 1] if ends_with_volume[0] else prompt[:, 1]
            prompt[:, 3] = box[:, 3] if ends_with_volume[1] else prompt[:, 3]
            embedding = self._inference.encode(image)
            logits = self._inference.decode(embedding, scale_boxes(prompt, frame))[0][0]
            rows = (np.arange(first, last + 1) + 0.5) * scale * (frame.scaled_height / frame.height) - 0.5
            columns = pixels_along * (frame.scaled_width / frame.width) - 0.5
            logits = logits[: frame.scaled_height, : frame.scaled_width]
            values.append(interpolate(interpolate(logits, rows, axis=0), columns, axis=1))
        between = np.interp(pixels_across, places + 0.5, np.arange(self._count))
        return _Direction(np.stack(values), between)
