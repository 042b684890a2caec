"""What is measured of each object that was segmented: size, extent, and the values of the image in it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.case import Case
from litemed.runtime.inputs.dicom import Dicom
from litemed.runtime.inputs.nifti import Nifti
from litemed.runtime.inputs.raster import Raster
from litemed.runtime.inputs.view import View

if TYPE_CHECKING:
    from litemed.runtime.report import CaseReport

OBJECTS = "objects.csv"
_COLUMNS = (
    *("case", "label", "pixels", "area_mm2", "volume_ml", "x0", "y0", "z0", "x1", "y1", "z1"),
    *("x_mm", "y_mm", "z_mm", "mean", "sd", "predicted_iou"),
)
_PIECE = 2**20  # pixels taken at once: what is computed of each takes some 50 bytes


@dataclass(frozen=True, slots=True)
class ObjectStatistics:
    """One object. What is not known, or would be of no pixel, is None.

    Attributes:
        label: the number of its box, from 1.
        pixels: of an image or, in a volume, voxels.
        area_mm2: in an image of known pixel spacing.
        volume_ml: in a volume of known spacing.
        extent: first x y (z), then last, both included, in pixels along the input's own stored axes, as the
            boxes of such an input are given.
        extent_mm: its lengths along x, y (and z), from edge to edge.
        mean: of the input's own values: rescaled (HU in CT), not the grey levels that the network sees; of
            colours R, G and B are averaged first. Values that are not finite are left out.
        sd: their standard deviation, the square root of their mean squared difference from the mean.
        predicted_iou: see `Result.predicted_iou`.
    """

    label: int
    pixels: int
    area_mm2: float | None = None
    volume_ml: float | None = None
    extent: tuple[int, ...] | None = None
    extent_mm: tuple[float, ...] | None = None
    mean: float | None = None
    sd: float | None = None
    predicted_iou: float | None = None

    @classmethod
    def of(cls, entry: dict[str, Any]) -> ObjectStatistics:
        """Make one from its JSON; raises KeyError, TypeError or ValueError if it is none."""
        extent, extent_mm = (
            entry[name] and tuple(map(kind, entry[name]))
            for name, kind in (("extent", int), ("extent_mm", float))
        )
        if len(extent or range(4)) not in (4, 6) or len(extent_mm or range(2)) not in (2, 3):
            raise ValueError(f"extent {extent}, {extent_mm} mm")
        names = ("area_mm2", "volume_ml", "mean", "sd", "predicted_iou")
        floats = {name: None if entry[name] is None else float(entry[name]) for name in names}
        return cls(int(entry["label"]), int(entry["pixels"]), extent=extent, extent_mm=extent_mm, **floats)


def measure(
    case: Case, labels: NDArray[np.unsignedinteger], predicted_iou: NDArray[np.float64]
) -> tuple[ObjectStatistics, ...]:
    """Measure each object of a case, those without a pixel too.

    Args:
        case: what was segmented.
        labels: of the case's spatial shape; label i belongs to box i.
        predicted_iou: (N,), NaN where there is none.

    Raises InputError as `Case.values`.
    """
    count = len(case.boxes)
    pixels, mean, squares = np.zeros(count + 1, np.int64), np.zeros(count + 1), np.zeros(count + 1)
    with_value = np.zeros(count + 1, np.int64)
    low, high = np.full((3, count + 1), 2**62), np.full((3, count + 1), -1)  # of slices, rows and columns
    for at, numbers, values in _pieces(labels, case.values(), case.is_volume):
        for axis, places in enumerate(at):
            np.minimum.at(low[axis], numbers, places)
            np.maximum.at(high[axis], numbers, places)
        pixels += np.bincount(numbers, minlength=count + 1)
        finite = np.isfinite(values)
        numbers, values = numbers[finite], values[finite]
        # As Chan, Golub and LeVeque (1979) put sums of squares about means together, which cancels nothing.
        here = np.bincount(numbers, minlength=count + 1)
        both = np.maximum(with_value + here, 1)
        own = np.bincount(numbers, values, count + 1) / np.maximum(here, 1)
        apart = own - mean
        squares += np.bincount(numbers, (values - own[numbers]) ** 2, count + 1)
        squares += apart**2 * (with_value * here / both)
        mean += apart * (here / both)
        with_value += here
    lengths, pixel_size = _lengths(case)
    found = []
    for i in range(1, count + 1):
        if not pixels[i]:
            none = None if pixel_size is None else 0.0
            area, volume = (None, none) if case.is_volume else (none, None)
            found.append(ObjectStatistics(i, 0, area, volume))
            continue
        first, last = _as_stored(case, low[:, i].tolist(), high[:, i].tolist())
        size = None if pixel_size is None else int(pixels[i]) * pixel_size
        found.append(
            ObjectStatistics(
                label=i,
                pixels=int(pixels[i]),
                area_mm2=None if case.is_volume else size,
                volume_ml=size / 1000 if case.is_volume and size is not None else None,
                extent=(*first, *last),
                extent_mm=lengths
                and tuple((b - a + 1) * mm for a, b, mm in zip(first, last, lengths, strict=True)),
                mean=_finite(mean[i]) if with_value[i] else None,
                sd=_finite(np.sqrt(squares[i] / with_value[i])) if with_value[i] else None,
                predicted_iou=_finite(predicted_iou[i - 1]),
            )
        )
    return tuple(found)


def _pieces(
    labels: NDArray[np.unsignedinteger], values: NDArray[Any], is_volume: bool
) -> Iterator[tuple[tuple[NDArray[np.int64], ...], NDArray[np.unsignedinteger], NDArray[np.float64]]]:
    """Yield the pixels of objects, some at a time: slices, rows and columns, labels, and values."""
    if not is_volume:
        labels, values = labels[np.newaxis], values[np.newaxis]
    rows_at_once = max(1, _PIECE // labels.shape[2])
    for z in range(len(labels)):
        for top in range(0, labels.shape[1], rows_at_once):
            part = labels[z, top : top + rows_at_once]
            rows, columns = np.nonzero(part)
            if rows.size:
                inside = values[z, top : top + rows_at_once][rows, columns].astype(np.float64)
                inside = inside.mean(axis=1) if inside.ndim == 2 else inside
                yield (np.full_like(rows, z), rows + top, columns), part[rows, columns], inside


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _view(case: Case) -> View:
    return View() if case.origin is None or not case.is_volume else case.origin.view


def _as_stored(case: Case, low: list[int], high: list[int]) -> tuple[list[int], list[int]]:
    """Return first and last slice, row and column of what is seen as x, y (and z) along the stored axes."""
    if not case.is_volume:
        return low[:0:-1], high[:0:-1]
    view, first, last = _view(case), [0] * 3, [0] * 3
    for seen, stored in enumerate(view.order):
        first[stored], last[stored] = low[seen], high[seen]
        if seen in view.flips:
            end = case.shape[seen] - 1
            first[stored], last[stored] = end - high[seen], end - low[seen]
    return first, last


def _lengths(case: Case) -> tuple[tuple[float, ...] | None, float | None]:
    """Return a pixel's lengths along the stored x, y (and z) in mm, and its area or volume in mm2 or mm3.

    None where they are not known.
    """
    origin = case.origin
    if not case.is_volume:
        spacing = origin.frames[0].spacing if isinstance(origin, Dicom) else None
        if spacing is None:
            return None, None
        rows_mm, columns_mm = map(float, spacing)
        return (columns_mm, rows_mm), rows_mm * columns_mm
    if case.spacing is None:
        return None, None
    lengths = [0.0] * 3
    for seen, stored in enumerate(_view(case).order):
        lengths[stored] = case.spacing[seen]
    volume = math.prod(lengths)
    if isinstance(origin, Nifti | Raster) and origin.affine_mm is not None:  # whose voxels may be sheared
        volume = float(abs(np.linalg.det(origin.affine_mm[:3, :3])))
    return tuple(lengths), volume


def table(cases: Iterable[CaseReport]) -> str:
    """Return `objects.csv`: a line for each object of the cases; cells of what is not known are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for case in cases:
        for one in case.objects:
            extent = one.extent or ("",) * 6
            middle = len(extent) // 2
            corners = (*extent[:middle], "", *extent[middle:], "") if middle == 2 else extent
            extent_mm = (*(one.extent_mm or ()), None, None, None)[:3]
            measured = (*extent_mm, one.mean, one.sd, one.predicted_iou)
            sizes = one.area_mm2, one.volume_ml
            row = (case.case, one.label, one.pixels, *map(_cell, sizes), *corners, *map(_cell, measured))
            writer.writerow(row)
    return text.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
