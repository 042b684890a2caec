"""Read one pair of image and labels, whatever its files are, into arrays in one frame.

Volumes come out as (slice, row, column), files of scanners in the view of `litemed.runtime.inputs.view`.
"""

import contextlib
import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.case import check_spacing, spacing_doubt
from litemed.runtime.errors import InputError
from litemed.runtime.inputs.files import read_bytes
from litemed.runtime.inputs.npz import NpzReader
from litemed.runtime.inputs.pictures import MAX_PICTURE_BYTES, PICTURE_SUFFIXES, decode_labels, decode_picture
from litemed.runtime.inputs.volumes import VOLUMES, open_volume
from litemed.train.prepare.sources import Pair

# Corners of image and label volume may differ by this much, in voxels: headers store rounded floats.
AFFINE_TOLERANCE_VOXELS: Final = 0.1


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
    elif all(name.endswith(tuple(VOLUMES)) for name in names):
        image, labels, spacing = _read_volumes(pair.image, pair.label)
    elif all(name.endswith(PICTURE_SUFFIXES) for name in names):
        image = _picture(pair.image)
        labels = decode_labels(read_bytes(pair.label, MAX_PICTURE_BYTES), str(pair.label))
    else:
        raise InputError(
            f"{source}: is no label of {names[0]}: give two NIfTI, NRRD or MetaImage, or two PNG, JPG or TIF"
        )
    plane = image.shape[:2] if image.ndim == 3 and image.shape[2] == 3 and labels.ndim == 2 else image.shape
    if plane != labels.shape or len(plane) not in (2, 3):
        raise InputError(f"{source}: labels have shape {labels.shape}, the image {plane}; convert one")
    labels = check_labels(labels, source)
    if labels.ndim == 2 or spacing is None:
        return Labelled(image, labels)
    return Labelled(image, labels, check_spacing(spacing, pair.image))


def doubt_of(pair: Pair) -> str:
    """Return a line if an npz has a spacing that may be in another order; empty too if it cannot be read."""
    if pair.label is not None:
        return ""
    with contextlib.suppress(InputError), NpzReader(pair.image) as archive:
        if "spacing" in archive.names and len(archive.header("gts")[1]) == 3:
            doubt = spacing_doubt(check_spacing(archive.read("spacing"), pair.image))
            return f"{pair.image}: {doubt}" if doubt else ""
    return ""


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


def _read_volumes(
    image_path: Path, label_path: Path
) -> tuple[NDArray[Any], NDArray[Any], tuple[float, float, float] | None]:
    """Return image, labels and spacing, both in the view of the image."""
    image, label = (open_volume(path) for path in (image_path, label_path))
    if image.affine_mm is not None and label.affine_mm is not None:
        corners = np.array(
            [(*corner, 1) for corner in itertools.product(*((0, side - 1) for side in image.shape))]
        )
        # In voxels of the image.
        moved = corners @ np.linalg.solve(image.affine_mm, label.affine_mm).T
        shift = float(np.abs(moved - corners).max())
        if not shift <= AFFINE_TOLERANCE_VOXELS:
            away = f"lies up to {shift:.3g} voxels away from its image (affines differ)"
            raise InputError(f"{label_path}: {away}; resample one")
    elif image.affine_mm is not label.affine_mm:
        raise InputError(f"{label_path}: of it and its image only one says where it lies; convert one")
    return image.read(), dataclasses.replace(label, view=image.view).read(), image.spacing
