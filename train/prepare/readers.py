"""Read one pair of image and labels, whatever its files are, into arrays in one frame.

Volumes come out as (slice, row, column); `litemed.train.prepare.nifti` says how NIfTI axes are ordered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError
from litemed.runtime.npz import NpzReader
from litemed.runtime.readers import MAX_IMAGE_BYTES, decode_stored, read_bytes
from litemed.train.prepare.nifti import read_nifti_pair
from litemed.train.prepare.sources import IMAGE_SUFFIXES, NIFTI_SUFFIXES, Pair


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
    for path in (pair.image, *([pair.label] if pair.label else [])):
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: file is empty")
    if pair.label is None:
        if kind != "npz":
            raise InputError(f"{pair.image}: no labels given")
        return _read_npz(pair.image)
    if kind != _type_of(pair.label):
        raise InputError(f"{pair.label}: not of the image's type ({pair.image.name}); convert one of them")
    if kind == "nifti":
        volume, labels, spacing = read_nifti_pair(pair.image, pair.label)
        return Labelled(volume, check_labels(labels, pair.label), is_volume=True, spacing_zyx=spacing)
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
    image, labels = (
        decode_stored(read_bytes(path, MAX_IMAGE_BYTES), str(path)) for path in (image_path, label_path)
    )
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
