"""How well the network segments the validation slices: DSC by modality, the way the runtime would.

Each slice goes through the runtime's own preprocess, every object is prompted with its tight box, and the
boxes are merged by the runtime's own merge and its default rule. In float32, as the exported network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from litemed.models.litemedsam import LiteMedSAM
from litemed.runtime.dice import dice_by_label
from litemed.runtime.errors import InputError
from litemed.runtime.merge import LogitResizer, RunningMerge, label_dtype
from litemed.runtime.nesting import Nesting
from litemed.runtime.preprocess import Frame, preprocess, scale_boxes
from litemed.train.config import Validation
from litemed.train.dataset import Skipped, SliceSource, check_slice, skipped
from litemed.train.distributed import Processes
from litemed.train.loader import before_forking, start_worker
from litemed.train.prompts import find_boxes

BOXES_AT_ONCE = 32
"""Bounds the memory of the decoder: about 70 MB a box at 256 x 256 in float32."""

IMAGES_AT_ONCE = 4
"""Bounds that of the encoder: half a gigabyte an image at the full size in float32."""


@dataclass(frozen=True)
class ValidationScores:
    """Mean DSC in [0, 1] by modality, how many slices each mean is of, and slices that could not be used.

    ellipse: as `dsc`, of the ellipses inscribed in the boxes: what there is to beat, without a look at the
    picture.
    """

    dsc: Mapping[str, float]
    ellipse: Mapping[str, float]
    slices: Mapping[str, int]
    skipped: int

    @property
    def macro(self) -> float | None:
        """The mean DSC over the modalities; None without any."""
        return _mean(self.dsc)

    @property
    def macro_ellipse(self) -> float | None:
        """That of the ellipses."""
        return _mean(self.ellipse)


def _mean(by_modality: Mapping[str, float]) -> float | None:
    return sum(by_modality.values()) / len(by_modality) if by_modality else None


@dataclass(frozen=True, eq=False)
class ValidationItem:
    """One slice to score.

    image: float32 (3, S, S). boxes: float32 (N, 4) in its pixels. truth: (h, w), labels 1 to N. nesting: of
    the boxes in pixels of the slice. frame: how the slice lies in the image.
    """

    modality: str
    image: NDArray[np.float32]
    boxes: NDArray[np.float32]
    truth: NDArray[np.unsignedinteger]
    nesting: Nesting
    frame: Frame


def validation_slices(source: SliceSource, per_modality: int) -> NDArray[np.int64]:
    """Return the numbers of the slices to score: at most `per_modality` of each (0: all), evenly spread."""
    chosen = []
    for indices in source.indices_by_modality().values():
        count = min(per_modality or len(indices), len(indices))
        chosen.append(indices[np.linspace(0, len(indices) - 1, count).round().astype(np.int64)])
    return np.concatenate([np.empty(0, np.int64), *chosen])


def make_item(modality: str, image: NDArray[np.uint8], labels: NDArray[Any], size: int) -> ValidationItem:
    """Turn one slice into an item for a network input of side `size`.

    Raises InputError when image and labels do not fit each other, or there is no object.
    """
    check_slice(image, labels)
    objects = find_boxes(labels)
    if not len(objects):
        raise InputError("no object")
    renumbered = np.zeros(int(labels.max()) + 1, label_dtype(len(objects)))
    renumbered[objects.numbers] = np.arange(1, len(objects) + 1)
    tensor, frame = preprocess(image, size)
    limits = (frame.width, frame.height, frame.width, frame.height)
    tight = np.minimum(objects.xyxy, limits)
    boxes, nesting = scale_boxes(tight, frame), Nesting.of(tight)
    return ValidationItem(modality, tensor[0], boxes, renumbered[labels], nesting, frame)


class ValidationSet(Dataset[ValidationItem | Skipped]):
    """The items of some slices; one that cannot be used comes back as `Skipped`, not as an error."""

    def __init__(self, source: SliceSource, indices: NDArray[np.int64], size: int) -> None:
        self._source = source
        self._indices = indices
        self._size = size

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, number: int) -> ValidationItem | Skipped:
        index = int(self._indices[number])
        info = self._source.info(index)
        try:
            image, labels = self._source[index]
            return make_item(info.modality, image, labels, self._size)
        except InputError as error:
            return skipped(info, error)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # numbers of images and boxes differ: each would be compiled anew
def label_maps(
    model: LiteMedSAM, items: list[ValidationItem], device: torch.device
) -> list[NDArray[np.unsignedinteger]]:
    """Segment several slices: label maps (h, w) in which box i has label i, as the runtime makes them."""
    images = torch.from_numpy(np.stack([item.image for item in items])).to(device)
    maps = []
    for item, embedding in zip(items, model.encode(images), strict=True):
        labels = np.zeros(item.truth.shape, label_dtype(len(item.boxes)))
        merge = RunningMerge(LogitResizer(item.frame), labels, item.nesting)
        for chunk in merge.chunks(np.arange(len(item.boxes)), BOXES_AT_ONCE):
            logits, _ = model.decode(embedding[None], torch.from_numpy(item.boxes[chunk]).to(device))
            merge.add(logits[:, 0].cpu().numpy(), chunk + 1)
        merge.finish()
        maps.append(labels)
    return maps


def dice_of_ellipses(truth: NDArray[Any]) -> NDArray[np.float64]:
    """Return the DSC of each label (N,) of `truth` (h, w) with the ellipse inscribed in its tight box."""
    objects = find_boxes(truth)
    dice = np.empty(len(objects))
    for i, (x0, y0, x1, y1) in enumerate(objects.xyxy.tolist()):
        inside = truth[y0 : y1 + 1, x0 : x1 + 1] == objects.numbers[i]
        y, x = np.ogrid[y0 : y0 + inside.shape[0], x0 : x0 + inside.shape[1]]
        along_x, along_y = (2 * x - x0 - x1) / (x1 - x0 + 1), (2 * y - y0 - y1) / (y1 - y0 + 1)
        ellipse = along_x**2 + along_y**2 <= 1
        dice[i] = 2 * np.count_nonzero(inside & ellipse) / (inside.sum() + ellipse.sum())
    return dice


def validate(
    model: LiteMedSAM, source: SliceSource, settings: Validation, workers: int, processes: Processes
) -> ValidationScores:
    """Score the network on the validation slices; the work is shared out to all processes.

    A slice's DSC is the mean over its objects, a modality's the mean over its slices. The network is left in
    evaluation mode. workers: loader processes of each process.
    """
    names = sorted(source.indices_by_modality())
    indices = validation_slices(source, settings.slices_per_modality)[processes.rank :: processes.world]
    before_forking()
    loader = DataLoader(
        ValidationSet(source, indices, model.size),
        batch_size=IMAGES_AT_ONCE,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=start_worker,
    )
    # One row a modality: sum of DSC, that of the ellipses, slices. The last row: slices skipped.
    sums = torch.zeros(len(names) + 1, 3, dtype=torch.float64)
    model.eval()
    for items in loader:
        usable = [item for item in items if isinstance(item, ValidationItem)]
        sums[-1, 2] += len(items) - len(usable)
        if not usable:
            continue
        for item, labels in zip(usable, label_maps(model, usable, processes.device), strict=True):
            dice = dice_by_label(labels, item.truth, len(item.boxes)).mean()
            row = [dice, dice_of_ellipses(item.truth).mean(), 1.0]
            sums[names.index(item.modality)] += torch.tensor(row, dtype=torch.float64)
    rows = processes.sum(sums).tolist()
    scored = {name: row for name, row in zip(names, rows, strict=False) if row[2]}
    return ValidationScores(
        dsc={name: total / count for name, (total, _, count) in scored.items()},
        ellipse={name: total / count for name, (_, total, count) in scored.items()},
        slices={name: int(count) for name, (*_, count) in scored.items()},
        skipped=int(rows[-1][2]),
    )
