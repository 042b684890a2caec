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


def read_pair(pair: Pair) -> Labelled:
    """Read `pair`. Raises InputError where a file cannot be read or the two do not fit each other."""
    source = pair.label or pair.image
    names = (pair.image.name.lower(), source.name.lower())
    spacing = None
    if pair.label is None:
        image, labels, spacing = _read_npz(pair.image)
    elif all(name.endswith(NIFTI_SUFFIXES) for name in names):
        image, labels, spacing = read_nifti_pair(pair.image, pair.label)
    elif all(name.endswith(IMAGE_SUFFIXES) for name in names):
        image, labels = _picture(pair.image), _picture(pair.label)
        if labels.ndim == 3:
            raise InputError(f"{source}: labels are in colour; give one channel of integers")
    else:
        raise InputError(f"{source}: is no label of {names[0]}: give two NIfTI, or two PNG, JPG or TIF")
    plane = image.shape[:2] if image.ndim == 3 and image.shape[2] == 3 and labels.ndim == 2 else image.shape
    if plane != labels.shape or len(plane) not in (2, 3):
        raise InputError(f"{source}: labels have shape {labels.shape}, the image {plane}; convert one")
    return Labelled(image, check_labels(labels, source), spacing if labels.ndim == 3 else None)


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


def _read_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any], tuple[float, float, float] | None]:
    with NpzReader(path) as archive:
        image, labels = archive.read("imgs"), archive.read("gts")
        spacing = archive.read("spacing") if "spacing" in archive.names else np.zeros(0)
    if spacing.shape != (3,) or spacing.dtype.kind not in "iuf":
        return image, labels, None
    z, y, x = map(float, spacing)
    return image, labels, (z, y, x) if min(z, y, x) > 0 and max(z, y, x) < np.inf else None


def _picture(path: Path) -> NDArray[Any]:
    """Return (H, W), also where grey is stored as colour, or (H, W, 3) RGB; alpha is dropped."""
    stored = decode_stored(read_bytes(path, MAX_IMAGE_BYTES), str(path))
    if stored.ndim == 2:
        return stored
    # cv2 gives BGR or BGRA.
    grey = (stored[:, :, :1] == stored[:, :, :3]).all()
    return np.ascontiguousarray(stored[:, :, 0] if grey else stored[:, :, 2::-1])
