"""Read NIfTI volumes and their labels into slices as radiologists look at them.

Volumes come out as (slice, row, column). The slices are those of the file: its third stored axis, which is
what the challenge's own conversion keeps. Within a slice, rows and columns are permuted and flipped (never
resampled) to the usual view of the nearest plane, from the affine:

    axial      rows front to back,  columns right to left of the patient, slices upwards
    coronal    rows downwards,      columns right to left of the patient, slices front to back
    sagittal   rows downwards,      columns front to back,                slices right to left

A NIfTI that says nothing about orientation (sform and qform codes both 0) is taken as stored.
"""

from __future__ import annotations

import itertools
import math
import zlib
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError, one_line
from litemed.runtime.npz import MAX_VOXELS

# Corners of image and label volume may differ by this much, in voxels: headers store rounded floats.
AFFINE_TOLERANCE_VOXELS: Final = 0.1
# Deflate spends at least two bits on 258 bytes.
_DEFLATE_MAX_RATIO: Final = 1032
# A cube of one hundredth of a micrometre: whatever is smaller is no voxel, but a singular affine.
_SMALLEST_VOXEL_MM3: Final = 1e-15
# Length of NIfTI's spatial units in mm, by code: metre, millimetre, micrometre. Files that say none use mm.
_MM: Final = {1: 1000.0, 2: 1.0, 3: 0.001}
# What nibabel, gzip and zlib raise on damaged files, found by fuzzing.
_DAMAGE: Final = (OSError, ValueError, EOFError, OverflowError, zlib.error)


def read_nifti_pair(
    image_path: Path, label_path: Path
) -> tuple[NDArray[Any], NDArray[Any], tuple[float, float, float]]:
    """Return image and labels, both (slice, row, column) as stored, and the spacing in mm of these axes.

    Values are scaled by the header's slope and intercept where it has them, then float32. Raises InputError
    where a file cannot be used, or where the two do not lie on one another.
    """
    image, label = _open(image_path), _open(label_path)
    if image.shape[:3] != label.shape[:3]:
        raise InputError(
            f"{label_path}: labels have shape {label.shape[:3]}, the image {image.shape[:3]}; must be equal"
        )
    shift = _largest_shift_voxels(image.affine, label.affine, image.shape[:3])
    if not shift <= AFFINE_TOLERANCE_VOXELS:
        raise InputError(
            f"{label_path}: lies up to {shift:.3g} voxels away from its image (affines differ); resample one"
        )
    order, flips = _display_axes(image)
    volume = _to_display(_data(image, image_path), order, flips)
    labels = _to_display(_data(label, label_path), order, flips)
    unit_mm = _MM.get(int(image.header["xyzt_units"]) & 0b111, 1.0)
    spacing = (np.linalg.norm(image.affine[:3, :3], axis=0) * unit_mm).tolist()
    z, y, x = (spacing[axis] for axis in order)
    return volume, labels, (z, y, x)


def _open(path: Path) -> Any:
    """Read the header only, and refuse what must not be loaded."""
    try:
        image: Any = nibabel.load(path, mmap=False)
        shape, dtype = image.shape, image.get_data_dtype()
        affine = np.asarray(image.affine, np.float64)
        stored = path.stat().st_size * (_DEFLATE_MAX_RATIO if path.name.lower().endswith(".gz") else 1)
    except (*_DAMAGE, nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        raise InputError(f"{path}: cannot be read as NIfTI ({one_line(error)})") from error
    if len(shape) < 3 or any(side != 1 for side in shape[3:]):
        raise InputError(f"{path}: NIfTI of shape {shape}; give one volume of three axes")
    if dtype.kind not in "iuf":
        raise InputError(f"{path}: voxels of type {dtype}; give integers or floats")
    if min(shape) < 1 or math.prod(shape) > MAX_VOXELS or math.prod(shape) * dtype.itemsize > stored:
        raise InputError(f"{path}: header declares shape {shape}, more than the file holds or than is read")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < _SMALLEST_VOXEL_MM3:
        raise InputError(f"{path}: affine is singular or not finite; repair the header")
    return image


def _data(image: Any, path: Path) -> NDArray[Any]:
    unscaled = (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    try:
        data = np.asarray(image.dataobj) if unscaled else image.get_fdata("unchanged", np.float32)
    except _DAMAGE as error:
        raise InputError(f"{path}: voxels cannot be read ({one_line(error)})") from error
    return data.reshape(data.shape[:3])


def _largest_shift_voxels(
    first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]
) -> float:
    """Return how far corners of a volume of `shape` lie apart under two affines, in voxels of the first."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, side - 1) for side in shape))])
    return float(np.abs(corners @ np.linalg.solve(first, second).T - corners).max())


def _display_axes(image: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which stored axis becomes slice (0), row (1), column (2), and which of these run backwards."""
    if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
        return (2, 1, 0), ()
    # Row a: the world axis (0 right, 1 front, 2 up) nearest to stored axis a, and its sign.
    world = nibabel.orientations.io_orientation(image.affine)
    nearest = [int(axis) for axis in world[:, 0]]
    row_axis = max((0, 1), key=lambda axis: nearest[axis])
    order = (2, row_axis, 1 - row_axis)
    # Columns run to the patient's left or back, rows to the back or down: against the world axes.
    # Slices run up, back or left.
    along_world = (nearest[2] == 2, False, False)
    turned = zip(range(3), order, along_world, strict=True)
    return order, tuple(place for place, axis, wanted in turned if (world[axis, 1] > 0) != wanted)


def _to_display(data: NDArray[Any], order: tuple[int, ...], flips: tuple[int, ...]) -> NDArray[Any]:
    return np.ascontiguousarray(np.flip(data.transpose(order), flips))
