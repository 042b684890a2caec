"""The published LiteMedSAM baseline's way: one box at a time, in volumes from slice to slice.

In an image a later box overwrites an earlier one. In a volume each box starts on its middle slice and goes up
and down from there; the prompt of the next slice is the bounding box of the last slice's mask, enlarged by 3
pixels in the network's input, or the box itself where that mask is empty. Source: the published inference
script; unlike there, the first and the last slice of a box are included, and a box may be a single slice.

A box that was drawn on one slice of a volume is followed from there both ways, as far as its object goes: to
the slice before the first one of which the mask's predicted IoU is below `END` of that of the slice drawn on.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from litemed.runtime.boxes import scale_boxes
from litemed.runtime.engines.protocol import Float
from litemed.runtime.inference import Inference
from litemed.runtime.plan import Plan, covered
from litemed.runtime.predicted_iou import PredictedIou
from litemed.runtime.preprocess import Frame
from litemed.runtime.resize import Crop, LogitResizer, crop_of

BOX_MARGIN = 3
"""By how much a mask's bounding box is enlarged on each side, in pixels of the network's input."""

END = 0.92
"""The best of .80 to .94 on 8 whole volumes (CT, MR, PET), from the box of the object's middle slice.

DSC .740; without an end .702, where 12 slices beyond the object at most are counted; at .80 .707; at .94 one
of the volumes ends far too early. With a fixed predicted IoU of .80 it is .748, with .85 .550.
"""

KEPT_EMBEDDINGS = 32
"""How many slices' embeddings are kept from the way up for the way down: 4 MiB each at input size 256."""

Labels = NDArray[np.unsignedinteger]


def propagate(
    plan: Plan, labels: Labels, inference: Inference, predicted: PredictedIou
) -> Iterator[tuple[int, int]]:
    """Segment a case, writing box i as label i + 1 into zeros (D, H, W); yield the slices done and all.

    The boxes do not depend on each other, so all of them go up together and then down together, and a slice
    is encoded once, not once a box. Only where more than `KEPT_EMBEDDINGS` slices lie on one box's way up and
    on another's way down, the rest of them is encoded twice.
    """
    first, last = plan.z.T
    middle, sure = plan.middle, np.zeros(len(plan.z), np.float32)
    way_up, way_down = covered(middle, last), covered(first, middle - 1)[::-1]
    total = len(way_up) + len(way_down)
    resizer, given = LogitResizer(plan.frame), scale_boxes(plan.xyxy, plan.frame)
    going_up, going_down = given.copy(), given.copy()
    kept: dict[int, Float] = {}

    def take(embedding: Float, position: int, here: NDArray[np.bool_], prompts: Float) -> None:
        """Decode the boxes `here` (N,) on a slice, and turn their `prompts` into those of the next slice.

        Prompts of objects that have ended become NaN.
        """
        for i in np.flatnonzero(here & ~np.isnan(prompts[:, 0])).tolist():
            (logits,), iou = inference.decode(embedding, prompts[[i]])
            if position == middle[i]:
                sure[i] = iou[0]
            if plan.follows[i] and iou[0] < END * sure[i]:
                prompts[i] = np.nan
                continue
            predicted.add(position, np.array([i]), iou)
            with inference.timing("merge"):
                crop = None if plan.crops is None else crop_of(plan.crops[i])
                mask = _write(resizer, logits, i + 1, labels[position], crop)
                if total > 1:
                    prompts[i] = _next_prompt(mask, plan.frame, given[i])

    for done, position in enumerate(way_up, start=1):
        here = (middle <= position) & (position <= last)
        if _going(here, going_up):
            embedding = inference.encode(plan.images[position])
            if position in way_down and len(kept) < KEPT_EMBEDDINGS:
                kept[position] = embedding
            take(embedding, position, here, going_up)
        starting = middle == position
        going_down[starting] = going_up[starting]
        yield done, total
    for done, position in enumerate(way_down, start=len(way_up) + 1):
        here = (first <= position) & (position < middle)
        if _going(here, going_down):
            embedding = kept.pop(position) if position in kept else inference.encode(plan.images[position])
            take(embedding, position, here, going_down)
        yield done, total


def _going(here: NDArray[np.bool_], prompts: Float) -> bool:
    """Return whether any of the boxes `here` has an object that did not end yet."""
    return not bool(np.isnan(prompts[here, 0]).all())


def _write(
    resizer: LogitResizer, logits: Float, number: int, labels: Labels, crop: Crop | None
) -> NDArray[np.uint8]:
    """Write a label where the resized logits are positive, over lower labels only; return the mask, uint8.

    The mask holds the box's number (at most 255), as published: the area resize that follows rounds, so that
    of a box with a higher number it keeps pixels that are covered less.
    """
    mask = np.zeros(labels.shape, np.uint8)
    own = labels.dtype.type(number)
    for rows, columns, values in resizer.winnable_blocks(logits, crop):
        inside = values > 0
        mask[rows, columns] = inside * np.uint8(min(number, 255))
        # The later box wins: in order of the boxes that would be an overwriting.
        np.maximum(labels[rows, columns], inside * own, out=labels[rows, columns])
    return mask


def _next_prompt(mask: NDArray[np.uint8], frame: Frame, otherwise: Float) -> Float:
    """Return the prompt (4,) that a mask (H, W) gives to the next slice."""
    target = (frame.scaled_width, frame.scaled_height)
    resized = cv2.resize(mask, target, interpolation=cv2.INTER_AREA)
    rows, columns = np.flatnonzero(resized.any(axis=1)), np.flatnonzero(resized.any(axis=0))
    if not rows.size:
        return otherwise
    low = np.maximum([columns[0] - BOX_MARGIN, rows[0] - BOX_MARGIN], 0)
    high = np.minimum([columns[-1] + BOX_MARGIN, rows[-1] + BOX_MARGIN], frame.size)
    return np.concatenate([low, high]).astype(np.float32)
