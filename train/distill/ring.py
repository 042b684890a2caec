"""Views of images with what the teacher says of them, kept on the device and drawn from many times."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from litemed.runtime.errors import UsageError

CHANNELS, STRIDE = 256, 4  # of an embedding, by the contract of `litemed.models.encoders`


class Views(NamedTuple):
    """V augmented images.

    image: uint8 (V, 3, S, S), the runtime's [0, 1] times 255. labels: int32 (V, S, S), at most 65535. extent:
    int64 (V, 2). embedding: bfloat16 (V, 256, S/4, S/4), the teacher's. On the device channels come last.
    """

    image: Tensor
    labels: Tensor
    extent: Tensor
    embedding: Tensor


class Ring:
    """The last `capacity` views; a new one takes the place of the oldest.

    Args:
        capacity: how many, at least 1.
        size: side of the images in pixels.
        device: where they are kept.

    Raises:
        UsageError: the device has too little memory.
    """

    def __init__(self, capacity: int, size: int, device: torch.device) -> None:
        self._capacity = capacity
        self._added = 0
        side = size // STRIDE
        self.gigabytes = capacity * (size * size * (3 + 2) + side * side * CHANNELS * 2 + 16) / 1e9
        shapes = ((size, size, 3), (size, size), (2,), (side, side, CHANNELS))
        dtypes = (torch.uint8, torch.int16, torch.int64, torch.bfloat16)
        try:
            self._kept = [
                torch.empty(capacity, *shape, dtype=dtype, device=device)
                for shape, dtype in zip(shapes, dtypes, strict=True)
            ]
        except (RuntimeError, MemoryError) as error:  # as PyTorch says it on a GPU and on a CPU
            raise UsageError(
                f"distillation.views = {capacity}: {self.gigabytes:.1f} GB are more than {device} has; "
                "keep fewer"
            ) from error

    def __len__(self) -> int:
        return min(self._added, self._capacity)

    def start_at(self, added: int) -> None:
        """Go on as if `added` views had been added before; for a ring whose views are made anew."""
        self._added = added

    def add(self, views: Views) -> None:
        """Keep some more views, at most `capacity` at once."""
        count = len(views.image)
        places = torch.arange(self._added, self._added + count, device=views.image.device) % self._capacity
        image, embedding = views.image.permute(0, 2, 3, 1), views.embedding.permute(0, 2, 3, 1)
        labels = views.labels.to(torch.int16)  # wraps; unwrapped by `draw`
        for kept, part in zip(self._kept, (image, labels, views.extent, embedding), strict=True):
            kept.index_copy_(0, places, part.to(kept.dtype))
        self._added += count

    def draw(self, count: int, generator: torch.Generator) -> Views:
        """Return `count` of the views, drawn at random with repetition."""
        chosen = torch.randint(len(self), (count,), generator=generator, device=generator.device)
        image, labels, extent, embedding = (kept.index_select(0, chosen) for kept in self._kept)
        labels = labels.to(torch.int32) & 0xFFFF
        return Views(image.permute(0, 3, 1, 2), labels, extent, embedding.permute(0, 3, 1, 2))
