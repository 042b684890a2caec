"""The images of an epoch, encoded once for many steps of the mask decoder.

Where the encoder does not learn, its work is the same in every step; on a CPU it is nearly all the work. So
an epoch's images are encoded when it begins, and each step takes boxes of many of them. The next epoch draws
and encodes images of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from litemed.train.config import Config
from litemed.train.dataset import Batch
from litemed.train.geometry import inscribed_ellipses, random_boxes
from litemed.train.network import TrainedNetwork
from litemed.train.prompts import as_if_finer
from litemed.train.tokens import PATCH
from litemed.train.windows import in_windows

_POOL_STREAM = 3
"""Keeps the pool's random numbers apart from those of the sampler and of the samples."""


class EmbeddingPool:
    """Embeddings, boxes and masks of an epoch's images.

    Each image takes 2 bytes x 256 x (S / 4)^2 for its embedding (float16) and 2 bytes x S^2 for its masks:
    2.2 MiB at S = 256, with `run.windows` a quarter of it; on the device of the network.

    Args:
        network: its encoder is used; it must not learn.
        config: of the run; its pool says how many boxes of an image a step takes and how many of them give
            way to boxes anywhere; its seed, with the rank, the epoch and the step, decides what is drawn.
        epoch: counted from 0.
        rank: of this process.
    """

    def __init__(self, network: TrainedNetwork, config: Config, epoch: int, rank: int = 0) -> None:
        self._network = network
        self._settings = config.pool
        self._windows = config.run.windows
        self._finer = config.prompts.finer
        self._seed = [config.run.seed, _POOL_STREAM, epoch, rank]
        (of_windows,) = np.random.SeedSequence(self._seed).generate_state(1)
        self._random = torch.Generator().manual_seed(int(of_windows))
        self._images: list[_Image] = []

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    @torch.no_grad()
    def add(self, batch: Batch, bfloat16: bool) -> None:
        """Encode the images of a batch that is on the network's device; those that do not count are left out.

        bfloat16: whether to compute in it where PyTorch's autocast holds that safe.
        """
        if not batch.images:
            return
        windows = None
        if self._windows:
            batch, windows = in_windows(batch, self._random)
        pixels = batch.image if windows is None else windows.of_images(batch.image)
        places = torch.zeros(len(pixels), 2, dtype=torch.int64) if windows is None else windows.low // PATCH
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bfloat16):
            embeddings = self._network.encode(pixels)
        embeddings = embeddings.permute(0, 2, 3, 1).to(torch.float16, memory_format=torch.contiguous_format)
        for image, (embedding, place) in enumerate(zip(embeddings, places.tolist(), strict=True)):
            chosen = batch.image_of_box == image
            masks = batch.masks[chosen]  # apart from one another: objects of one map of labels
            if len(masks):
                numbers = torch.arange(1, len(masks) + 1, dtype=torch.int16, device=masks.device)
                labels = (masks * numbers[:, None, None]).sum(0, dtype=torch.int16)
                self._images.append(_Image(embedding, (place[0], place[1]), batch.boxes[chosen], labels))

    def draw(self, images: int, step: int) -> Batch:
        """Return a batch of boxes of so many images, or of all there are, drawn at random for a step.

        Its `image` holds their embeddings, (B, 256, S/4, S/4) float16, and `encoded` says so.
        """
        random = np.random.default_rng([*self._seed, step])
        numbers = random.choice(len(self), min(images, len(self)), replace=False)
        chosen = [self._images[number] for number in numbers]
        boxes, masks, counts = [], [], []
        for image in chosen:
            found = len(image.boxes)
            count = min(self._settings.boxes, found)
            drawn = torch.from_numpy(random.choice(found, count, replace=False)).to(image.labels.device)
            boxes.append(image.boxes[drawn])
            masks.append(image.labels == drawn[:, None, None] + 1)
            counts.append(count)
        all_boxes, all_masks = torch.cat(boxes), torch.cat(masks).to(torch.uint8)
        device, size = all_boxes.device, all_masks.shape[-1]
        anywhere = round(self._settings.ellipses * len(all_boxes))
        if anywhere:
            places = random_boxes(anywhere, size, random)
            all_masks[:anywhere] = inscribed_ellipses(torch.from_numpy(places).to(device), size)
            if random.random() < self._finer:
                places = as_if_finer(places.astype(np.int64), random).astype(np.float32)
            all_boxes[:anywhere] = torch.from_numpy(places).to(device)
        boxes_of_image = torch.tensor(counts, device=device)
        image_of_box = torch.arange(len(chosen), device=device).repeat_interleave(boxes_of_image)
        embeddings, shown = _in_place(chosen, size // PATCH)
        return Batch(
            image=embeddings.permute(0, 3, 1, 2),
            boxes=all_boxes,
            masks=all_masks,
            labels=torch.empty(0, size, size, dtype=torch.int32, device=device),
            image_of_box=image_of_box,
            weights=1 / boxes_of_image[image_of_box],
            images=len(chosen),
            skipped=(),
            encoded=True,
            shown=shown.flatten(1) if self._windows else None,
        )


class _Image(NamedTuple):
    """An image of the pool, or a window of it.

    embedding: float16 (h, w, 256). place: x and y of its first token in the image. boxes: (K, 4) in pixels
    of the image. labels: int16 (S, S): box j, counted from 1, or 0.
    """

    embedding: Tensor
    place: tuple[int, int]
    boxes: Tensor
    labels: Tensor


def _in_place(images: list[_Image], side: int) -> tuple[Tensor, Tensor]:
    """Put embeddings into zeros (B, side, side, 256); returns them and where they are, bool."""
    first = images[0].embedding
    placed = first.new_zeros(len(images), side, side, first.shape[-1])
    shown = first.new_zeros(len(images), side, side, dtype=torch.bool)
    for n, (embedding, (x, y), *_) in enumerate(images):
        height, width, _ = embedding.shape
        placed[n, y : y + height, x : x + width] = embedding
        shown[n, y : y + height, x : x + width] = True
    return placed, shown
