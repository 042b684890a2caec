"""The images of an epoch, encoded once for many steps of the mask decoder.

Where the encoder does not learn, its work is the same in every step; on a CPU it is nearly all the work. So
an epoch's images are encoded when it begins, and each step takes boxes of many of them. The next epoch draws
and encodes images of its own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from litemed.train.config import Config
from litemed.train.dataset import Batch
from litemed.train.geometry import inscribed_ellipses, random_boxes
from litemed.train.network import TrainedNetwork
from litemed.train.prompts import as_if_finer

_POOL_STREAM = 3
"""Keeps the pool's random numbers apart from those of the sampler and of the samples."""


class EmbeddingPool:
    """Embeddings, boxes and masks of the images that were added.

    Each image takes 2 bytes x 256 x (S / 4)^2 for its embedding (float16) and 2 bytes x S^2 for its masks:
    2.2 MiB at S = 256; on the device of the network.

    Args:
        network: its encoder is used; it must not learn.
        config: of the run; its pool says how many boxes of an image a step takes and how many of them give
            way to boxes anywhere; its seed, with the rank, the epoch and the step, decides what is drawn.
        rank: of this process.
    """

    def __init__(self, network: TrainedNetwork, config: Config, rank: int = 0) -> None:
        self._network = network
        self._settings = config.pool
        self._finer = config.prompts.finer
        self._seed, self._rank = config.run.seed, rank
        self._embeddings: list[Tensor] = []  # (b, h, w, 256) each
        self._boxes: list[Tensor] = []  # (K, 4) of each image
        self._labels: list[Tensor] = []  # int16 (S, S) of each image: box j, counted from 1, or 0
        self._whole = torch.empty(0)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._boxes)

    @torch.no_grad()
    def add(self, batch: Batch, bfloat16: bool) -> None:
        """Encode the images of a batch that is on the network's device; those that do not count are left out.

        bfloat16: whether to compute in it where PyTorch's autocast holds that safe.
        """
        if not batch.images:
            return
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=bfloat16):
            embedding = self._network.encode(batch.image)
        self._embeddings.append(embedding.permute(0, 2, 3, 1).to(torch.float16))
        for image in range(batch.images):
            chosen = batch.image_of_box == image
            self._boxes.append(batch.boxes[chosen])
            masks = batch.masks[chosen]  # apart from one another: objects of one map of labels
            numbers = torch.arange(1, len(masks) + 1, dtype=torch.int16, device=masks.device)
            self._labels.append((masks * numbers[:, None, None]).sum(0, dtype=torch.int16))

    def draw(self, images: int, epoch: int, step: int) -> Batch:
        """Return a batch of boxes of so many images, or of all there are, drawn at random for a step.

        Its `image` holds the embeddings of the whole pool, (P, 256, S/4, S/4) float16, `encoded` says so,
        and `image_of_box` tells which of them each box needs.
        """
        random = np.random.default_rng([self._seed, _POOL_STREAM, epoch, step, self._rank])
        chosen = random.choice(len(self), min(images, len(self)), replace=False).tolist()
        boxes, masks, weights, image_of_box = [], [], [], []
        for image in chosen:
            found = len(self._boxes[image])
            count = min(self._settings.boxes, found)
            numbers = torch.from_numpy(random.choice(found, count, replace=False))
            numbers = numbers.to(self._labels[image].device)
            boxes.append(self._boxes[image][numbers])
            masks.append(self._labels[image] == numbers[:, None, None] + 1)
            weights += [1 / count] * count
            image_of_box += [image] * count
        all_boxes, all_masks = torch.cat(boxes), torch.cat(masks).to(torch.uint8)
        device, size = all_boxes.device, all_masks.shape[-1]
        anywhere = round(self._settings.ellipses * len(all_boxes))
        if anywhere:
            places = random_boxes(anywhere, size, random)
            all_masks[:anywhere] = inscribed_ellipses(torch.from_numpy(places).to(device), size)
            if random.random() < self._finer:
                places = as_if_finer(places.astype(np.int64), random).astype(np.float32)
            all_boxes[:anywhere] = torch.from_numpy(places).to(device)
        return Batch(
            image=self._all().permute(0, 3, 1, 2),
            boxes=all_boxes,
            masks=all_masks,
            labels=torch.empty(0, size, size, dtype=torch.int32, device=device),
            image_of_box=torch.tensor(image_of_box, device=device),
            weights=torch.tensor(weights, device=device),
            images=len(chosen),
            skipped=(),
            encoded=True,
        )

    def _all(self) -> Tensor:
        if self._embeddings:
            self._whole = torch.cat(self._embeddings)
            self._embeddings.clear()
        return self._whole
