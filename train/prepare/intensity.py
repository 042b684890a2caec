"""Turn raw intensities into the 8 bits that the network is fed from.

CT is cut to a window, everything else that is not 8-bit yet to its own percentiles, as published
for MedSAM ("Segment anything in medical images", data curation). 8-bit images stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError, UsageError

# Percentiles of the non-zero voxels that become 0 and 255.
PERCENTILES: Final = (0.5, 99.5)
_PIECE: Final = 2**20


@dataclass(frozen=True)
class Window:
    """A CT window: `level` is its centre, `width` its whole extent, both in Hounsfield units."""

    level: float
    width: float

    @property
    def low(self) -> float:
        return self.level - self.width / 2

    @property
    def high(self) -> float:
        return self.level + self.width / 2


# "soft-tissue" is the published choice for MedSAM; the others are the usual reading windows.
WINDOWS: Final[dict[str, Window]] = {
    "abdomen": Window(50, 400),
    "bone": Window(400, 1800),
    "brain": Window(40, 80),
    "lung": Window(-600, 1500),
    "mediastinum": Window(50, 350),
    "soft-tissue": Window(40, 400),
}


def parse_window(text: str) -> Window:
    """Return the window that `text` names, or gives as LEVEL,WIDTH in Hounsfield units ("40,400").

    Raises UsageError for anything else.
    """
    name = text.strip().lower().replace(" ", "-").replace("_", "-")
    if name in WINDOWS:
        return WINDOWS[name]
    try:
        level, width = (float(part) for part in text.split(","))
    except ValueError:
        known = ", ".join(WINDOWS)
        raise UsageError(f"window {text!r}: use one of {known}, or LEVEL,WIDTH such as 40,400") from None
    if not (np.isfinite(level) and np.isfinite(width) and width > 0):
        raise UsageError(f"window {text!r}: level and width must be finite, the width above 0")
    return Window(level, width)


def to_uint8(
    image: NDArray[Any], modality: str, window: Window, source: object = "image"
) -> NDArray[np.uint8]:
    """Return `image`, of any shape, as uint8.

    image: integers or floats in the scanner's units. uint8 is returned as it is, whatever the modality.
    NaN and infinite values count as background: they become 0 and do not sway the percentiles.
    A constant image becomes zeros.

    Raises InputError for CT in unsigned integers, which are not Hounsfield units, and for complex values.
    """
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    if image.dtype == np.bool_:
        return image.astype(np.uint8) * np.uint8(255)
    if image.dtype.kind not in "iuf":
        raise InputError(f"{source}: image of type {image.dtype}; give integers or floats")
    if modality == "CT":
        if image.dtype.kind == "u":
            raise InputError(
                f"{source}: CT in {image.dtype} is not in Hounsfield units; give signed integers or floats"
            )
        return _scale(image, window.low, window.high, zero_is_outside=False)
    # As published: what is exactly 0 is outside the patient and stays 0.
    values = image[_inside(image, zero_is_outside=True)]
    if values.size == 0:
        return np.zeros(image.shape, np.uint8)
    low, high = np.percentile(values, PERCENTILES)
    return _scale(image, float(low), float(high), zero_is_outside=True)


def _inside(values: NDArray[Any], zero_is_outside: bool) -> NDArray[np.bool_]:
    inside = np.isfinite(values)
    return inside & (values != 0) if zero_is_outside else inside


def _scale(image: NDArray[Any], low: float, high: float, zero_is_outside: bool) -> NDArray[np.uint8]:
    result = np.zeros(image.shape, np.uint8)
    if not high > low:
        return result
    given, scaled = np.ascontiguousarray(image).reshape(-1), result.reshape(-1)
    # In pieces: several float copies of a whole CT volume would not fit a laptop once for each worker.
    for start in range(0, given.size, _PIECE):
        values = given[start : start + _PIECE]
        inside = _inside(values, zero_is_outside)
        levels = np.where(inside, values, low).astype(np.float32)
        levels = (np.clip(levels, low, high) - np.float32(low)) * np.float32(255 / (high - low))
        scaled[start : start + _PIECE] = np.rint(levels)
    return result
