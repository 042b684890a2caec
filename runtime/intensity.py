"""Turn raw intensities into the 8 bits that the network is fed from.

CT is cut to a window, everything else that is not 8-bit yet to its own percentiles, as published
for MedSAM ("Segment anything in medical images", data curation). 8-bit images stay as they are.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError, UsageError

_PIECE: Final = 2**20
# Fat and water are 14 levels apart in the widest window; values scaled to -3 to 3 leave 5 in the usual one.
_LEAST_LEVELS: Final = 8


@dataclass(frozen=True)
class Window:
    """A CT window: `level` is its centre, `width` its whole extent, both in Hounsfield units."""

    level: float
    width: float

    def __str__(self) -> str:
        """Return it as `parse_window` takes it."""
        return f"{self.level:g},{self.width:g}"


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
    if (name := text.lower().replace(" ", "-")) in WINDOWS:
        return WINDOWS[name]
    try:
        level, width = (float(part) for part in text.split(","))
    except ValueError:
        level = width = np.nan
    if not (np.isfinite(level) and np.isfinite(width) and width > 0):
        known = ", ".join(WINDOWS)
        raise UsageError(f"window {text!r}: use one of {known}, or LEVEL,WIDTH such as 40,400")
    return Window(level, width)


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


@dataclass(frozen=True)
class Scaling:
    """How values that are not 8 bits yet become grey levels.

    Attributes:
        modality: of cases of which neither file nor name says it, one of `MODALITIES`; None: they are refused.
        window: for CT.
    """

    modality: str | None = None
    window: Window = WINDOWS["abdomen"]

    def apply(
        self, image: NDArray[Any], modality: str | None, source: object
    ) -> tuple[NDArray[np.uint8], str]:
        """Return `image` as uint8, see `to_uint8`, and in words by which rule.

        `modality` is what the case says. Raises InputError as `to_uint8`, and where the modality is not known.
        """
        modality = modality or self.modality
        if image.dtype == np.uint8:
            return np.ascontiguousarray(image), "as stored"
        if modality is None:
            raise InputError(
                f"{source}: modality unknown, by which its values become grey; begin its name with it, as in CT_..., "
                "or give --modality"
            )
        levels = to_uint8(image, modality, self.window, source)
        if modality == "CT":
            return levels, f"CT, level {self.window.level:g}, width {self.window.width:g}"
        return levels, f"{modality}, percentiles 0.5 to 99.5 of what is not 0"


def _inside(values: NDArray[Any], ct: bool) -> NDArray[np.bool_]:
    """Return what shows the patient; as published, what is exactly 0 is outside unless it is CT."""
    return np.isfinite(values) & (ct | (values != 0))
