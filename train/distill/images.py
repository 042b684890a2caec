"""Labelled slices and unlabelled images as one source, and which of them the teacher sees when."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.readers import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, decode_image, read_bytes
from litemed.train.dataset import SliceSource
from litemed.train.prepare.store import SliceInfo
from litemed.train.sampler import ModalitySampler

_UNLABELLED_STREAM = 3
"""Keeps these random numbers apart from the sampler's and the examples'."""


@dataclass(frozen=True)
class Unlabelled:
    """Images without labels, all of which can be read.

    paths: in the order of their names. sha256: of the names and contents of all of them. unreadable: a line
    for each file that was left out.
    """

    paths: tuple[Path, ...] = ()
    sha256: str = ""
    unreadable: tuple[str, ...] = ()


def find_images(folder: Path) -> Unlabelled:
    """Read the PNG, JPEG and TIFF files in a folder and below it once. Raises UsageError without any."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of unlabelled images")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UsageError(f"{folder}: no {', '.join(IMAGE_SUFFIXES)} file in it or below it")
    digest, paths, unreadable = hashlib.sha256(), [], []
    with ThreadPoolExecutor() as pool:
        for path, (content, problem) in zip(files, pool.map(_try_to_read, files), strict=True):
            if problem is not None:
                unreadable.append(problem)
                continue
            paths.append(path)
            digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    if not paths:
        raise UsageError(f"{folder}: none of its {len(files)} images can be read, such as {unreadable[0]}")
    return Unlabelled(tuple(paths), digest.hexdigest(), tuple(unreadable))


def _try_to_read(path: Path) -> tuple[str, str | None]:
    """Return the sha256 of an image file, and why it cannot be used."""
    try:
        data = read_bytes(path, MAX_IMAGE_BYTES)
        decode_image(data, str(path))
    except InputError as error:
        return "", str(error)
    return hashlib.sha256(data).hexdigest(), None


class MixedSource:
    """The slices of `labelled`, and after them images without labels, read when they are asked for."""

    def __init__(self, labelled: SliceSource, images: Sequence[Path]) -> None:
        self._labelled = labelled
        self._images = tuple(images)

    def __len__(self) -> int:
        return len(self._labelled) + len(self._images)

    def __getitem__(self, i: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Return slice `i` as the labelled source does; labels of an unlabelled image are all 0.

        Raises InputError for an image that cannot be read.
        """
        if i < len(self._labelled):
            return self._labelled[i]
        path = self._images[i - len(self._labelled)]
        image = decode_image(read_bytes(path, MAX_IMAGE_BYTES), str(path))
        return image, np.zeros(image.shape[:2], np.uint8)

    def info(self, i: int) -> SliceInfo:
        """Return where slice `i` comes from."""
        if i < len(self._labelled):
            return self._labelled.info(i)
        path = self._images[i - len(self._labelled)]
        return SliceInfo("unlabelled", path.parent.name, "train", path.name, 0, 0)

    def indices_by_modality(self) -> dict[str, NDArray[np.int64]]:
        """Return the numbers of the labelled slices of each modality."""
        return self._labelled.indices_by_modality()


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
