"""From label maps at the network's scale to the boxes that are trained on."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from litemed.train.config import Prompts

REFERENCE_SIZE = 256  # the input size that jitter in pixels refers to
MIN_OBJECT_PIXELS = 4  # of the network's input; smaller objects are not prompted
_PER_IMAGE = 4  # objects prompted at most
_JITTER_SHARES = (0.1, 0.2)  # of a box's side: how far a jittered edge moves at most, one of these
_LOOSE_SHARE = 0.4  # the same of a loose edge
# What `litemed.runtime.plan.Plan.prompts` gives an object's slices, beside their tight boxes: how much longer
# a side is, as a logarithm, and how far its middle lies off, in sides, the farther the longer it is. Fitted
# to 1,720 slices of objects in 45 volumes of CT, MR and PET. There and here: quartiles of the logarithm .04,
# .18, .43 and .04, .19, .44; of an edge's way outwards in tight sides 0, .05, .25 and -.03, .07, .28; mean
# IoU of tight and given box .54 and .52. In 30 others, most slices from small organs, the IoU is lower: .41.
_LONGER = (-0.06, 0.36)  # the least, and the mean of an exponential distribution on top of it
_ALIKE = 0.56  # share of the boxes of which both sides are as much longer; their correlation
_OFF = (0.06, 0.37, 0.5)  # standard deviation, its growth with the logarithm, and the most
_FINER_PIXEL = (0.2, 1.0)  # side of a pixel of the image as it was, in those of the network's input


@dataclass(frozen=True, eq=False)
class Prompted:
    """N objects of B images, those of an image on one another's heels, and their boxes.

    boxes: float32 (N, 4), x0 y0 x1 y1, whole pixels of the network's input. masks: uint8 (N, S, S), 0 or 1.
    image_of_box: int64 (N,), ascending. weights: float32 (N,), 1 / boxes of the same image, so that every
    image counts the same. Where no image has an object it is one box of no weight.
    """

    boxes: Tensor
    masks: Tensor
    image_of_box: Tensor
    weights: Tensor


def draw_prompts(
    labels: Tensor,
    extent: Tensor,
    settings: Prompts,
    generator: torch.Generator,
    per_image: int = _PER_IMAGE,
    min_pixels: int = MIN_OBJECT_PIXELS,
    of_volume: Tensor | None = None,
) -> Prompted:
    """Return boxes of objects of each image, drawn at random.

    labels: int32 (B, S, S), 0 is background and padding. extent: int64 (B, 2), height and width of the
    content, at the upper left. generator: of their device. per_image: how many objects of an image at most.
    min_pixels: smaller objects are not drawn. of_volume: bool (B,), which images are slices of volumes; none
    by default.
    """
    images, count = len(labels), int(labels.max()) + 1
    image = torch.arange(images, device=labels.device)[:, None, None]
    pixels = torch.bincount((image * count + labels).flatten(), minlength=images * count)
    large = pixels.view(images, count) >= min_pixels
    large[:, 0] = False
    lot = torch.rand(large.shape, generator=generator, device=labels.device)
    chosen = torch.where(large, lot, -1).topk(min(per_image, count), dim=1)
    image_of_box, rank = torch.nonzero(chosen.values >= 0, as_tuple=True)
    if not len(image_of_box):
        whole = torch.tensor([[0, 0, 1, 1]], device=labels.device) * labels.shape[-1]
        nothing = torch.zeros_like(labels[:1], dtype=torch.uint8)
        first = torch.zeros(1, dtype=torch.int64, device=labels.device)
        return Prompted(whole.float(), nothing, first, weights=first.float())
    numbers = chosen.indices[image_of_box, rank].to(labels.dtype)
    masks = labels[image_of_box] == numbers[:, None, None]
    place = None if of_volume is None else of_volume[image_of_box]
    boxes = loosen(tight_boxes(masks), extent[image_of_box], labels.shape[-1], settings, generator, place)
    boxes_of_image = torch.bincount(image_of_box, minlength=images)
    return Prompted(
        boxes=boxes,
        masks=masks.to(torch.uint8),
        image_of_box=image_of_box,
        weights=1 / boxes_of_image[image_of_box].to(torch.float32),
    )


def tight_boxes(masks: Tensor) -> Tensor:
    """Return the boxes of masks, bool (N, S, S) none empty, as `boxes_of` those of objects: int64 (N, 4)."""
    ends = []
    for held in (masks.any(1), masks.any(2)):  # columns, then rows
        columns = held.to(torch.uint8)
        first = columns.argmax(1)
        last = columns.shape[1] - 1 - columns.flip(1).argmax(1)
        ends.append((first, torch.maximum(last, first + 1)))
    return torch.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], dim=1)


def loosen(
    tight: Tensor,
    extent: Tensor,
    size: int,
    settings: Prompts,
    generator: torch.Generator,
    of_volume: Tensor | None = None,
) -> Tensor:
    """Return boxes as they come in practice, float32 (N, 4), whole numbers.

    Each is one of five kinds, at random by the shares of `settings`, within the content and with an area:

    - tight, or a pixel larger, as the runtime makes it from an image of more pixels: there an object begins
      and ends between the pixels of the network's input, and both ends are rounded down;
    - jittered: each edge moves either way by up to a tenth or a fifth of the side;
    - loose: each edge moves outwards, by up to a share of the side that is up to 0.4 and drawn for each box;
    - volume: on slices of volumes as the runtime gives them from one box of the whole object, which is often
      far too large near its ends; else tight;
    - published: each edge moves outwards by 0 to `jitter_pixels` pixels of a 256-pixel input.

    tight: int64 (N, 4), x0 y0 x1 y1 of the first and last pixel. extent: int64 (N, 2), height and width of
    the content of each box's image. size: side of the network's input in pixels. of_volume: bool (N,), as in
    `draw_prompts`.
    """

    def lots(*shape: int) -> Tensor:
        return torch.rand(len(tight), *shape, generator=generator, device=tight.device)

    outwards = torch.tensor([-1.0, -1.0, 1.0, 1.0], device=tight.device)
    pixel = _FINER_PIXEL[0] + (_FINER_PIXEL[1] - _FINER_PIXEL[0]) * lots(1)
    finer = outwards * (lots(4) < (1 - pixel) / 2)
    published = outwards * torch.floor((settings.jitter_pixels + 1) * lots(4)) * (size / REFERENCE_SIZE)
    shares = torch.tensor(_JITTER_SHARES, device=tight.device)
    share = shares[(len(shares) * lots(1)).long()] if settings.jittered else 0.0
    sides = (tight[:, 2:] - tight[:, :2]).repeat(1, 2)
    jittered = sides * share * (2 * lots(4) - 1)
    kind, moves = lots(1), [finer, jittered]
    if settings.loose or settings.volume:  # without them nothing more is drawn
        moves.append(outwards * sides * _LOOSE_SHARE * lots(1) * lots(4))
        lot = torch.where(lots(1) < _ALIKE, lots(1), lots(2))
        longer = _LONGER[0] - _LONGER[1] * torch.log1p(-lot)
        normal = torch.randn(longer.shape, generator=generator, device=tight.device)
        off = (normal * (_OFF[0] + _OFF[1] * longer.abs())).clamp(-_OFF[2], _OFF[2]) * longer.exp()
        profile = sides * (outwards * longer.expm1().repeat(1, 2) / 2 + off.repeat(1, 2))
        moves.append(finer if of_volume is None else torch.where(of_volume[:, None], profile, finer))
    move = published
    for upto, candidate in reversed([*zip(itertools.accumulate(settings.shares), moves, strict=False)]):
        move = torch.where(kind < upto, candidate, move)
    limits = extent.flip(1).repeat(1, 2)
    rounded = move.floor() + (lots(4) < move - move.floor())
    moved = (tight + rounded).clamp(min=0).minimum(limits)
    # An edge may have moved past the other one; both keep to the image.
    low = torch.minimum(moved[:, :2], moved[:, 2:]).minimum(limits[:, :2] - 1)
    high = torch.maximum(moved[:, :2], moved[:, 2:]).maximum(low + 1)
    return torch.cat([low, high], dim=1).to(torch.float32)
