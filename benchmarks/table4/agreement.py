"""Compare label maps, so that nobody is fast by doing less."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError
from litemed.runtime.npz import NpzReader


@dataclass(frozen=True)
class Comparison:
    """Mean Dice over the labels that either map has, and the share of pixels with the same label."""

    dice: float
    equal: float


def compare(first: NDArray[np.integer], second: NDArray[np.integer]) -> Comparison:
    """Compare two label maps of one shape. Two empty maps agree: Dice 1."""
    count = int(max(first.max(), second.max())) + 1
    size_first = np.bincount(first.ravel(), minlength=count)[1:]
    size_second = np.bincount(second.ravel(), minlength=count)[1:]
    same = first == second
    common = np.bincount(first[same], minlength=count)[1:]
    sizes = size_first + size_second
    present = sizes > 0
    dice = 2 * common[present] / sizes[present]
    return Comparison(float(dice.mean()) if present.any() else 1.0, float(same.mean()))


def read_labels(path: Path) -> NDArray[np.integer]:
    """Read `segs` of a result.

    Raises:
        InputError: there is no file, or it holds no label map.
    """
    with NpzReader(path) as archive:
        labels = archive.read("segs")
    if labels.dtype.kind not in "ui" or labels.size == 0 or (labels.dtype.kind == "i" and labels.min() < 0):
        raise InputError(f"{path}: segs of dtype {labels.dtype} is no label map; write unsigned integers")
    if labels.max() > np.iinfo(np.uint16).max:
        raise InputError(f"{path}: segs holds {labels.max()}, more than any box's number")
    return labels


def compare_files(first: Path, second: Path) -> Comparison:
    """Compare the label maps in two files.

    Raises:
        InputError: one of them cannot be read, or their shapes differ.
    """
    one, other = read_labels(first), read_labels(second)
    if one.shape != other.shape:
        raise InputError(f"{first}: has shape {one.shape}, the other label map {other.shape}")
    return compare(one, other)
