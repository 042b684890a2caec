"""The images that a quantised encoder is calibrated on: which of a folder, and of a volume which slices.

The names of the files alone decide. Every modality (the beginning of the name; all others count as one
more) gets an equal share of `MAX_IMAGES`: files at even distances by name, and where there are fewer than the
share, several slices of each volume, at even distances among those that a box covers (all, without boxes).
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.boxes import Boxes
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.modalities import modality_of_name
from litemed.runtime.npz import NpzReader
from litemed.runtime.readers import decode_image, list_cases

MIN_IMAGES = 16
"""Fewer leave the range of activations to chance."""

MAX_IMAGES = 48
"""Four of each of the challenge's eleven modalities, and more where there are fewer modalities."""

Image = NDArray[np.uint8]
T = TypeVar("T")


def calibration_images(folder: pathlib.Path) -> list[Image]:
    """Return `MIN_IMAGES` to `MAX_IMAGES` images and slices of a folder, uint8 (H, W) or (H, W, 3).

    Args:
        folder: images (PNG, JPEG, TIFF) and npz with `imgs`, with boxes or without.

    Raises:
        UsageError: there are too few.
        InputError: a file that was chosen cannot be read.
    """
    by_modality: dict[str, list[pathlib.Path]] = {}
    for path in list_cases([folder]):
        by_modality.setdefault(modality_of_name(path.stem) or "", []).append(path)
    share = max(1, MAX_IMAGES // len(by_modality))
    images: list[Image] = []
    for _, paths in sorted(by_modality.items()):
        chosen = _spread(paths, share)
        for i, path in enumerate(chosen):
            images += _read(path, share // len(chosen) + (i < share % len(chosen)))
    if len(images) < MIN_IMAGES:
        raise UsageError(
            f"{folder}: {len(images)} images to calibrate on; int8 needs at least {MIN_IMAGES} real ones, of "
            "all the modalities that it is meant for"
        )
    return images


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of the items, or all if there are fewer, at even distances and in their order."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _read(path: pathlib.Path, count: int) -> list[Image]:
    """Return an image, or up to `count` slices of a volume."""
    if path.suffix.lower() != ".npz":
        try:
            return [decode_image(path.read_bytes(), str(path))]
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    with NpzReader(path) as archive:
        declared = archive.header("imgs")
        shape = declared.shape
        if declared.dtype != np.uint8 or len(shape) not in (2, 3) or 0 in shape:
            raise InputError(
                f"{path}: imgs is {declared.dtype} of shape {shape}; give uint8 (height, width), "
                "(height, width, 3) or (depth, height, width)"
            )
        boxes = Boxes.parse(archive.read("boxes"), shape, str(path)) if "boxes" in archive.names else None
        image = archive.read("imgs")
    if len(shape) == 2 or (shape[2] == 3 if boxes is None else boxes.z is None):
        return [image]
    z = list(range(len(image)))
    if boxes is not None and boxes.z is not None:
        z = [i for i in z if ((boxes.z[:, 0] <= i) & (i <= boxes.z[:, 1])).any()]
    return [np.ascontiguousarray(image[i]) for i in _spread(z, count)]
