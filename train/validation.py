"""How well the network segments the validation slices: DSC by modality, the way the runtime would.

Each slice goes through the runtime's own preprocess, every object is prompted with its tight box, and the
boxes are merged by the runtime's own merge and its default rule. In float32, as the exported network.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from litemed.models.litemedsam import LiteMedSAM
from litemed.runtime.boxes import scale_boxes
from litemed.runtime.dice import dice_by_label
from litemed.runtime.errors import InputError
from litemed.runtime.merge import LogitResizer, RunningMerge, label_dtype
from litemed.runtime.nesting import Nesting
from litemed.runtime.preprocess import Frame, preprocess
from litemed.train.config import Validation
from litemed.train.dataset import SliceSource, why_skipped
from litemed.train.distributed import Processes
from litemed.train.loader import loader_of
from litemed.train.prepare.objects import boxes_of, number

BOXES_AT_ONCE = 32
"""Bounds the memory of the decoder: about 70 MB a box at 256 x 256 in float32."""

IMAGES_AT_ONCE = 4
"""Bounds that of the encoder: half a gigabyte an image at the full size in float32."""


@dataclass(frozen=True)
class ValidationScores:
    """Mean DSC in [0, 1] by modality, and how many slices could not be used."""

    dsc: Mapping[str, float]
    skipped: int

    @property
    def macro(self) -> float | None:
        """The mean DSC over the modalities; None without any."""
        return sum(self.dsc.values()) / len(self.dsc) if self.dsc else None


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

    Raises InputError when there is no object.
    """
    objects = number(labels)
    if not len(objects):
        raise InputError("no object")
    tensor, frame = preprocess(image, size)
    tight = np.minimum(boxes_of(objects), (frame.width, frame.height) * 2)
    boxes, nesting = scale_boxes(tight, frame), Nesting.of(tight)
    return ValidationItem(modality, tensor[0], boxes, objects.labels, nesting, frame)


def load_items(numbers: Sequence[int], source: SliceSource, size: int) -> list[ValidationItem | str]:
    """Return the items of some slices; for one that cannot be used the line that says why."""
    found: list[ValidationItem | str] = []
    for slice_number in numbers:
        info = source.info(slice_number)
        try:
            found.append(make_item(info.modality, *source[slice_number], size))
        except InputError as error:
            found.append(why_skipped(info, error))
    return found


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


def validate(
    model: LiteMedSAM, source: SliceSource, settings: Validation, workers: int, processes: Processes
) -> ValidationScores:
    """Score the network on the validation slices; the work is shared out to all processes.

    A slice's DSC is the mean over its objects, a modality's the mean over its slices. The network is left in
    evaluation mode. workers: loader processes of each process.
    """
    names = sorted(source.indices_by_modality())
    indices = validation_slices(source, settings.slices_per_modality)[processes.rank :: processes.world]
    load = functools.partial(load_items, source=source, size=model.size)
    # One row a modality: sum of DSC, slices. The last row: slices skipped.
    sums = torch.zeros(len(names) + 1, 2, dtype=torch.float64)
    model.eval()
    for batch in loader_of(load, workers, dataset=indices.tolist(), batch_size=IMAGES_AT_ONCE):
        usable = [item for item in batch if isinstance(item, ValidationItem)]
        sums[-1, 1] += len(batch) - len(usable)
        maps = label_maps(model, usable, processes.device) if usable else []
        for item, labels in zip(usable, maps, strict=True):
            dice = float(dice_by_label(labels, item.truth, len(item.boxes)).mean())
            sums[names.index(item.modality)] += torch.tensor([dice, 1.0], dtype=torch.float64)
    *rows, (_, skipped) = processes.sum(sums).tolist()
    dsc = {name: total / count for name, (total, count) in zip(names, rows, strict=True) if count}
    return ValidationScores(dsc, int(skipped))
