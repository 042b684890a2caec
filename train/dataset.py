"""From slices and their labels to batches at the network's scale, as loader processes make them.

Nothing here is random: what is moved, recoloured and prompted is drawn on the device that trains (see
`litemed.train.examples`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from litemed.runtime.errors import InputError
from litemed.runtime.merge import MAX_LABELS
from litemed.runtime.preprocess import Frame
from litemed.train.prepare.store import SliceInfo


class SliceSource(Protocol):
    """What training reads from; `litemed.train.prepare.store.Slices` is one."""

    def __len__(self) -> int:
        """Return the number of slices."""

    def __getitem__(self, i: int, /) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Return slice `i`: image uint8 (h, w) or (h, w, 3), labels unsigned (h, w) with 0 as background."""

    def info(self, i: int, /) -> SliceInfo:
        """Return where slice `i` comes from."""

    def indices_by_modality(self) -> dict[str, NDArray[np.int64]]:
        """Return the numbers of the slices of each modality that has any."""


@dataclass(frozen=True)
class Data:
    """What a run learns from and is scored on.

    digest: of both; a run is resumed only on the data that it was started on.
    """

    training: SliceSource
    validation: SliceSource
    digest: str


def by_source(source: SliceSource, indices: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return the slices `indices` (n,) of each source that they come from, in the order of the names."""
    names = np.array([source.info(i).source for i in indices.tolist()])
    return {str(name): indices[names == name] for name in np.unique(names)}


@dataclass(frozen=True, eq=False)
class Sample:
    """One slice at the network's scale, in the upper left of a square of side S; else 0.

    image: uint8 (3, S, S). labels: int32 (S, S). extent: height and width of the slice in the square.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.int32]
    extent: tuple[int, int]


@dataclass(frozen=True)
class Skipped:
    """A slice that could not be used: one line that says which and why."""

    reason: str


@dataclass(frozen=True, eq=False)
class Batch:
    """B slices as in `Sample`; where one could not be used all is 0, without an object.

    image: uint8 (B, 3, S, S). labels: int32 (B, S, S). extent: int64 (B, 2). skipped: a line for each slice
    that could not be used.
    """

    image: Tensor
    labels: Tensor
    extent: Tensor
    skipped: tuple[str, ...]

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; called by PyTorch's DataLoader."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; on a GPU without waiting."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(function(self.image), function(self.labels), function(self.extent), self.skipped)


def make_sample(
    image: NDArray[np.uint8], labels: NDArray[Any], size: int, min_object_pixels: int = 1
) -> Sample:
    """Turn one slice into a sample for a network input of side `size`.

    Raises InputError when image and labels do not fit each other, or no object has `min_object_pixels` at
    that size.
    """
    check_slice(image, labels)
    image, labels = resize_slice(image, labels, size)
    if np.bincount(labels.ravel(), minlength=2)[1:].max() < min_object_pixels:
        raise InputError(f"no object of at least {min_object_pixels} pixels at size {size}")
    height, width = labels.shape
    padded = np.zeros((3, size, size), np.uint8)
    padded[:, :height, :width] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    padded_labels = np.zeros((size, size), np.int32)
    padded_labels[:height, :width] = labels
    return Sample(padded, padded_labels, (height, width))


def check_slice(image: NDArray[Any], labels: NDArray[Any]) -> None:
    """Raise InputError unless image and labels are what `SliceSource` promises and lie on one another."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise InputError(f"image of shape {image.shape} and {image.dtype}: must be uint8 (h, w) or (h, w, 3)")
    if labels.dtype.kind != "u":
        raise InputError(f"labels are {labels.dtype}: must be unsigned integers")
    if labels.dtype.itemsize > 2 and labels.max(initial=0) > MAX_LABELS:
        raise InputError(f"label {labels.max()} is above {MAX_LABELS}: number the objects of a slice from 1")
    if labels.shape != image.shape[:2] or not labels.size:
        raise InputError(f"labels of shape {labels.shape} on an image of shape {image.shape[:2]}")


def resize_slice(
    image: NDArray[np.uint8], labels: NDArray[Any], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Return both with the longest side at `size`: the image as the runtime resizes it, nearest labels."""
    frame = Frame.of(labels.shape[0], labels.shape[1], size)
    target = (frame.scaled_width, frame.scaled_height)
    narrow = labels.astype(np.uint16)
    if target == labels.shape[::-1]:
        return image, narrow
    resized = cv2.resize(image, target, interpolation=cv2.INTER_AREA)
    # "exact" has half-pixel centres, as the area interpolation of the image has.
    nearest = cv2.resize(narrow, target, interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(np.uint8, copy=False), nearest.astype(np.uint16, copy=False)


class TrainingSet(Dataset[Sample | Skipped]):
    """Samples by the number of the slice; one that cannot be used comes as `Skipped`, not as an error."""

    def __init__(self, source: SliceSource, size: int, min_object_pixels: int) -> None:
        self._source = source
        self._size = size
        self._min_object_pixels = min_object_pixels

    def __getitem__(self, number: int) -> Sample | Skipped:
        try:
            return make_sample(*self._source[number], self._size, self._min_object_pixels)
        except InputError as error:
            return skipped(self._source.info(number), error)


def skipped(info: SliceInfo, error: InputError) -> Skipped:
    """Return the line about a slice that could not be used."""
    return Skipped(f"{info.modality}/{info.source}/{info.case} slice {info.z}: {error}")


def collate(samples: Sequence[Sample | Skipped], size: int) -> Batch:
    """Put samples for a network input of side `size` together."""
    batch = Batch(
        image=torch.zeros(len(samples), 3, size, size, dtype=torch.uint8),
        labels=torch.zeros(len(samples), size, size, dtype=torch.int32),
        extent=torch.full((len(samples), 2), size),
        skipped=tuple(sample.reason for sample in samples if isinstance(sample, Skipped)),
    )
    for i, sample in enumerate(samples):
        if isinstance(sample, Sample):
            batch.image[i] = torch.from_numpy(sample.image)
            batch.labels[i] = torch.from_numpy(sample.labels)
            batch.extent[i] = torch.tensor(sample.extent)
    return batch
