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


def bytes_of_view(size: int) -> int:
    """Return the memory that one view takes for a network input of side `size`."""
    return size * size * (3 + 2) + (size // STRIDE) ** 2 * CHANNELS * 2 + 16


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
        try:
            self._image = torch.empty(capacity, size, size, 3, dtype=torch.uint8, device=device)
            self._labels = torch.empty(capacity, size, size, dtype=torch.int16, device=device)
            self._extent = torch.empty(capacity, 2, dtype=torch.int64, device=device)
            self._embedding = torch.empty(capacity, side, side, CHANNELS, dtype=torch.bfloat16, device=device)
        except (RuntimeError, MemoryError) as error:  # as PyTorch says it on a GPU and on a CPU
            needed = capacity * bytes_of_view(size) / 1e9
            raise UsageError(
                f"distillation.views = {capacity}: {needed:.1f} GB are more than {device} has; keep fewer"
            ) from error

    def __len__(self) -> int:
        return min(self._added, self._capacity)

    def start_at(self, added: int) -> None:
        """Go on as if `added` views had been added before; for a ring whose views are made anew."""
        self._added = added

    def add(self, views: Views) -> None:
        """Keep some more views, at most `capacity` at once."""
        first, count = self._added % self._capacity, len(views.image)
        here = min(count, self._capacity - first)
        for part, start in ((slice(0, here), first), (slice(here, count), 0)):
            end = start + part.stop - part.start
            self._image[start:end] = views.image[part].permute(0, 2, 3, 1)
            self._labels[start:end] = views.labels[part].to(torch.int16)  # wraps; unwrapped by `draw`
            self._extent[start:end] = views.extent[part]
            self._embedding[start:end] = views.embedding[part].permute(0, 2, 3, 1)
        self._added += count

    def draw(self, count: int, generator: torch.Generator) -> Views:
        """Return `count` of the views, drawn at random with repetition."""
        chosen = torch.randint(len(self), (count,), generator=generator, device=self._image.device)
        return Views(
            self._image.index_select(0, chosen).permute(0, 3, 1, 2),
            self._labels.index_select(0, chosen).to(torch.int32) & 0xFFFF,
            self._extent.index_select(0, chosen),
            self._embedding.index_select(0, chosen).permute(0, 3, 1, 2),
        )
