"""Read one pair of image and labels, whatever its files are, into arrays in one frame.

Axis order. Volumes come out as (slice, row, column). The slices are those of the file: its third
stored axis, which for nearly every converter is the axis that the scanner sliced along, and which
is what the challenge's own conversion keeps. Within a slice, rows and columns are permuted and
flipped (never resampled) to the usual view of the nearest plane, from the affine:

    axial      rows front to back,  columns right to left of the patient, slices upwards
    coronal    rows downwards,      columns right to left of the patient, slices front to back
    sagittal   rows downwards,      columns front to back,                slices right to left

A NIfTI that says nothing about orientation (sform and qform codes both 0) is taken as stored.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError
from litemed.runtime.image_header import read_image_header
from litemed.runtime.npz import MAX_VOXELS, NpzReader
from litemed.train.prepare.sources import IMAGE_SUFFIXES, NIFTI_SUFFIXES, Pair

# Corners of image and label volume may differ by this much, in voxels: headers store rounded floats.
AFFINE_TOLERANCE_VOXELS: Final = 0.1


@dataclass(frozen=True)
class Labelled:
    """An image and its labels.

    image: (H, W), (H, W, 3) RGB, or (D, H, W), in the units of the file.
    labels: integers >= 0 of the same spatial shape, 0 is background.
    spacing_zyx: mm between slices, rows, columns; None in 2D and where the file does not say.
    """

    image: NDArray[Any]
    labels: NDArray[Any]
    is_volume: bool
    spacing_zyx: tuple[float, float, float] | None = None


def read_pair(pair: Pair) -> Labelled:
    """Read `pair`. Raises InputError where a file cannot be read or the two do not fit each other."""
    kind = _type_of(pair.image)
    if pair.label is None:
        if kind != "npz":
            raise InputError(f"{pair.image}: no labels given")
        return _read_npz(pair.image)
    if kind != _type_of(pair.label):
        raise InputError(f"{pair.label}: not of the image's type ({pair.image.name}); convert one of them")
    if kind == "nifti":
        return _read_nifti(pair.image, pair.label)
    if kind == "image":
        return _read_image(pair.image, pair.label)
    raise InputError(f"{pair.image}: an npz holds image and labels; give it without a label file")


def check_labels(labels: NDArray[Any], source: object) -> NDArray[Any]:
    """Return `labels` as an integer array of the same shape.

    Whole-number floats are accepted: many tools write nothing else.
    Raises InputError for fractions, NaN, negative values and values above 2^31 - 1.
    """
    if labels.dtype == np.bool_:
        return labels.astype(np.uint8)
    if labels.dtype.kind not in "iuf":
        raise InputError(f"{source}: labels of type {labels.dtype}; give integers")
    if labels.size == 0:
        raise InputError(f"{source}: labels are empty, shape {labels.shape}")
    if labels.dtype.kind == "f":
        broken = ~np.isfinite(labels) | (labels != np.floor(labels))
        if broken.any():
            raise InputError(f"{source}: labels hold {labels[broken][0]}; give whole numbers")
    low, high = labels.min(), labels.max()
    if low < 0:
        raise InputError(f"{source}: labels hold the negative value {low:g}; give 0 for background")
    if high > np.iinfo(np.int32).max:
        raise InputError(f"{source}: labels hold {high:g}, above 2^31 - 1; renumber them")
    return labels.astype(np.int32) if labels.dtype.kind == "f" else labels


def _type_of(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        return "nifti"
    if name.endswith(IMAGE_SUFFIXES):
        return "image"
    if name.endswith(".npz"):
        return "npz"
    raise InputError(f"{path}: unknown file type; give npz, NIfTI, PNG, JPG or TIF")


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: file is empty")


def _require_same_shape(image: tuple[int, ...], labels: tuple[int, ...], source: Path) -> None:
    if image != labels:
        raise InputError(f"{source}: labels have shape {labels}, the image {image}; they must be equal")


def _read_npz(path: Path) -> Labelled:
    with NpzReader(path) as archive:
        image, labels = archive.read("imgs"), archive.read("gts")
        spacing = archive.read("spacing") if "spacing" in archive.names else None
    colour = image.ndim == 3 and image.shape[2] == 3 and labels.ndim == 2
    if image.ndim not in (2, 3) or image.size == 0:
        raise InputError(f"{path}: imgs have shape {image.shape}; give (H,W), (H,W,3) or (D,H,W)")
    _require_same_shape(image.shape[:2] if colour else image.shape, labels.shape, path)
    is_volume = image.ndim == 3 and not colour
    return Labelled(
        image, check_labels(labels, path), is_volume, _npz_spacing(spacing) if is_volume else None
    )


def _npz_spacing(spacing: NDArray[Any] | None) -> tuple[float, float, float] | None:
    if spacing is None or spacing.shape != (3,) or spacing.dtype.kind not in "iuf":
        return None
    z, y, x = (float(value) for value in spacing)
    return (z, y, x) if all(math.isfinite(value) and value > 0 for value in (z, y, x)) else None


def _read_image(image_path: Path, label_path: Path) -> Labelled:
    image, labels = _decode(image_path), _decode(label_path)
    if image.ndim == 3:
        # cv2 gives BGR or BGRA.
        image = np.ascontiguousarray(image[:, :, 2::-1])
        if image.dtype == np.uint8 and _is_grey(image):
            image = np.ascontiguousarray(image[:, :, 0])
    if labels.ndim == 3:
        if not _is_grey(labels[:, :, :3]):
            raise InputError(f"{label_path}: labels are in colour; give one channel of integers")
        labels = np.ascontiguousarray(labels[:, :, 0])
    _require_same_shape(image.shape[:2], labels.shape, label_path)
    return Labelled(image, check_labels(labels, label_path), is_volume=False)


def _is_grey(image: NDArray[Any]) -> bool:
    return bool((image[:, :, :1] == image).all())


def _decode(path: Path) -> NDArray[Any]:
    """Return the values of an image file as stored: (H, W), or (H, W, 3 or 4) in the order B G R A."""
    _require_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    header = read_image_header(data, str(path))
    if not 0 < header.width * header.height * header.samples <= MAX_VOXELS:
        raise InputError(f"{path}: declares {header.width} x {header.height} pixels, more than are read")
    if header.pages > 1:
        raise InputError(f"{path}: has several pages; give volumes as NIfTI or npz")
    if 2 <= header.orientation <= 8:
        raise InputError(
            f"{path}: its orientation tag is {header.orientation}, so the other file may be meant turned or "
            "not; save it upright and without the tag"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(f"{path}: cannot be decoded (OpenCV refuses it); save it again") from error
    if image is None or image.shape[:2] != (header.height, header.width):
        raise InputError(f"{path}: cannot be decoded (its data are damaged); copy or save it again")
    if image.ndim == 3 and image.shape[2] not in (3, 4):
        raise InputError(f"{path}: image of {image.shape[2]} channels; give grey or RGB")
    return image


def _read_nifti(image_path: Path, label_path: Path) -> Labelled:
    image, label = _open_nifti(image_path), _open_nifti(label_path)
    _require_same_shape(image.shape[:3], label.shape[:3], label_path)
    shift = _largest_shift_voxels(image.affine, label.affine, image.shape[:3])
    if shift > AFFINE_TOLERANCE_VOXELS:
        raise InputError(
            f"{label_path}: lies up to {shift:.3g} voxels away from its image (affines differ); resample one"
        )
    order, flips = _display_axes(image)
    volume = _to_display(_nifti_data(image, image_path), order, flips)
    labels = _to_display(_nifti_data(label, label_path), order, flips)
    sizes = np.sqrt((np.asarray(image.affine)[:3, :3] ** 2).sum(axis=0))
    z, y, x = (float(sizes[axis]) for axis in order)
    return Labelled(volume, check_labels(labels, label_path), is_volume=True, spacing_zyx=(z, y, x))


def _open_nifti(path: Path) -> Any:
    """Read the header only, and refuse what must not be loaded."""
    _require_file(path)
    nibabel = _nibabel()
    try:
        image = nibabel.load(path, mmap=False)
    except (OSError, ValueError, EOFError, zlib.error, nibabel.spatialimages.HeaderDataError) as error:
        raise InputError(f"{path}: cannot be read as NIfTI ({error})") from error
    except nibabel.filebasedimages.ImageFileError as error:
        raise InputError(f"{path}: cannot be read as NIfTI ({error})") from error
    shape = image.shape
    if len(shape) < 3 or any(side != 1 for side in shape[3:]):
        raise InputError(f"{path}: NIfTI of shape {shape}; give one volume of three axes")
    if min(shape) < 1 or math.prod(shape) > MAX_VOXELS:
        raise InputError(f"{path}: header declares shape {shape}; at most {MAX_VOXELS} voxels are read")
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise InputError(f"{path}: affine is singular or not finite; repair the header")
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: voxels of type {image.get_data_dtype()}; give integers or floats")
    return image


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise InputError("reading NIfTI needs nibabel: pip install 'litemed[train]'") from error
    return nibabel


def _nifti_data(image: Any, path: Path) -> NDArray[Any]:
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    try:
        if (slope, intercept) == (1, 0):
            data = np.asanyarray(image.dataobj)
        else:
            data = image.dataobj.get_scaled(np.float32)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: voxels cannot be read ({error})") from error
    return data.reshape(data.shape[:3])


def _largest_shift_voxels(
    first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]
) -> float:
    """Return how far corners of a volume of `shape` lie apart under two affines, in voxels of the first."""
    corners = np.array(
        [[x, y, z, 1] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1) for z in (0, shape[2] - 1)],
        np.float64,
    )
    moved = corners @ np.linalg.solve(first, second).T
    return float(np.abs(moved - corners).max())


def _display_axes(image: Any) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return which stored axis becomes slice, row and column, and which of these run backwards."""
    if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
        return (2, 1, 0), (False, False, False)
    # Row a: the world axis (0 right, 1 front, 2 up) nearest to stored axis a, and its sign.
    world = _nibabel().orientations.io_orientation(image.affine)
    nearest = [int(axis) for axis in world[:, 0]]
    slice_axis = 2
    row_axis = max((0, 1), key=lambda axis: nearest[axis])
    column_axis = 1 - row_axis
    order = (slice_axis, row_axis, column_axis)
    # Columns run to the patient's left or back, rows to the back or down: against the world axes.
    # Slices run up, back or left.
    along_world = (nearest[slice_axis] == 2, False, False)
    flips = tuple((world[axis, 1] > 0) != wanted for axis, wanted in zip(order, along_world, strict=True))
    return order, (bool(flips[0]), bool(flips[1]), bool(flips[2]))


def _to_display(
    data: NDArray[Any], order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> NDArray[Any]:
    steps = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    return np.ascontiguousarray(data.transpose(order)[steps])
