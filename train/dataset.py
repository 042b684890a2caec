"""From slices and their labels to batches at the network's scale, as loader processes make them.

Nothing here is random: what is moved, recoloured and prompted is drawn on the device that trains (see
`litemed.train.examples`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from litemed.runtime.errors import InputError
from litemed.train.prepare.slices import resize_image, resize_labels
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
    """What a run learns from and is scored on."""

    training: SliceSource
    validation: SliceSource


class Batch(NamedTuple):
    """B slices at the network's scale, each in the upper left of a square of side S; else 0.

    Of a slice that could not be used all is 0, without an object.

    image: uint8 (B, 3, S, S). labels: int32 (B, S, S). extent: int64 (B, 2), height and width of the slice in
    the square. skipped: a line for each slice that could not be used.
    """

    image: Tensor
    labels: Tensor
    extent: Tensor
    skipped: Sequence[str]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; on a GPU without waiting."""
        image, labels, extent = (tensor.to(device, non_blocking=True) for tensor in self[:3])
        return Batch(image, labels, extent, self.skipped)


def load_batch(numbers: Sequence[int], source: SliceSource, size: int, min_pixels: int = 1) -> Batch:
    """Read slices by their numbers and resize them for a network input of side `size`.

    A slice without an object of `min_pixels` at that size cannot be used.
    """
    image = np.zeros((len(numbers), 3, size, size), np.uint8)
    labels = np.zeros((len(numbers), size, size), np.int32)
    extent, skipped = np.full((len(numbers), 2), size), []
    for i, slice_number in enumerate(numbers):
        try:
            found, objects = source[slice_number]
            found, objects = resize_image(found, size), resize_labels(objects, size)
            if np.bincount(objects.ravel(), minlength=2)[1:].max() < min_pixels:
                raise InputError(f"no object of at least {min_pixels} pixels at size {size}")
        except InputError as error:
            skipped.append(why_skipped(source.info(slice_number), error))
            continue
        height, width = extent[i] = objects.shape
        image[i, :, :height, :width] = found if found.ndim == 2 else found.transpose(2, 0, 1)
        labels[i, :height, :width] = objects
    return Batch(torch.from_numpy(image), torch.from_numpy(labels), torch.from_numpy(extent), skipped)


def why_skipped(info: SliceInfo, error: InputError) -> str:
    """Return the line about a slice that could not be used."""
    return f"{info.modality}/{info.source}/{info.case} slice {info.z}: {error}"
