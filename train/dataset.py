"""From a slice and its labels to what a training step takes.

Everything random about a sample follows from the seed, the epoch and its position in the epoch: not from the
loader process that happens to make it, nor from how often the run was interrupted.
"""

from __future__ import annotations

import dataclasses
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
from litemed.runtime.preprocess import Frame, preprocess
from litemed.train.augment import move, recolour
from litemed.train.config import Augmentation, Prompts, Sampling
from litemed.train.prepare.store import SliceInfo
from litemed.train.prompts import REFERENCE_SIZE, choose, find_boxes, jitter
from litemed.train.regions import find_regions
from litemed.train.sampler import DRAWN, Draw
from litemed.train.shapes import draw_over, draw_shapes

_SAMPLE_STREAM = 2
"""Keeps the samples' random numbers apart from the sampler's."""


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


def by_source(source: SliceSource, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the slices `indices` (n,) parted by the source they come from, in the order of the names."""
    names = np.array([source.info(i).source for i in indices.tolist()])
    return [indices[names == name] for name in np.unique(names)]


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and some of its objects.

    image: float32 (3, S, S) in [0, 1], as the runtime makes it. boxes: float32 (K, 4), x0 y0 x1 y1 in its
    pixels. masks: uint8 (K, S, S), 0 or 1. labels: int32 (S, S), all objects, by number.
    """

    image: NDArray[np.float32]
    boxes: NDArray[np.float32]
    masks: NDArray[np.uint8]
    labels: NDArray[np.int32]


@dataclass(frozen=True)
class Skipped:
    """A slice that could not be used: one line that says which and why."""

    reason: str


@dataclass(frozen=True, eq=False)
class Batch:
    """B images with N boxes in all.

    image: float32 (B, 3, S, S); or, where `encoded`, the embeddings of the images, (B, 256, S/4, S/4).
    boxes: float32 (N, 4). masks: uint8 (N, S, S). image_of_box: int64 (N,).
    labels: int32 (B, S, S), all objects of the images, by number; of no image where `encoded`.
    weights: float32 (N,), 1 / boxes of the same image, so that every image counts the same.
    images: how many images count, 0 when none could be used (B and N are then 1, and the weight is 0).
    skipped: one line for each slice that could not be used.
    shown: bool (B, (S/4)^2), the image tokens that there are, where the images are seen through windows (see
    `litemed.train.windows`); None: all.
    """

    image: Tensor
    boxes: Tensor
    masks: Tensor
    labels: Tensor
    image_of_box: Tensor
    weights: Tensor
    images: int
    skipped: tuple[str, ...]
    encoded: bool = False
    shown: Tensor | None = None

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; called by PyTorch's DataLoader."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; on a GPU without waiting, the image channels last."""
        if device.type == "cpu":
            return self
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return dataclasses.replace(moved, image=moved.image.contiguous(memory_format=torch.channels_last))

    def _each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        names = ("image", "boxes", "masks", "labels", "image_of_box", "weights")
        changed: dict[str, Any] = {name: function(getattr(self, name)) for name in names}
        return dataclasses.replace(self, **changed)


def make_sample(
    image: NDArray[np.uint8],
    labels: NDArray[Any],
    size: int,
    prompts: Prompts,
    augmentation: Augmentation,
    random: np.random.Generator,
) -> Sample:
    """Turn one slice into a sample for a network input of side `size`.

    Pixels are moved before the slice is resized: at a small size, rounding them would fray the labels.

    Raises InputError when image and labels do not fit each other, or no object is large enough.
    """
    check_slice(image, labels)
    for attempt in (augmentation, Augmentation(flip_horizontal=0, flip_vertical=0)):
        moved_image, moved_labels = resize_slice(*move(image, labels, attempt, random), size)
        objects = find_boxes(moved_labels, prompts.min_object_pixels)
        if len(objects):  # else what was turned or enlarged has left the image
            break
    else:
        raise InputError(f"no object of at least {prompts.min_object_pixels} pixels at size {size}")
    objects = choose(objects, prompts.per_image, random)
    height, width = moved_labels.shape
    masks = np.zeros((len(objects), size, size), np.uint8)
    np.equal(moved_labels, objects.numbers[:, None, None], out=masks[:, :height, :width], casting="unsafe")
    boxes = jitter(objects.xyxy, (height, width), prompts, size, random)
    coloured = recolour(moved_image, attempt, random, size / REFERENCE_SIZE)
    all_labels = np.zeros((size, size), np.int32)
    all_labels[:height, :width] = moved_labels
    return Sample(preprocess(coloured, size)[0][0], boxes, masks, all_labels)


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
    """Samples by draw; a slice that cannot be used comes back as `Skipped`, not as an error."""

    def __init__(
        self,
        source: SliceSource,
        size: int,
        prompts: Prompts,
        augmentation: Augmentation,
        seed: int,
        sampling: Sampling | None = None,
    ) -> None:
        self._source = source
        self._size = size
        self._prompts = prompts
        self._augmentation = augmentation
        self._seed = seed
        self._sampling = sampling or Sampling()
        self._by_modality = list(source.indices_by_modality().values()) if self._sampling.drawn_over else []

    def __getitem__(self, draw: Draw) -> Sample | Skipped:
        random = np.random.default_rng([self._seed, _SAMPLE_STREAM, draw.epoch, draw.position])
        try:
            if draw.slice_index == DRAWN:
                image, labels = self._drawn(random)
            else:
                image, labels = self._slice(draw.slice_index, random)
            return make_sample(image, labels, self._size, self._prompts, self._augmentation, random)
        except InputError as error:
            if draw.slice_index == DRAWN:
                return Skipped(f"drawn shapes: {error}")
            info = self._source.info(draw.slice_index)
            return Skipped(f"{info.modality}/{info.source}/{info.case} slice {info.z}: {error}")

    def _drawn(self, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        size, share = max(self._size, REFERENCE_SIZE), self._sampling.drawn_over
        if not self._by_modality or not share or random.random() >= share:
            return draw_shapes(size, random)
        modality = self._by_modality[int(random.integers(len(self._by_modality)))]
        image, _ = self._source[int(random.choice(modality))]
        return draw_over(square_part(image, size, random), random)

    def _slice(self, index: int, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        image, labels = self._source[index]
        share = self._sampling.regions
        if share and random.random() < share:
            check_slice(image, labels)
            small, _ = resize_slice(image, labels, max(self._size, REFERENCE_SIZE))
            regions = find_regions(small, random)
            if regions.any():
                return small, regions
        return image, labels


def square_part(image: NDArray[np.uint8], size: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return a random square of an image, as wide as its shortest side, at `size` x `size` pixels."""
    height, width = image.shape[:2]
    side = min(height, width)
    y, x = (int(random.integers(0, whole - side, endpoint=True)) for whole in (height, width))
    part = image[y : y + side, x : x + side]
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def collate(samples: Sequence[Sample | Skipped], size: int) -> Batch:
    """Put samples for a network input of side `size` together; those skipped are left out and listed."""
    usable = [sample for sample in samples if isinstance(sample, Sample)]
    skipped = tuple(sample.reason for sample in samples if isinstance(sample, Skipped))
    if not usable:  # every process has to take its part in every step
        return Batch(
            image=torch.zeros(1, 3, size, size),
            boxes=torch.tensor([[0.0, 0.0, size, size]]),
            masks=torch.zeros(1, size, size, dtype=torch.uint8),
            labels=torch.zeros(1, size, size, dtype=torch.int32),
            image_of_box=torch.zeros(1, dtype=torch.int64),
            weights=torch.zeros(1),
            images=0,
            skipped=skipped,
        )
    counts = [len(sample.boxes) for sample in usable]
    return Batch(
        image=torch.from_numpy(np.stack([sample.image for sample in usable])),
        boxes=torch.from_numpy(np.concatenate([sample.boxes for sample in usable])),
        masks=torch.from_numpy(np.concatenate([sample.masks for sample in usable])),
        labels=torch.from_numpy(np.stack([sample.labels for sample in usable])),
        image_of_box=torch.from_numpy(np.repeat(np.arange(len(usable)), counts)),
        weights=torch.from_numpy(np.repeat(1 / np.array(counts), counts).astype(np.float32)),
        images=len(usable),
        skipped=skipped,
    )
