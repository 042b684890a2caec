"""What a user decides about slices and test cases."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class CaseSettings(Settings):
    """How pairs become test cases.

    max_slices: volumes are cropped to that many slices, those that hold most labelled voxels.
    max_boxes: only the largest objects are kept.
    jitter: every edge of a box moves by a random amount of at most this share of the box's width
    or height; z is left alone. The same name gives the same boxes.
    """

    max_slices: int | None = None
    max_boxes: int | None = None
    jitter: float = 0.0
