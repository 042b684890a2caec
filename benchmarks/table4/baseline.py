"""The published LiteMedSAM procedure in PyTorch: the Baseline of Table 4.

Source: the inference script published with LiteMedSAM (CVPR 2024 challenge), written anew on litemed.models.
As there:

- one box at a time, eager float32, logits resized to the original size, sigmoid, threshold 0.5;
- in an image, which is encoded once, a later box overwrites an earlier one;
- in a volume each box goes from its middle slice up and down, every slice is encoded anew for every box, and
  the prompt of the next slice is the bounding box of the last mask plus 3 pixels at 256 scale.

Unlike there, a box's first and last slice are included and may be the same, labels above 255 are kept, and
no picture is drawn. Nothing here is made faster than it was published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from litemed.runtime.boxes import scale_boxes
from litemed.runtime.merge import label_dtype
from litemed.runtime.preprocess import Frame, preprocess

if TYPE_CHECKING:
    from litemed.models.litemedsam import LiteMedSAM
    from litemed.runtime.case import Case

BOX_MARGIN = 3
Labels = NDArray[np.unsignedinteger]
Float = NDArray[np.float32]


@dataclass
class Baseline:
    """The published procedure with one set of weights."""

    model: LiteMedSAM

    def segment(self, case: Case) -> Labels:
        """Return a case's label map, (H, W) or (D, H, W)."""
        labels = np.zeros(case.shape, label_dtype(len(case.boxes)))
        frame = Frame.of(case.shape[-2], case.shape[-1], self.model.size)
        prompts = scale_boxes(case.boxes.xyxy, frame)
        with torch.no_grad():
            if case.boxes.z is None:
                embedding = self._encode(case.image)
                for number, prompt in enumerate(prompts, start=1):
                    labels[self._mask(embedding, prompt, frame)] = number
            else:
                for number, (prompt, z) in enumerate(zip(prompts, case.boxes.z, strict=True), start=1):
                    labels[self._propagate(case.image, prompt, z, number, frame) > 0] = number
        return labels

    def _propagate(
        self, volume: NDArray[np.uint8], prompt: Float, slices: NDArray[np.int64], number: int, frame: Frame
    ) -> NDArray[np.uint8]:
        """Return the masks (D, H, W) of one box; within them they hold its number, as published."""
        masks = np.zeros(volume.shape, np.uint8)
        first, last = slices.tolist()
        middle = (last - first) // 2 + first
        up = ((z, z - 1) for z in range(middle, last + 1))
        down = ((z, z + 1) for z in range(middle - 1, first - 1, -1))
        for z, previous in (*up, *down):
            here = prompt if z == middle else next_prompt(masks[previous], frame, prompt)
            masks[z, self._mask(self._encode(volume[z]), here, frame)] = min(number, 255)
        return masks

    def _encode(self, image: NDArray[np.uint8]) -> torch.Tensor:
        # As published: a grey slice is repeated before the resize.
        colour = image if image.ndim == 3 else np.repeat(image[:, :, np.newaxis], 3, axis=-1)
        return self.model.encode(torch.from_numpy(preprocess(colour, self.model.size)[0]))

    def _mask(self, embedding: torch.Tensor, prompt: Float, frame: Frame) -> NDArray[np.bool_]:
        """Return one box's mask (H, W) at the original size."""
        logits, _ = self.model.decode(embedding, torch.from_numpy(prompt[np.newaxis]))
        cropped = logits[..., : frame.scaled_height, : frame.scaled_width]
        size = (frame.height, frame.width)
        full = functional.interpolate(cropped, size=size, mode="bilinear", align_corners=False)
        return torch.sigmoid(full).squeeze(0).squeeze(0).numpy() > 0.5


def next_prompt(mask: NDArray[np.uint8], frame: Frame, otherwise: Float) -> Float:
    """Return the prompt (4,) that a mask (H, W) gives to the next slice; `otherwise` if it is empty."""
    target = (frame.scaled_width, frame.scaled_height)
    rows, columns = np.nonzero(cv2.resize(mask, target, interpolation=cv2.INTER_AREA))
    if not rows.size:
        return otherwise
    low = np.maximum([columns.min() - BOX_MARGIN, rows.min() - BOX_MARGIN], 0)
    high = np.minimum([columns.max() + BOX_MARGIN, rows.max() + BOX_MARGIN], frame.size)
    return np.concatenate([low, high]).astype(np.float32)
