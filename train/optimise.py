"""How weights move: AdamW with two groups, the learning rate over a run, a moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from litemed.models.encoders import PREFIX
from litemed.train.config import COSINE, PLATEAU, Optimizer, Schedule
from litemed.train.network import TrainedNetwork

CLIP_NORM = 1.0
"""Gradients are scaled down to this norm."""

_FACTOR, _PATIENCE_EPOCHS = 0.9, 5  # of the plateau, as in the paper


def build_optimizer(network: TrainedNetwork, settings: Optimizer) -> torch.optim.Optimizer:
    """Return AdamW of what is trained: a group of the encoder, if it is, and one of the rest."""
    named = [(name, weights) for name, weights in network.model.named_parameters() if weights.requires_grad]
    encoder = [weights for name, weights in named if name.startswith(PREFIX)]
    rest = [weights for name, weights in named if not name.startswith(PREFIX)]
    groups: list[dict[str, Any]] = [
        {"params": encoder, "lr": settings.lr},
        {"params": rest, "lr": settings.decoder_lr or settings.lr},
    ]
    on_gpu = next(network.parameters()).is_cuda
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], weight_decay=settings.weight_decay, fused=on_gpu
    )


class LearningRate:
    """Sets the learning rate of an optimizer before each step and after each epoch.

    "plateau" multiplies it by 0.9 once the training loss has not fallen for more than five epochs; "cosine"
    lets it fall to 0 at the end of the run. Over `warmup_steps` it first rises from 0.

    Args:
        optimizer: its learning rate at the start is the highest of the run.
        settings: the kind and the steps to warm up.
        steps: optimizer steps of the whole run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: Schedule, steps: int) -> None:
        self._optimizer = optimizer
        self._settings = settings
        self._steps = steps
        self._highest = [group["lr"] for group in optimizer.param_groups]
        self._plateau = ReduceLROnPlateau(optimizer, factor=_FACTOR, patience=_PATIENCE_EPOCHS)

    @property
    def value(self) -> float:
        """The learning rate now."""
        return float(self._optimizer.param_groups[0]["lr"])

    def before_step(self, step: int) -> None:
        """Set the rate for optimizer step `step`, from 0; the plateau's rate stays unless warming up."""
        warming = step < self._settings.warmup_steps
        if self._settings.kind == PLATEAU and not warming:
            return
        share = (step + 1) / self._settings.warmup_steps if warming else 1.0
        if self._settings.kind == COSINE:
            share *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / self._steps)))
        for group, highest in zip(self._optimizer.param_groups, self._highest, strict=True):
            group["lr"] = highest * share

    def after_epoch(self, loss: float) -> None:
        """Take note of an epoch's mean training loss."""
        if self._settings.kind == PLATEAU:
            self._plateau.step(loss)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on; the rate itself is in the optimizer's state."""
        return self._plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._plateau.load_state_dict(state)


def averaged(network: nn.Module, decay: float) -> AveragedModel | None:
    """Return an exponential moving average of a network's weights and statistics; None for a decay of 0.

    Whole numbers, such as indices, are copied: PyTorch's own average rounds those down.
    """

    @torch.no_grad()
    def move(averages: Sequence[Tensor], tensors: Sequence[Tensor], _: Tensor | int) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(tensors), 1 - decay)
        else:
            for average, tensor in zip(averages, tensors, strict=True):
                average.copy_(tensor)

    return AveragedModel(network, multi_avg_fn=move, use_buffers=True) if decay else None
