"""Encode a window of each image instead of all of it: more images for the same work, at the full scale.

An object seldom needs the whole image, and the encoder looks about only a little way: what it makes of a
window is, but at the rim, what it makes of that part of the image. So each image of a batch gives a window
round one of its objects. The network's frame stays that of the image: boxes, and the positions of tokens, are
those they have in it, and the tokens that are decoded (see `litemed.train.tokens`) come from the window.

The encoder's attention works in blocks of 14, 28 and 56 pixels, the last of which reach past the input's
right and lower edges. A window begins where such blocks do, and is two of the largest wide; or it lies at the
far edge and ends there. Either way its blocks are blocks of the whole image.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from litemed.train.dataset import Batch
from litemed.train.tokens import PATCH

BLOCK = 56
"""Pixels, after which the encoder's blocks of attention begin anew in all of its stages."""

_BLOCKS = 2  # a window's side
_AT_EDGE = 0.25  # of the batches have windows at the far edge, for either axis
_LEAST_OF_BOX, _LEAST_OF_WINDOW = 0.5, 0.25  # what a window has to show of a box, or a box cover of it


@dataclass(frozen=True, eq=False)
class Windows:
    """One window of each of B images of side `size`.

    low: int64 (B, 2), the x and y of its first pixel, multiples of 4. sides: its width and height, likewise.
    """

    low: Tensor
    sides: tuple[int, int]
    size: int

    def of_images(self, images: Tensor) -> Tensor:
        """Cut (B, C, height, width) from images (B, C, size, size)."""
        width, height = self.sides
        places = zip(images, self.low.tolist(), strict=True)
        cut = torch.stack([image[:, y : y + height, x : x + width] for image, (x, y) in places])
        return cut.contiguous(memory_format=torch.channels_last)

    def in_place(self, embeddings: Tensor) -> Tensor:
        """Put embeddings of windows, (B, C, height / 4, width / 4), into zeros (B, C, size / 4, size / 4)."""
        whole, (height, width) = self.size // PATCH, embeddings.shape[2:]
        placed = []
        for embedding, (x, y) in zip(embeddings, (self.low // PATCH).tolist(), strict=True):
            placed.append(F.pad(embedding, (x, whole - x - width, y, whole - y - height)))
        return torch.stack(placed)

    def tokens(self) -> Tensor:
        """Return which of the images' tokens they hold, bool (B, (size / 4)^2), row by row."""
        centre = (torch.arange(self.size // PATCH, device=self.low.device) + 0.5) * PATCH
        low = self.low[:, None]
        within = (centre[:, None] > low) & (centre[:, None] < low + low.new_tensor(self.sides))
        return (within[:, :, None, 1] & within[:, None, :, 0]).flatten(1)

    def shown(self, boxes: Tensor, image_of_box: Tensor) -> Tensor:
        """Return which boxes (N, 4) the windows show, bool (N,): half of them, or a part that fills it."""
        low = self.low[image_of_box]
        sides = low.new_tensor(self.sides)
        common = torch.minimum(boxes[:, 2:] + 1, low + sides) - torch.maximum(boxes[:, :2], low)
        area = common.clamp(min=0).prod(1)
        own = (boxes[:, 2:] + 1 - boxes[:, :2]).prod(1)
        return (area >= _LEAST_OF_BOX * own) | (area >= _LEAST_OF_WINDOW * sides.prod())


def draw_windows(
    boxes: Tensor,
    image_of_box: Tensor,
    images: int,
    size: int,
    random: torch.Generator | None = None,
) -> Windows:
    """Draw a window round the middle of one box of each image, chosen at random, as far as that can be.

    Args:
        boxes: (N, 4), x0 y0 x1 y1 in pixels of images of side `size`.
        image_of_box: (N,) int64.
        images: how many there are, B; those without a box get a window anywhere.
        size: at least 112.
        random: of the CPU, to draw with; None: PyTorch's own.
    """
    chance = torch.rand(images, len(boxes), generator=random).masked_fill(
        image_of_box.cpu() != torch.arange(images)[:, None], -1.0
    )
    middle = ((boxes[:, :2] + boxes[:, 2:] + 1) / 2).cpu()
    sides, lows = [], []
    for axis in range(2):
        last = (size - _BLOCKS * BLOCK) // BLOCK * BLOCK
        if torch.rand((), generator=random) < _AT_EDGE:
            begins, side = torch.tensor([last]), size - last
        else:
            begins, side = torch.arange(0, last + 1, BLOCK), _BLOCKS * BLOCK
        sides.append(side)
        lows.append((begins, side, middle[:, axis]))
    # Boxes whose middle a window can hold come first.
    holdable = torch.stack([_holds(*low).any(1) for low in lows]).all(0)
    chosen = (chance + holdable * (chance >= 0)).argmax(1)
    low = torch.stack(
        [_draw(begins, _holds(begins, side, at)[chosen], random) for begins, side, at in lows], 1
    )
    return Windows(low.to(boxes.device), (sides[0], sides[1]), size)


def in_windows(batch: Batch, random: torch.Generator | None = None) -> tuple[Batch, Windows | None]:
    """Draw windows for a batch; returns it with those boxes that they show, and them.

    The images stay whole; `shown` of the batch says which of their tokens the windows hold. None instead of
    windows, and the batch as it was, where they would show no box.
    """
    windows = draw_windows(batch.boxes, batch.image_of_box, len(batch.image), batch.image.shape[-1], random)
    shown = windows.shown(batch.boxes, batch.image_of_box)
    if not batch.images or not shown.any():
        return batch, None
    image_of_box = batch.image_of_box[shown]
    boxes_of_image = torch.bincount(image_of_box, minlength=len(batch.image))
    kept = dataclasses.replace(
        batch,
        boxes=batch.boxes[shown],
        masks=batch.masks[shown],
        image_of_box=image_of_box,
        weights=1 / boxes_of_image[image_of_box],
        images=int((boxes_of_image > 0).sum()),
        shown=windows.tokens(),
    )
    return kept, windows


def _holds(begins: Tensor, side: int, middle: Tensor) -> Tensor:
    """Return which windows hold which middles: bool (N, windows)."""
    return (begins <= middle[:, None]) & (middle[:, None] <= begins + side)


def _draw(begins: Tensor, wanted: Tensor, random: torch.Generator | None) -> Tensor:
    """Draw one of `begins` (W,) for each row of `wanted` (B, W), of those it wants if there are any: (B,)."""
    return begins[(torch.rand(wanted.shape, generator=random) + wanted).argmax(1)]
