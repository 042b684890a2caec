"""The 14 cases of the paper's Table 4, and the files that stand for them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from litemed.benchmarks.phantoms import Phantom, draw_image, draw_volume
from litemed.runtime.case import Case
from litemed.runtime.errors import UsageError
from litemed.runtime.files import atomic_write, make_folder, sha256_of_file
from litemed.runtime.npz import write_npz
from litemed.runtime.readers import read_case


@dataclass(frozen=True)
class Row:
    """A case as the paper lists it.

    Attributes:
        name: its ID, the file's name without suffix.
        shape: of the image: (H, W, 3), or (D, H, W) in 3D.
        objects: number of boxes.
    """

    name: str
    shape: tuple[int, int, int]
    objects: int

    @property
    def is_volume(self) -> bool:
        """Whether it is a 3D case."""
        return self.name.startswith("3D")


ROWS = (
    Row("3DBox_CT_0566", (287, 512, 512), 6),
    Row("3DBox_CT_0888", (237, 512, 512), 6),
    Row("3DBox_CT_0860", (246, 512, 512), 1),
    Row("3DBox_MR_0621", (115, 400, 400), 6),
    Row("3DBox_MR_0121", (64, 290, 320), 6),
    Row("3DBox_MR_0179", (84, 512, 512), 1),
    Row("3DBox_PET_0001", (264, 200, 200), 1),
    Row("2DBox_US_0525", (256, 256, 3), 1),
    Row("2DBox_X-Ray_0053", (320, 640, 3), 34),
    Row("2DBox_Dermoscopy_0003", (3024, 4032, 3), 1),
    Row("2DBox_Endoscopy_0086", (480, 560, 3), 1),
    Row("2DBox_Fundus_0003", (2048, 2048, 3), 1),
    Row("2DBox_Microscope_0008", (1536, 2040, 3), 19),
    Row("2DBox_Microscope_0016", (1920, 2560, 3), 241),
)


@dataclass(frozen=True)
class Prepared:
    """A row's file.

    Attributes:
        row: what the paper lists.
        path: the npz.
        sha256: of its bytes.
        stand_in: whether it was drawn, because the real one is not at hand.
        slices: how many slices at least one box covers; 1 in 2D.
        prompts: pairs of a box and a slice, the decoder's work; in 2D the boxes.
    """

    row: Row
    path: Path
    sha256: str
    stand_in: bool
    slices: int
    prompts: int

    @property
    def name(self) -> str:
        """The row's name, with a mark if the case was drawn."""
        return f"{self.row.name} †" if self.stand_in else self.row.name


def find_rows(names: Sequence[str]) -> tuple[Row, ...]:
    """Return rows by name, in the paper's order; all of them if no name is given.

    Raises:
        UsageError: there is no such row.
    """
    known = {row.name for row in ROWS}
    for name in names:
        if name not in known:
            raise UsageError(f"{name}: no row of Table 4; choose of {', '.join(sorted(known))}")
    return tuple(row for row in ROWS if not names or row.name in names)


def draw(row: Row, coverage: float) -> Phantom:
    """Draw the stand-in of a row; it follows from the row's name and the coverage alone."""
    seed = zlib.crc32(row.name.encode())
    if row.is_volume:
        depth, height, width = row.shape
        return draw_volume(depth, height, width, row.objects, seed, coverage)
    return draw_image(row.shape[0], row.shape[1], row.objects, seed)


def prepare(row: Row, real: Path | None, folder: Path, coverage: float) -> Prepared:
    """Find a row's real file, or draw its stand-in.

    Args:
        row: the row.
        real: folder of the challenge's files, if there is one; a file that is absent is drawn.
        folder: where stand-ins go, each in a folder of its own; one that lies there already is taken.
        coverage: share of a volume's slices that each object of a stand-in spans.

    Raises:
        InputError: the file is not a readable case.
        UsageError: the real file has another shape or number of boxes than the paper says.
    """
    path = real / f"{row.name}.npz" if real else None
    stand_in = path is None or not path.exists()
    if path is None or stand_in:
        path = folder / f"{row.name}-{coverage:g}" / f"{row.name}.npz"
        if not path.exists():
            phantom = draw(row, coverage)
            write_case(path, phantom.image, phantom.boxes, phantom.spacing)
    case = read_case(path)
    if case.image.shape != row.shape or len(case.boxes) != row.objects:
        raise UsageError(
            f"{path}: has shape {case.image.shape} and {len(case.boxes)} boxes, in Table 4 it is {row.shape} "
            f"and {row.objects}; give another --cases"
        )
    slices, prompts = workload(case)
    return Prepared(row, path, sha256_of_file(path), stand_in, slices, prompts)


def workload(case: Case) -> tuple[int, int]:
    """Return how many slices at least one box of a case covers, and how many pairs of box and slice."""
    if case.boxes.z is None:
        return 1, len(case.boxes)
    ranges = [range(low, high + 1) for low, high in case.boxes.z.tolist()]
    return len(set().union(*ranges)), sum(map(len, ranges))


def write_case(
    path: Path, image: np.ndarray, boxes: np.ndarray, spacing: tuple[float, ...] | None = None
) -> None:
    """Write a case in the challenge's layout, with the folder it lies in."""
    make_folder(path.parent)
    arrays = {"imgs": image, "boxes": boxes}
    if spacing is not None:
        arrays["spacing"] = np.array(spacing)
    with atomic_write(path) as file:
        write_npz(file, arrays)
