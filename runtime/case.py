"""One image or volume with its box prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from litemed.runtime.boxes import Boxes
from litemed.runtime.errors import InputError

if TYPE_CHECKING:
    from litemed.runtime.inputs.dicom import Dicom
    from litemed.runtime.inputs.nifti import Nifti
    from litemed.runtime.inputs.raster import Raster

MAX_SIDE = 65_535  # of a slice in pixels: what is computed for each row or column then takes little memory
SPACING_MM = (1e-6, 100.0)  # from electron microscopes to slices that are far apart


def check_spacing(spacing: npt.ArrayLike, name: object) -> tuple[float, float, float]:
    """Return a volume's spacing along z, y and x in mm; raises InputError, which begins with `name`."""
    values, (low, high) = np.asarray(spacing), SPACING_MM
    if values.shape != (3,) or values.dtype.kind not in "iuf":
        raise InputError(f"{name}: spacing is {values.dtype} of shape {values.shape}; give z, y, x in mm")
    if not ((low <= values) & (values <= high)).all():
        raise InputError(
            f"{name}: spacing {values.tolist()}; give z, y, x in mm, each from {low:g} to {high:g}"
        )
    z, y, x = map(float, values)
    return z, y, x


def spacing_doubt(spacing: Sequence[float] | None) -> str:
    """Return a line if a spacing read as z y x may be x y z: of slices and rows the same, of columns not."""
    if spacing is None:
        return ""
    z, y, x = spacing
    if not math.isclose(z, y, rel_tol=1e-3) or math.isclose(y, x, rel_tol=1e-3):
        return ""
    return f"spacing {z:g}, {y:g}, {x:g} is read as z, y, x, but looks like x, y, z"


@dataclass(frozen=True, eq=False)
class Case:
    """One input of a run; InputError if a slice has a side longer than `MAX_SIDE`, or for a wrong spacing.

    `name` is the file's without its suffix, by which its result is called. `image` is uint8, C-contiguous:
    (height, width) grey, (height, width, 3) in the order R G B, or a volume of such slices, (depth, height,
    width) or (depth, height, width, 3). `Boxes.parse` checked the `boxes` against it. `spacing` is that of a
    volume's slices, rows and columns in mm, None if the file gives none. `source` is the file it was read
    from, or None. `intensity` says by which rule its grey levels were made, empty if they were given.
    `origin` is what a scanner's file or files are, if they are, in whose geometry the label map is written.
    `read_values` reads the file's own values again, see `values`; None if they are the image.
    """

    name: str
    image: npt.NDArray[np.uint8]
    boxes: Boxes
    spacing: tuple[float, ...] | None = None
    source: Path | None = None
    intensity: str = ""
    origin: Nifti | Raster | Dicom | None = None
    read_values: Callable[[], npt.NDArray[Any]] | None = None

    def __post_init__(self) -> None:
        """Check what boxes do not."""
        if max(self.shape[-2:]) > MAX_SIDE:
            name = self.source or self.name
            raise InputError(f"{name}: image of shape {self.image.shape}; the longest side is {MAX_SIDE}")
        if self.spacing is not None:
            check_spacing(self.spacing, self.source or self.name)

    @property
    def is_volume(self) -> bool:
        """Whether the image is a volume, grey or in colour."""
        return self.boxes.z is not None

    def values(self) -> npt.NDArray[Any]:
        """Return the file's own values, of the image's shape: before they became grey, rescaled (HU in CT).

        They are read again, so that nobody pays for keeping them. Raises InputError as the reading did.
        """
        values = self.image if self.read_values is None else self.read_values()
        if values.shape != self.image.shape:
            raise InputError(f"{self.source or self.name}: changed while it was segmented; run it again")
        return values

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape: (height, width) or (depth, height, width), that of the label map."""
        return self.image.shape[: 3 if self.is_volume else 2]
