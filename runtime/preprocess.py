"""From an image to the network's input, exactly as published with LiteMedSAM.

Resize so that the longest side is 256, scale the intensities of the resized
image to [0, 1], pad with zeros on the right and below. The boxes follow in `litemed.runtime.boxes`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

INPUT_SIZE = 256
"""Side of the network's square input, in pixels."""


@dataclass(frozen=True)
class Frame:
    """How an image lies in the network's input: its own size and its size once resized, all in pixels."""

    height: int
    width: int
    scaled_height: int
    scaled_width: int
    size: int = INPUT_SIZE

    @classmethod
    def of(cls, height: int, width: int, size: int = INPUT_SIZE) -> Frame:
        """Return the frame of an image of `height` x `width` pixels (each at least 1).

        The longest side becomes `size`; each side is `int(side * scale + 0.5)` as published, but never
        less than one pixel (the published code fails on images more than 512 times as long as wide).
        """
        scale = size / max(height, width)
        return cls(
            height=height,
            width=width,
            scaled_height=max(1, int(height * scale + 0.5)),
            scaled_width=max(1, int(width * scale + 0.5)),
            size=size,
        )


def preprocess(image: NDArray[np.uint8], size: int = INPUT_SIZE) -> tuple[NDArray[np.float32], Frame]:
    """Return the network's input for one image or slice, and how the image lies in it.

    `image` is uint8, (H, W) grey or (H, W, 3), no side of zero. The input is float32 (1, 3, size, size) in
    [0, 1], C-contiguous. A constant image becomes all zeros.
    """
    frame = Frame.of(image.shape[0], image.shape[1], size)
    # The resize is done on uint8, with its rounding, as published; where an image is enlarged OpenCV's area
    # interpolation is a bilinear one.
    target = (frame.scaled_width, frame.scaled_height)
    resized = cv2.resize(image, target, interpolation=cv2.INTER_AREA)
    # 256 quotients instead of one a pixel; float64 first and float32 last, as published.
    low, high = int(resized.min()), int(resized.max())
    intensity = ((np.arange(256) - low) / max(high - low, 1e-8)).astype(np.float32)
    channels_last = resized if resized.ndim == 3 else resized[:, :, np.newaxis]
    padded = np.zeros((1, 3, size, size), np.float32)
    padded[0, :, : frame.scaled_height, : frame.scaled_width] = intensity[channels_last].transpose(2, 0, 1)
    return padded, frame
