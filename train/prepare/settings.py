"""What a user decides about slices and test cases."""

from __future__ import annotations

from dataclasses import dataclass

from litemed.train.prepare.intensity import WINDOWS, Window


@dataclass(frozen=True)
class Settings:
    """How pairs become slices and objects, or test cases.

    window: for CT that is in Hounsfield units.
    components: every connected component of `binary` and `class` labels is an object of its own.
    min_volume_voxels: smaller objects of a volume are left out on all its slices. MedSAM's published limit
    is 1000, for volumes of full resolution; PET and cropped volumes have whole tumours below it.
    min_area_pixels: smaller objects of a slice are left out of it, counted at longest side 256. MedSAM's
    published limit of 100 pixels is 25 so for a slice of 512 x 512; thin lesions in OCT have 13.
    cases: make test cases. Only then: max_slices, to which volumes are cropped, those that hold most labelled
    voxels; max_boxes, of the largest objects; jitter, the largest share of a box's width or height by which
    its edges move at random, in z not at all, and the same for the same name.
    """

    window: Window = WINDOWS["abdomen"]
    components: bool = False
    min_volume_voxels: int = 50
    min_area_pixels: int = 10
    cases: bool = False
    max_slices: int | None = None
    max_boxes: int | None = None
    jitter: float = 0.0
