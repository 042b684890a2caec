"""From label maps at the network's scale to the boxes that are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from litemed.train.config import Prompts

REFERENCE_SIZE = 256
"""The input size that jitter in pixels refers to."""

_FINER_PIXEL = (0.2, 1.0)  # side of a pixel of the image as it was, in those of the network's input


@dataclass(frozen=True, eq=False)
class ObjectBoxes:
    """Objects of a label map and their tight boxes.

    numbers: (N,) int64, labels above 0. xyxy: (N, 4) int64, x0 y0 x1 y1 of the smallest and largest pixel,
    both inclusive, as in the challenge; an object one pixel wide or high gets an x1 or y1 one larger.
    """

    numbers: NDArray[np.int64]
    xyxy: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)


def find_boxes(labels: NDArray[Any], min_pixels: int = 1) -> ObjectBoxes:
    """Return the objects of `labels`, (H, W) unsigned, that have at least `min_pixels` pixels."""
    counts = np.bincount(labels.ravel())
    places = ndimage.find_objects(labels)
    numbers = np.flatnonzero(counts[1:] >= max(1, min_pixels)) + 1
    xyxy = np.empty((len(numbers), 4), np.int64)
    for row, number in zip(xyxy, numbers.tolist(), strict=True):
        y, x = places[number - 1]
        row[:] = x.start, y.start, max(x.stop - 1, x.start + 1), max(y.stop - 1, y.start + 1)
    return ObjectBoxes(numbers, xyxy)


@dataclass(frozen=True, eq=False)
class Prompted:
    """N objects of B images, those of an image on one another's heels, and their boxes.

    boxes: float32 (N, 4), x0 y0 x1 y1, whole pixels of the network's input. masks: uint8 (N, S, S), 0 or 1.
    image_of_box: int64 (N,), ascending. weights: float32 (N,), 1 / boxes of the same image, so that every
    image counts the same. N is 0 where no image has an object.
    """

    boxes: Tensor
    masks: Tensor
    image_of_box: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.boxes)


def draw_prompts(labels: Tensor, extent: Tensor, settings: Prompts, generator: torch.Generator) -> Prompted:
    """Return boxes of up to `settings.per_image` objects of each image, drawn at random.

    Args:
        labels: int32 (B, S, S), 0 is background and padding; objects have numbers above 0.
        extent: int64 (B, 2), height and width of the content, which lies at the upper left.
        settings: how many objects, and how loose their boxes are.
        generator: of the device that labels lie on; the result follows from its state.
    """
    numbers, image_of_box = _choose_objects(labels, settings, generator)
    masks = labels[image_of_box] == numbers[:, None, None]
    boxes = loosen(tight_boxes(masks), extent[image_of_box], labels.shape[-1], settings, generator)
    boxes_of_image = torch.bincount(image_of_box, minlength=len(labels))
    return Prompted(
        boxes=boxes,
        masks=masks.to(torch.uint8),
        image_of_box=image_of_box,
        weights=1 / boxes_of_image[image_of_box].to(torch.float32),
    )


def _choose_objects(labels: Tensor, settings: Prompts, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return numbers int32 (N,) and images int64 (N,) of the objects drawn."""
    images, numbers = len(labels), int(labels.max()) + 1
    image = torch.arange(images, device=labels.device)[:, None, None]
    pixels = torch.bincount((image * numbers + labels).flatten(), minlength=images * numbers)
    large = pixels.view(images, numbers) >= settings.min_object_pixels
    large[:, 0] = False
    lot = torch.rand(large.shape, generator=generator, device=labels.device)
    chosen = torch.where(large, lot, -1).topk(min(settings.per_image, numbers), dim=1)
    image_of_box, rank = torch.nonzero(chosen.values >= 0, as_tuple=True)
    return chosen.indices[image_of_box, rank].to(labels.dtype), image_of_box


def tight_boxes(masks: Tensor) -> Tensor:
    """Return the boxes of masks, bool (N, S, S) and none empty, as `find_boxes` does: int64 (N, 4)."""
    ends = []
    for held in (masks.any(1), masks.any(2)):  # columns, then rows
        columns = held.to(torch.uint8)
        first = columns.argmax(1)
        last = columns.shape[1] - 1 - columns.flip(1).argmax(1)
        ends.append((first, torch.maximum(last, first + 1)))
    return torch.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], dim=1)


def loosen(tight: Tensor, extent: Tensor, size: int, settings: Prompts, generator: torch.Generator) -> Tensor:
    """Return boxes as they come in practice, float32 (N, 4), whole numbers.

    Each box is one of three kinds, see `litemed.train.config.Prompts`; a kept box may still be a pixel larger
    than tight, as the runtime makes it from an image of more pixels: there an object begins and ends between
    the pixels of the network's input, and both ends are rounded down. Jittered edges are rounded up or down
    at random, so that none tends to either side. A box lies within [0, width] x [0, height] and has an area.

    Args:
        tight: int64 (N, 4), x0 y0 x1 y1 of the first and last pixel.
        extent: int64 (N, 2), height and width of the content of each box's image.
        size: side of the network's input in pixels.
        settings: shares of the kinds.
        generator: of the boxes' device.
    """

    def lots(*shape: int) -> Tensor:
        return torch.rand(len(tight), *shape, generator=generator, device=tight.device)

    outwards = torch.tensor([-1.0, -1.0, 1.0, 1.0], device=tight.device)
    pixel = _FINER_PIXEL[0] + (_FINER_PIXEL[1] - _FINER_PIXEL[0]) * lots(1)
    finer = outwards * (lots(4) < (1 - pixel) / 2)
    published = outwards * torch.floor((settings.jitter_pixels + 1) * lots(4)) * (size / REFERENCE_SIZE)
    shares = torch.tensor(settings.jitter_shares, device=tight.device)
    share = shares[(len(shares) * lots(1)).long()] if settings.jittered else 0.0
    sides = (tight[:, 2:] - tight[:, :2]).repeat(1, 2)
    jittered = sides * share * (2 * lots(4) - 1)
    kind = lots(1)
    move = torch.where(kind < settings.tight + settings.jittered, jittered, published)
    move = torch.where(kind < settings.tight, finer, move)
    limits = extent.flip(1).repeat(1, 2)
    rounded = move.floor() + (lots(4) < move - move.floor())
    moved = (tight + rounded).clamp(min=0).minimum(limits)
    # An edge may have moved past the other one; both keep to the image.
    low = torch.minimum(moved[:, :2], moved[:, 2:]).minimum(limits[:, :2] - 1)
    high = torch.maximum(moved[:, :2], moved[:, 2:]).maximum(low + 1)
    return torch.cat([low, high], dim=1).to(torch.float32)
