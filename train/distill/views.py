"""What a student is shown: slices and unlabelled images as one source, and the views kept of them."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from litemed.runtime.engines.cpu import available_threads
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.inputs.files import read_bytes
from litemed.runtime.inputs.pictures import MAX_PICTURE_BYTES, PICTURE_SUFFIXES, decode_image
from litemed.train.dataset import SliceSource
from litemed.train.prepare.store import SliceInfo
from litemed.train.sampler import ModalitySampler

CHANNELS, STRIDE = 256, 4  # of an embedding
_UNLABELLED_STREAM = 3  # keeps these random numbers apart from the sampler's and the examples'


def find_images(folder: Path) -> tuple[list[Path], str, list[str], list[Path]]:
    """Read the PNG, JPEG and TIFF files in a folder and below it once.

    Returns those that can be read, by name, the sha256 of their names and contents, a line for each other
    one, and files that are no such. Hidden ones are passed over. Raises UsageError without any image.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of unlabelled images")
    shown = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    files = [path for path in shown if path.suffix.lower() in PICTURE_SUFFIXES]
    digest, paths, unreadable = hashlib.sha256(), [], []
    with ThreadPoolExecutor(available_threads()) as pool:
        for path, (content, problem) in zip(files, pool.map(_try_to_read, files), strict=True):
            if problem:
                unreadable.append(problem)
                continue
            paths.append(path)
            digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    if not paths:
        such_as = f", such as {unreadable[0]}" if unreadable else ""
        raise UsageError(f"{folder}: no {', '.join(PICTURE_SUFFIXES)} file in it can be read{such_as}")
    return paths, digest.hexdigest(), unreadable, sorted({*shown} - {*files})


def _try_to_read(path: Path) -> tuple[str, str]:
    """Return the sha256 of an image file, or why it cannot be used."""
    try:
        data = read_bytes(path, MAX_PICTURE_BYTES)
        decode_image(data, str(path))
    except InputError as error:
        return "", str(error)
    return hashlib.sha256(data).hexdigest(), ""


@dataclass(frozen=True)
class MixedSource:
    """The slices of `labelled`, and after them images without labels, read when they are asked for."""

    labelled: SliceSource
    images: Sequence[Path]

    def __len__(self) -> int:
        return len(self.labelled) + len(self.images)

    def __getitem__(self, i: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Return slice `i` as the labelled source does; labels of an unlabelled image are all 0."""
        if i < len(self.labelled):
            return self.labelled[i]
        path = self.images[i - len(self.labelled)]
        image = decode_image(read_bytes(path, MAX_PICTURE_BYTES), str(path))
        return image, np.zeros(image.shape[:2], np.uint8)

    def info(self, i: int) -> SliceInfo:
        """Return where slice `i` comes from."""
        if i < len(self.labelled):
            return self.labelled.info(i)
        return SliceInfo("unlabelled", "", "train", self.images[i - len(self.labelled)].name, 0, 0)

    def indices_by_modality(self) -> dict[str, NDArray[np.int64]]:
        """Return the numbers of the labelled slices of each modality."""
        return self.labelled.indices_by_modality()


@dataclass(frozen=True)
class MixedSampler(ModalitySampler):
    """Draws of a sampler, a `share` of them replaced by images that come after the `labelled` slices.

    unlabelled: how many of these there are; without any, nothing is replaced.
    """

    labelled: int
    unlabelled: int
    share: float

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return what is drawn in one epoch, in order, (samples,)."""
        slices = super().epoch(epoch)
        if not self.unlabelled:
            return slices
        random = np.random.default_rng([self.seed, _UNLABELLED_STREAM, epoch])
        others = self.labelled + random.integers(self.unlabelled, size=len(slices))
        return np.where(random.random(len(slices)) < self.share, others, slices)


class Views(NamedTuple):
    """V augmented images.

    image: uint8 (V, 3, S, S), the runtime's [0, 1] times 255. labels: int32 (V, S, S), at most 65535. extent:
    int64 (V, 2). embedding: bfloat16 (V, 256, S/4, S/4), the teacher's. On the device channels come last.
    of_volume: bool (V,), which are slices of volumes.
    """

    image: Tensor
    labels: Tensor
    extent: Tensor
    embedding: Tensor
    of_volume: Tensor


class Ring:
    """The last `capacity` views with what the teacher says of them; a new one replaces the oldest.

    capacity: at least 1. size: side of the images in pixels. Raises UsageError for too little memory.
    """

    def __init__(self, capacity: int, size: int, device: torch.device) -> None:
        self._capacity = capacity
        self.added = 0  # so many views in all; to be set where views are made anew
        side = size // STRIDE
        self.gigabytes = capacity * (size * size * (3 + 2) + side * side * CHANNELS * 2 + 16) / 1e9
        shapes = ((size, size, 3), (size, size), (2,), (side, side, CHANNELS), ())
        dtypes = (torch.uint8, torch.int16, torch.int64, torch.bfloat16, torch.bool)
        try:
            self._kept = [
                torch.empty(capacity, *shape, dtype=dtype, device=device)
                for shape, dtype in zip(shapes, dtypes, strict=True)
            ]
        except (RuntimeError, MemoryError) as error:  # as PyTorch says it on a GPU and on a CPU
            raise UsageError(
                f"distillation.views = {capacity}: {self.gigabytes:.1f} GB are more than {device} has; "
                "keep fewer"
            ) from error

    def __len__(self) -> int:
        return min(self.added, self._capacity)

    def add(self, views: Views) -> None:
        """Keep some more views, at most `capacity` at once."""
        count = len(views.image)
        places = torch.arange(self.added, self.added + count, device=views.image.device) % self._capacity
        image, embedding = views.image.permute(0, 2, 3, 1), views.embedding.permute(0, 2, 3, 1)
        labels = views.labels.to(torch.int16)  # wraps; unwrapped by `draw`
        parts = (image, labels, views.extent, embedding, views.of_volume)
        for kept, part in zip(self._kept, parts, strict=True):
            kept.index_copy_(0, places, part.to(kept.dtype))
        self.added += count

    def draw(self, count: int, generator: torch.Generator) -> Views:
        """Return `count` of the views, drawn at random with repetition."""
        chosen = torch.randint(len(self), (count,), generator=generator, device=generator.device)
        image, labels, extent, embedding, volume = (kept.index_select(0, chosen) for kept in self._kept)
        labels = labels.to(torch.int32) & 0xFFFF
        return Views(image.permute(0, 3, 1, 2), labels, extent, embedding.permute(0, 3, 1, 2), volume)
