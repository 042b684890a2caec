"""One image or volume with its box prompts."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from litemed.runtime.boxes import Boxes
from litemed.runtime.errors import InputError

MAX_SIDE = 65_535  # of a slice in pixels: what is computed for each row or column then takes little memory


@dataclass(frozen=True, eq=False)
class Case:
    """One input of a run; InputError if a slice has a side longer than `MAX_SIDE`, or for a wrong spacing.

    `name` is the file's without its suffix, by which its result is called. `image` is uint8, C-contiguous:
    (height, width) grey, (height, width, 3) in the order R G B, or a volume (depth, height, width).
    `Boxes.parse` checked the `boxes` against it. `spacing` is that of a volume's slices, rows and columns in
    mm, None if the file gives none. `source` is the file it was read from, or None.
    """

    name: str
    image: npt.NDArray[np.uint8]
    boxes: Boxes
    spacing: tuple[float, ...] | None = None
    source: Path | None = None

    def __post_init__(self) -> None:
        """Check what boxes do not."""
        if max(self.shape[-2:]) > MAX_SIDE:
            name = self.source or self.name
            raise InputError(f"{name}: image of shape {self.image.shape}; the longest side is {MAX_SIDE}")
        if self.spacing is not None and not (
            len(self.spacing) == 3 and all(0 < length < math.inf for length in self.spacing)
        ):
            name = self.source or self.name
            raise InputError(f"{name}: spacing {self.spacing} is not that of z, y and x in mm, all above 0")

    @property
    def is_volume(self) -> bool:
        """Whether the image is a volume (depth, height, width)."""
        return self.boxes.z is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape: (height, width) or (depth, height, width), that of the label map."""
        return self.image.shape if self.is_volume else self.image.shape[:2]
