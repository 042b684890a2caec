"""Boxes round the objects of a label mask that lies on the pixels of its case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from litemed.runtime.boxes import MAX_BOXES
from litemed.runtime.errors import InputError
from litemed.runtime.inputs.files import read_bytes
from litemed.runtime.inputs.npz import NpzReader
from litemed.runtime.inputs.pictures import MAX_PICTURE_BYTES, decode_labels
from litemed.runtime.inputs.volumes import open_volume, volume_suffix
from litemed.runtime.prompts.extents import Given, Grid

_SAME_MM = 1e-3
# Of what a run looks through with `--components`: parts of a slice, voxels in the boxes of all labels.
_MAX_PARTS = 2**20
_MAX_VISITED = 2**32


def read_mask(path: Path, grid: Grid, components: bool) -> list[Given]:
    """Return a box for each label of a mask in ascending order or, with `components`, for each of its parts.

    A mask is a NIfTI, NRRD or MetaImage with the affine of its case, an npz (`gts`, `segs` or its only
    array) or a picture.
    Raises InputError if it is none, lies on other pixels, or has more than `MAX_BOXES` objects or none.
    """
    labels = _stored(path, grid)
    if labels.shape != grid.shape[::-1]:
        raise InputError(f"{path}: mask of shape {labels.shape}, of a case of {grid.shape[::-1]}")
    if labels.dtype.kind not in "buif" or not (np.isfinite(labels) & (labels == np.rint(labels))).all():
        raise InputError(f"{path}: mask has values that are no whole numbers")
    volume = labels if labels.ndim == 3 else labels[np.newaxis]
    values = np.unique(volume)
    values = values[values != 0]
    if len(values) and values[0] < 0:
        raise InputError(f"{path}: mask has negative values")
    if not 0 < len(values) <= MAX_BOXES:
        raise InputError(f"{path}: mask has {len(values)} labels; give 1 to {MAX_BOXES}")
    boxes, visited = [], 0
    for value, first, last in zip(values.tolist(), *_extents(volume, values), strict=True):
        ends, where = [(first, last)], f"label {value:g}"
        if components:
            inside = tuple(slice(low, high + 1) for low, high in zip(first, last, strict=True))
            visited += volume[inside].size
            if visited > _MAX_VISITED:
                raise InputError(f"{path}: mask has too many labels that reach far; give them apart")
            parts = _parts(volume[inside] == value, path)
            found = _extents(parts, np.unique(parts[parts > 0]))
            ends = [(low + first, high + first) for low, high in zip(*found, strict=True)]
        boxes += [Given(np.array(one, np.float64)[:, ::-1][:, : labels.ndim], "index", where) for one in ends]
    return boxes


def _extents(volume: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return first and last slice, row and column of each value, ascending, in a volume (D, H, W)."""
    first, last = np.full((len(values), 3), np.iinfo(np.int64).max), np.full((len(values), 3), -1)
    for z, plane in enumerate(volume):  # one by one, for indices take eight bytes each
        y, x = np.nonzero(plane)
        number = np.searchsorted(values, plane[y, x])
        places = np.column_stack([np.full(len(y), z), y, x])
        np.minimum.at(first, number, places)
        np.maximum.at(last, number, places)
    return first, last


def _stored(path: Path, grid: Grid) -> NDArray[Any]:
    """Return the mask as its case is stored, (rows, columns) or (slices, rows, columns)."""
    name = path.name.lower()
    if volume_suffix(path):
        stored = open_volume(path)
        own = stored.affine_mm
        # A case that does not say where it lies has the shape to go by alone.
        if grid.affine is not None and (
            own is None or not np.allclose(own, grid.affine, rtol=0, atol=_SAME_MM)
        ):
            raise InputError(f"{path}: mask has another affine than its case; resample it")
        return stored.view.store(stored.read()).transpose()
    if name.endswith(".npz"):
        with NpzReader(path) as archive:
            names: list[str] = [one for one in ("gts", "segs") if one in archive.names]
            names = names or list(archive.names)
            if len(names) != 1:
                raise InputError(f"{path}: which array is the mask? call it gts, or segs")
            return archive.read(names[0])
    return decode_labels(read_bytes(path, MAX_PICTURE_BYTES), str(path))


def _parts(mask: NDArray[np.bool_], path: Path) -> NDArray[np.int32]:
    """Return a mask (D, H, W) with its parts numbered, 0 outside, in the order of their first pixels.

    Parts that touch by a face, an edge or a corner are one. Raises InputError for too many.
    """
    count, of_slices, touching = 0, list[NDArray[np.int32]](), [np.empty((0, 2), np.int32)]
    for plane in mask.astype(np.uint8):
        number, parts = cv2.connectedComponents(plane, connectivity=8)
        here = np.where(parts > 0, parts + count, 0).astype(np.int32)
        count += number - 1
        if count > _MAX_PARTS:
            raise InputError(f"{path}: mask has more than {_MAX_PARTS} parts; smooth it")
        for y, x in np.ndindex(3, 3) if of_slices else ():
            moved = np.pad(of_slices[-1], 1)[y : y + here.shape[0], x : x + here.shape[1]]
            both = (moved > 0) & (here > 0)
            touching.append(np.unique(np.column_stack([moved[both], here[both]]), axis=0))
        of_slices.append(here)
    root = list(range(count + 1))

    def find(part: int) -> int:
        while root[part] != part:
            root[part] = root[root[part]]
            part = root[part]
        return part

    for one, other in np.concatenate(touching).tolist():
        low, high = sorted((find(one), find(other)))
        root[high] = low
    return np.array([find(part) for part in range(count + 1)], np.int32)[np.stack(of_slices)]
