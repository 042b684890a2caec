"""The 14 cases of the paper's Table 4, and the files that stand for them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from litemed.benchmarks.phantoms import Phantom, draw_image, draw_volume
from litemed.runtime.errors import UsageError
from litemed.runtime.readers import read_case

# Share of a stand-in volume's slices that each object spans: an assumption.
COVERAGE = 0.1


class Row(NamedTuple):
    """A case as the paper lists it: its ID, (H, W, 3) or (D, H, W) in 3D, and how many boxes."""

    name: str
    shape: tuple[int, int, int]
    objects: int


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


def find_rows(names: Sequence[str]) -> tuple[Row, ...]:
    """Return rows by name, in the paper's order, or all of them; raises UsageError for one there is not."""
    if unknown := set(names) - {row.name for row in ROWS}:
        raise UsageError(
            f"{min(unknown)}: no row of Table 4; choose of {', '.join(row.name for row in ROWS)}"
        )
    return tuple(row for row in ROWS if not names or row.name in names)


def draw(row: Row) -> Phantom:
    """Draw the stand-in of a row; it follows from the row's name alone."""
    seed = zlib.crc32(row.name.encode())
    if row.name.startswith("3D"):
        return draw_volume(*row.shape, row.objects, seed, COVERAGE)
    return draw_image(row.shape[0], row.shape[1], row.objects, seed)


def prepare(row: Row, real: Path | None, folder: Path) -> tuple[Path, bool]:
    """Find a row's file in `real`, the folder of the challenge's, or draw its stand-in into `folder`.

    Returns the file, and whether it was drawn.
    Raises UsageError where the real file has another shape or number of boxes than the paper says.
    """
    path = (real or folder) / f"{row.name}.npz"
    if stand_in := real is None or not path.exists():
        path = folder / path.name
        if not path.exists():
            draw(row).write(path)
    case = read_case(path)
    if case.image.shape != row.shape or len(case.boxes) != row.objects:
        raise UsageError(
            f"{path}: has shape {case.image.shape} and {len(case.boxes)} boxes, in Table 4 it is {row.shape} "
            f"and {row.objects}; give another --cases"
        )
    return path, stand_in
