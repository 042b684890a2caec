"""A case slice by slice, as both ways of segmenting take it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.boxes import scale_boxes
from litemed.runtime.case import Case
from litemed.runtime.merge import label_dtype
from litemed.runtime.preprocess import Frame


@dataclass(frozen=True, eq=False)
class Slices:
    """An image is its own and only slice.

    Attributes:
        images: uint8 (D, H, W) or (D, H, W, 3).
        labels: unsigned (D, H, W), zero until it is written: i where box i is, 1-based.
        frame: of each slice.
        z: int64 (N, 2), first and last slice of each box.
        prompts: float32 (N, 4), the boxes in pixels of the network's input.
        crops: int64 (N, 4), the boxes in pixels of a slice if masks end at them, else None.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.unsignedinteger]
    frame: Frame
    z: NDArray[np.int64]
    prompts: NDArray[np.float32]
    crops: NDArray[np.int64] | None

    @classmethod
    def of(cls, case: Case, input_size: int, crop_masks: bool) -> Slices:
        """Take a case apart; `input_size` is that of the network."""
        boxes, images = case.boxes, case.image if case.is_volume else case.image[np.newaxis]
        frame = Frame.of(images.shape[1], images.shape[2], input_size)
        return cls(
            images=images,
            labels=np.zeros(images.shape[:3], label_dtype(len(boxes))),
            frame=frame,
            z=np.zeros((len(boxes), 2), np.int64) if boxes.z is None else boxes.z,
            prompts=scale_boxes(boxes.xyxy, frame),
            crops=boxes.xyxy if crop_masks else None,
        )


def covered(first: Iterable[int], last: Iterable[int]) -> list[int]:
    """Return, ascending, the slices within at least one range; both ends are inclusive."""
    return sorted(
        {position for low, high in zip(first, last, strict=True) for position in range(low, high + 1)}
    )
