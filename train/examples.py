"""From a batch as the loader gives it to what a training step takes: augmented images, boxes and masks.

All of it happens on the device that trains. Everything random about a step follows from the seed, the epoch
and the step: not from how often the run was interrupted.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from litemed.train.augment import CHANCES, augment
from litemed.train.config import Config
from litemed.train.dataset import Batch
from litemed.train.prompts import Prompted, draw_prompts

_EXAMPLE_STREAM = 2
"""Keeps the examples' random numbers apart from the sampler's."""


def generator_of(seed: int, epoch: int, step: int, device: torch.device) -> torch.Generator:
    """Return the random numbers of one step."""
    state = np.random.SeedSequence([seed, _EXAMPLE_STREAM, epoch, step, 0]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


def make_examples(batch: Batch, config: Config, generator: torch.Generator) -> tuple[Tensor, Prompted]:
    """Augment a batch and draw boxes of its objects.

    batch: on the device of `generator`. Returns the images, float32 (B, 3, S, S) in [0, 1], and boxes.
    """
    image, labels, extent = augment(*batch[:3], CHANCES[config.augmentation.kind], generator)
    prompts = draw_prompts(labels, extent, config.prompts, generator)
    return image.contiguous(memory_format=torch.channels_last) if image.is_cuda else image, prompts
