"""Read one pair of image and labels, whatever its files are, into arrays in one frame.

Volumes come out as (slice, row, column). The slices of a NIfTI are those of the file: its third stored axis,
which is what the challenge's own conversion keeps. Within a slice, rows and columns are permuted and flipped
(never resampled) to the usual view of the nearest plane, from the affine:

    axial      rows front to back,  columns right to left of the patient, slices upwards
    coronal    rows downwards,      columns right to left of the patient, slices front to back
    sagittal   rows downwards,      columns front to back,                slices right to left

A NIfTI that says nothing about orientation (sform and qform codes both 0) is taken as stored.
"""

import itertools
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from numpy.typing import NDArray

from litemed.runtime.case import check_spacing
from litemed.runtime.errors import InputError, one_line
from litemed.runtime.npz import MAX_VOXELS, NpzReader
from litemed.runtime.pictures import MAX_PICTURE_BYTES, PICTURE_SUFFIXES, decode_labels, decode_picture
from litemed.runtime.readers import read_bytes
from litemed.train.prepare.sources import NIFTI_SUFFIXES, Pair

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


@dataclass(frozen=True)
class Labelled:
    """An image, (H, W), (H, W, 3) RGB, or (D, H, W), in the units of the file, and its labels, integers >= 0.

    spacing_zyx: mm between slices, rows, columns; None in 2D and where the file does not say.
    """

    image: NDArray[Any]
    labels: NDArray[Any]
    spacing_zyx: tuple[float, float, float] | None = None


def read_pair(pair: Pair) -> Labelled:
    """Read `pair`. Raises InputError where a file cannot be read or the two do not fit each other."""
    source = pair.label or pair.image
    names = (pair.image.name.lower(), source.name.lower())
    spacing: Any = None
    if pair.label is None:
        image, labels, spacing = _read_npz(pair.image)
    elif all(name.endswith(NIFTI_SUFFIXES) for name in names):
        image, labels, spacing = _read_nifti_pair(pair.image, pair.label)
    elif all(name.endswith(PICTURE_SUFFIXES) for name in names):
        image = _picture(pair.image)
        labels = decode_labels(read_bytes(pair.label, MAX_PICTURE_BYTES), str(pair.label))
    else:
        raise InputError(f"{source}: is no label of {names[0]}: give two NIfTI, or two PNG, JPG or TIF")
    plane = image.shape[:2] if image.ndim == 3 and image.shape[2] == 3 and labels.ndim == 2 else image.shape
    if plane != labels.shape or len(plane) not in (2, 3):
        raise InputError(f"{source}: labels have shape {labels.shape}, the image {plane}; convert one")
    labels = check_labels(labels, source)
    if labels.ndim == 2 or spacing is None:
        return Labelled(image, labels)
    return Labelled(image, labels, check_spacing(spacing, pair.image))


def check_labels(labels: NDArray[Any], source: object) -> NDArray[Any]:
    """Return `labels` as an integer array of the same shape.

    Whole-number floats are accepted: many tools write nothing else.
    Raises InputError for fractions, NaN, negative values, values above 2^31 - 1, and labels without a 0.
    """
    if labels.dtype.kind not in "biuf" or labels.size == 0:
        raise InputError(f"{source}: labels are {labels.dtype} of shape {labels.shape}; give integers")
    if labels.dtype.kind == "f":
        broken = ~np.isfinite(labels) | (labels != np.floor(labels))
        if broken.any():
            raise InputError(f"{source}: labels hold {labels[broken][0]}; give whole numbers")
    for value in (labels.min(), labels.max()):
        if not 0 <= value <= np.iinfo(np.int32).max:
            raise InputError(f"{source}: labels hold {value:g}; give 0 for background, at most 2^31 - 1")
    if labels.min() > 0:
        raise InputError(f"{source}: labels have no background; give 0 to what is no object")
    return labels if labels.dtype.kind in "iu" else labels.astype(np.int32)


def _read_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    with NpzReader(path) as archive:
        image, labels = archive.read("imgs"), archive.read("gts")
        return image, labels, archive.read("spacing") if "spacing" in archive.names else None


def _picture(path: Path) -> NDArray[Any]:
    """Return (H, W), also where grey is stored as colour, or (H, W, 3) RGB; alpha is dropped."""
    shown = decode_picture(read_bytes(path, MAX_PICTURE_BYTES), str(path))
    grey = shown.ndim == 3 and (shown[:, :, :1] == shown).all()
    return np.ascontiguousarray(shown[:, :, 0] if grey else shown)


def _read_nifti_pair(
    image_path: Path, label_path: Path
) -> tuple[NDArray[Any], NDArray[Any], tuple[float, float, float]]:
    """Return image, labels and spacing; values are scaled by the header where it says so, then float32."""
    image, label = _open(image_path), _open(label_path)
    shape = image.shape[:3]
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, side - 1) for side in shape))])
    # In voxels of the image.
    shift = float(np.abs(corners @ np.linalg.solve(image.affine, label.affine).T - corners).max())
    if not shift <= AFFINE_TOLERANCE_VOXELS:
        raise InputError(
            f"{label_path}: lies up to {shift:.3g} voxels away from its image (affines differ); resample one"
        )
    order, flips = _display_axes(image)
    volume, labels = (
        np.ascontiguousarray(np.flip(_voxels(one, path).transpose(order), flips))
        for one, path in ((image, image_path), (label, label_path))
    )
    unit_mm = _MM.get(int(image.header["xyzt_units"]) & 0b111, 1.0)
    spacing = (np.linalg.norm(image.affine[:3, :3], axis=0) * unit_mm).tolist()
    z, y, x = (spacing[axis] for axis in order)
    return volume, labels, (z, y, x)


def _open(path: Path) -> Any:
    """Read the header only, and refuse what must not be loaded."""
    try:
        # It logs, without the file's name, what in a header it puts right.
        with nibabel.imageglobals.LoggingOutputSuppressor():
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


def _voxels(image: Any, path: Path) -> NDArray[Any]:
    unscaled = (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    try:
        data = np.asarray(image.dataobj) if unscaled else image.get_fdata("unchanged", np.float32)
    except _DAMAGE as error:
        raise InputError(f"{path}: voxels cannot be read ({one_line(error)})") from error
    return data.reshape(data.shape[:3])


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
