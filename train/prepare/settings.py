"""What a user decides about slices and test cases, in one checked value."""

from __future__ import annotations

from dataclasses import dataclass

from litemed.runtime.errors import UsageError
from litemed.train.prepare.intensity import WINDOWS, Window


@dataclass(frozen=True)
class Settings:
    """How pairs become slices and objects.

    window: for CT that is in Hounsfield units.
    components: every connected component of `binary` and `class` labels is an object of its own.
    min_volume_voxels: smaller objects of a volume are left out on all its slices. MedSAM's published limit
    is 1000, for volumes of full resolution; PET and cropped volumes have whole tumours below it.
    min_area_pixels: smaller objects of a slice are left out of it, counted at longest side 256, so that
    the limit means the same to the network whatever the scanner's resolution. MedSAM's published limit
    of 100 pixels is 25 so for a slice of 512 x 512; thin lesions in OCT have 13.
    """

    window: Window = WINDOWS["abdomen"]
    components: bool = False
    min_volume_voxels: int = 50
    min_area_pixels: int = 10

    def __post_init__(self) -> None:
        for name in ("min_volume_voxels", "min_area_pixels"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')} {getattr(self, name)}: must be at least 1")


@dataclass(frozen=True)
class CaseSettings(Settings):
    """How pairs become test cases.

    max_slices: volumes are cropped to that many slices, those that hold most labelled voxels.
    max_boxes: only the largest objects are kept.
    jitter: every edge of a box moves by a random amount of at most this share of the box's width
    or height; z is left alone. The same seed and name give the same boxes.
    """

    max_slices: int | None = None
    max_boxes: int | None = None
    jitter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_slices", "max_boxes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name.replace('_', ' ')} {value}: must be at least 1")
        if not 0 <= self.jitter < 1:
            raise UsageError(f"jitter {self.jitter}: must be at least 0 and below 1")
