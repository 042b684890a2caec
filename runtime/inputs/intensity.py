"""Turn raw intensities into the 8 bits that the network is fed from.

CT is cut to a window, everything else that is not 8-bit yet to its own percentiles, as published
for MedSAM ("Segment anything in medical images", data curation). 8-bit images stay as they are.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError
from litemed.runtime.inputs.scaling import Scaling, Window

_PIECE: Final = 2**20
# Fat and water are 14 levels apart in the widest window; values scaled to -3 to 3 leave 5 in the usual one.
_LEAST_LEVELS: Final = 8


def to_grey(
    image: NDArray[Any], modality: str | None, scaling: Scaling, source: object
) -> tuple[NDArray[np.uint8], str]:
    """Return an image as uint8, see `to_uint8`, and in words by which rule.

    `modality` is what the case says. Raises InputError as `to_uint8`, and where the modality is not known.
    """
    modality = modality or scaling.modality
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image), "as stored"
    if modality is None:
        raise InputError(
            f"{source}: modality unknown, by which its values become grey; begin its name with it "
            "(CT_..., MR_...) or give --modality"
        )
    levels = to_uint8(image, modality, scaling.window, source)
    if modality == "CT":
        return levels, f"CT, level {scaling.window.level:g}, width {scaling.window.width:g}"
    return levels, f"{modality}, percentiles 0.5 to 99.5 of what is not 0"


def to_uint8(
    image: NDArray[Any], modality: str, window: Window, source: object = "image"
) -> NDArray[np.uint8]:
    """Return `image`, of any shape, as uint8.

    image: integers or floats in the scanner's units. uint8 is returned as it is, whatever the modality.
    NaN and infinite values are background; a constant image becomes zeros, CT excepted.

    Raises InputError for CT in unsigned integers, which are not Hounsfield units, CT that the window leaves
    almost nothing of, images without a finite value, and complex values.
    """
    if image.dtype == np.bool_:
        image = image * np.uint8(255)
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    ct = modality == "CT"
    if image.dtype.kind not in ("if" if ct else "iuf"):
        wanted = "in Hounsfield units" if ct else "in integers or floats"
        raise InputError(f"{source}: {modality} in {image.dtype} is not {wanted}; convert it")
    if image.dtype.kind == "f" and not np.isfinite(image).any():
        raise InputError(f"{source}: has no finite value; save it again")
    result = np.zeros(image.shape, np.uint8)
    if ct:
        low, high = window.level - window.width / 2, window.level + window.width / 2
    else:
        values = image[_inside(image, ct)]
        low, high = map(float, np.percentile(values, (0.5, 99.5))) if values.size else (0.0, 0.0)
    if not high > low:
        return result
    given, scaled = np.ascontiguousarray(image).reshape(-1), result.reshape(-1)
    # In pieces: several float copies of a whole CT volume would not fit a laptop once for each worker.
    for start in range(0, given.size, _PIECE):
        values = given[start : start + _PIECE]
        levels = np.where(_inside(values, ct), values, low).astype(np.float32)
        levels = (np.clip(levels, low, high) - np.float32(low)) * np.float32(255 / (high - low))
        scaled[start : start + _PIECE] = np.rint(levels)
    if ct and (levels_left := int(np.ptp(result)) + 1) < _LEAST_LEVELS:
        values = image[_inside(image, ct)]
        raise InputError(
            f"{source}: CT from {values.min():g} to {values.max():g} has {levels_left} of 256 grey levels in "
            f"the window from {low:g} to {high:g}; give Hounsfield units, or another --window"
        )
    return result


def _inside(values: NDArray[Any], ct: bool) -> NDArray[np.bool_]:
    """Return what shows the patient; as published, what is exactly 0 is outside unless it is CT."""
    return np.isfinite(values) & (ct | (values != 0))
