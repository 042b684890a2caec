"""Read one pair of image and labels, whatever its files are, into arrays in one frame.

Volumes come out as (slice, row, column); `litemed.train.prepare.nifti` says how NIfTI axes are ordered.
"""

from __future__ import annotations

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
    spacing_zyx: tuple[float, float, float] | None = None

    @property
    def is_volume(self) -> bool:
        """Whether it is (D, H, W)."""
        return self.labels.ndim == 3


def read_pair(pair: Pair) -> Labelled:
    """Read `pair`. Raises InputError where a file cannot be read or the two do not fit each other."""
    if pair.label is None:
        return _read_npz(pair.image)
    names = (pair.image.name.lower(), pair.label.name.lower())
    if all(name.endswith(NIFTI_SUFFIXES) for name in names):
        volume, labels, spacing = read_nifti_pair(pair.image, pair.label)
        return Labelled(volume, check_labels(labels, pair.label), spacing)
    if all(name.endswith(IMAGE_SUFFIXES) for name in names):
        return _read_pictures(pair.image, pair.label)
    raise InputError(f"{pair.label}: is no label of {pair.image.name}: give two NIfTI, two PNG, JPG or TIF")


def check_labels(labels: NDArray[Any], source: object) -> NDArray[Any]:
    """Return `labels` as an integer array of the same shape.

    Whole-number floats are accepted: many tools write nothing else.
    Raises InputError for fractions, NaN, negative values and values above 2^31 - 1.
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
    return labels if labels.dtype.kind in "iu" else labels.astype(np.int32)


def _require_same_shape(image: tuple[int, ...], labels: tuple[int, ...], source: Path) -> None:
    if image != labels:
        raise InputError(f"{source}: labels have shape {labels}, the image {image}; they must be equal")


def _read_npz(path: Path) -> Labelled:
    with NpzReader(path) as archive:
        image, labels = archive.read("imgs"), archive.read("gts")
        spacing = archive.read("spacing") if "spacing" in archive.names else np.zeros(0)
    colour = image.ndim == 3 and image.shape[2] == 3 and labels.ndim == 2
    if image.ndim not in (2, 3):
        raise InputError(f"{path}: imgs have shape {image.shape}; give (H,W), (H,W,3) or (D,H,W)")
    _require_same_shape(image.shape[:2] if colour else image.shape, labels.shape, path)
    labels = check_labels(labels, path)
    known = spacing.shape == (3,) and spacing.dtype.kind in "iuf"
    if labels.ndim == 2 or not known or not (np.isfinite(spacing) & (spacing > 0)).all():
        return Labelled(image, labels)
    z, y, x = map(float, spacing)
    return Labelled(image, labels, (z, y, x))


def _read_pictures(image_path: Path, label_path: Path) -> Labelled:
    image, labels = (
        decode_stored(read_bytes(path, MAX_IMAGE_BYTES), str(path)) for path in (image_path, label_path)
    )
    if image.ndim == 3:
        # cv2 gives BGR or BGRA.
        grey = image.dtype == np.uint8 and _is_grey(image[:, :, :3])
        image = np.ascontiguousarray(image[:, :, 0] if grey else image[:, :, 2::-1])
    if labels.ndim == 3:
        if not _is_grey(labels[:, :, :3]):
            raise InputError(f"{label_path}: labels are in colour; give one channel of integers")
        labels = np.ascontiguousarray(labels[:, :, 0])
    _require_same_shape(image.shape[:2], labels.shape, label_path)
    return Labelled(image, check_labels(labels, label_path))


def _is_grey(image: NDArray[Any]) -> bool:
    return bool((image[:, :, :1] == image).all())
