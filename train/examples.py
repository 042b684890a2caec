"""From a batch as the loader gives it to what a training step takes: augmented images, boxes and masks.

All of it happens on the device that trains. Everything random about a step follows from the seed, the epoch,
the step and the number of the process: not from how often the run was interrupted.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from litemed.train.augment import augment
from litemed.train.config import Config, Prompts
from litemed.train.dataset import Batch
from litemed.train.prompts import Prompted, draw_prompts

_EXAMPLE_STREAM = 2
"""Keeps the examples' random numbers apart from the sampler's."""


def generator_of(seed: int, epoch: int, step: int, rank: int, device: torch.device) -> torch.Generator:
    """Return the random numbers of one step of one process."""
    state = np.random.SeedSequence([seed, _EXAMPLE_STREAM, epoch, step, rank]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


def make_examples(batch: Batch, config: Config, generator: torch.Generator) -> tuple[Tensor, Prompted]:
    """Augment a batch and draw boxes of its objects.

    batch: on the device of `generator`. Returns the images, float32 (B, 3, S, S) in [0, 1], and boxes as
    `draw_boxes` does.
    """
    image, labels, extent = augment(batch.image, batch.labels, batch.extent, config.augmentation, generator)
    prompts = draw_boxes(labels, extent, config.prompts, generator)
    if image.is_cuda:
        image = image.contiguous(memory_format=torch.channels_last)
    return image, prompts


def draw_boxes(labels: Tensor, extent: Tensor, settings: Prompts, generator: torch.Generator) -> Prompted:
    """Return what `draw_prompts` does, but at least one box.

    Where no image has an object it is one of no weight, for every process has to take its part in every step.
    """
    prompts = draw_prompts(labels, extent, settings, generator)
    if len(prompts):
        return prompts
    side = float(labels.shape[-1])
    return Prompted(
        boxes=torch.tensor([[0.0, 0.0, side, side]], device=labels.device),
        masks=torch.zeros_like(labels[:1], dtype=torch.uint8),
        image_of_box=torch.zeros(1, dtype=torch.int64, device=labels.device),
        weights=torch.zeros(1, device=labels.device),
    )
