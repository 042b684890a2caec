"""From slices and their labels to what a training step takes.

Loader processes read and resize slices to batches; nothing there is random. On the device that trains, whole
batches are augmented and boxes are drawn, from the seed, the epoch and the step alone.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from litemed.runtime.engines.cpu import available_threads
from litemed.runtime.errors import InputError
from litemed.train.augment import augment, chances_of
from litemed.train.config import Config
from litemed.train.prepare.slices import resize_image, resize_labels
from litemed.train.prepare.store import SliceInfo
from litemed.train.prompts import Prompted, draw_prompts

_MOST_WORKERS = 16
_EXAMPLE_STREAM = 2  # keeps the examples' random numbers apart from the sampler's


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
    """What a run learns from and is scored on. volumes: modality and file of test cases with ground truth."""

    training: SliceSource
    validation: SliceSource
    volumes: Sequence[tuple[str, Path]] = ()


class Batch(NamedTuple):
    """B slices at the network's scale, each in the upper left of a square of side S; else 0.

    Of a slice that could not be used all is 0, without an object.

    image: uint8 (B, 3, S, S). labels: int32 (B, S, S). extent: int64 (B, 2), height and width of the slice in
    the square. of_volume: bool (B,), which are slices of volumes. skipped: a line for each slice that could
    not be used.
    """

    image: Tensor
    labels: Tensor
    extent: Tensor
    of_volume: Tensor
    skipped: Sequence[str]

    def __reduce__(self) -> tuple[Any, ...]:
        """Go from process to process as arrays: tensors would go through /dev/shm, which may be small."""
        return _batch_of_arrays, (*(tensor.numpy() for tensor in self[:4]), self.skipped)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; on a GPU without waiting."""
        image, labels, extent, of_volume = (tensor.to(device, non_blocking=True) for tensor in self[:4])
        return Batch(image, labels, extent, of_volume, self.skipped)


def _batch_of_arrays(*parts: Any) -> Batch:
    image, labels, extent, of_volume = map(torch.from_numpy, parts[:4])
    return Batch(image, labels, extent, of_volume, parts[4])


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
            info = source.info(slice_number)
            skipped.append(f"{info.modality}/{info.source}/{info.case} slice {info.z}: {error}")
            continue
        height, width = extent[i] = objects.shape
        image[i, :, :height, :width] = found if found.ndim == 2 else found.transpose(2, 0, 1)
        labels[i, :height, :width] = objects
    of_volume = torch.tensor([source.info(slice_number).of_volume for slice_number in numbers])
    return Batch(
        torch.from_numpy(image), torch.from_numpy(labels), torch.from_numpy(extent), of_volume, skipped
    )


def training_loader(
    source: SliceSource, min_pixels: int, batches: Iterable[list[int]], config: Config, device: torch.device
) -> DataLoader[Batch]:
    """Return the loader of a run: each iteration yields what `batches` says, see `load_batch`.

    OpenCV keeps to one thread in this process and so in those forked from it. Not in the loader processes:
    they inherit a pool without its threads, and any change of it waits for ever.
    """
    cv2.setNumThreads(1)
    workers = config.hardware.workers
    if workers < 0:
        workers = min(_MOST_WORKERS, available_threads())
    return DataLoader(
        range(len(source)),  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=_start_worker,
        collate_fn=functools.partial(load_batch, source=source, size=config.run.size, min_pixels=min_pixels),
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        # Its own, so that starting an epoch anew takes nothing from the run's random numbers.
        generator=torch.Generator().manual_seed(config.run.seed),
    )


def _start_worker(_: int) -> None:
    """Let a loader process leave Ctrl-C, and a SIGTERM to the whole group, to the process that trains.

    A second SIGTERM ends it: that process sends one to those that it waited for in vain.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def generator_of(seed: int, epoch: int, step: int, device: torch.device) -> torch.Generator:
    """Return the random numbers of one step."""
    state = np.random.SeedSequence([seed, _EXAMPLE_STREAM, epoch, step, 0]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


def make_examples(batch: Batch, config: Config, generator: torch.Generator) -> tuple[Tensor, Prompted]:
    """Augment a batch and draw boxes of its objects, all on the device of `generator`.

    Returns the images, float32 (B, 3, S, S) in [0, 1], and boxes.
    """
    image, labels, extent = augment(*batch[:3], chances_of(config.augmentation), generator)
    prompts = draw_prompts(labels, extent, config.prompts, generator, of_volume=batch.of_volume)
    return image.contiguous(memory_format=torch.channels_last) if image.is_cuda else image, prompts
