"""How weights move: AdamW with two groups, the learning rate over a run, a moving average of the weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from litemed.models.encoders import PREFIX
from litemed.train.config import Optimizer, Schedule
from litemed.train.network import TrainedNetwork

_FACTOR, _PATIENCE_EPOCHS = 0.9, 5  # of the plateau, as in the paper


def build_optimizer(network: TrainedNetwork, settings: Optimizer) -> torch.optim.Optimizer:
    """Return AdamW of what is trained: a group of the encoder, if it is, and one of the rest."""
    groups: list[dict[str, list[nn.Parameter] | float]] = []
    for of_encoder, rate in ((True, settings.lr), (False, settings.decoder_lr or settings.lr)):
        weights = [
            parameter
            for name, parameter in network.model.named_parameters()
            if parameter.requires_grad and name.startswith(PREFIX) == of_encoder
        ]
        groups += [{"params": weights, "lr": rate}] * bool(weights)
    fused = next(network.parameters()).is_cuda
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=fused)


class LearningRate:
    """Sets the learning rate of an optimizer before each step and after each epoch.

    "plateau" multiplies it by 0.9 once the training loss has not fallen for more than five epochs; "cosine"
    lets it fall to 0 at the end of the run. Over `warmup_steps` it first rises from 0.

    optimizer: its learning rate at the start is the highest of the run. steps: of the whole run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: Schedule, steps: int) -> None:
        self._optimizer = optimizer
        self._settings = settings
        self._steps = steps
        self._highest = [group["lr"] for group in optimizer.param_groups]
        self.plateau = ReduceLROnPlateau(optimizer, factor=_FACTOR, patience=_PATIENCE_EPOCHS)

    def before_step(self, step: int) -> None:
        """Set the rate for optimizer step `step`, from 0; the plateau's rate stays unless warming up."""
        warming = step < self._settings.warmup_steps
        if self._settings.kind == "plateau" and not warming:
            return
        share = (step + 1) / self._settings.warmup_steps if warming else 1.0
        if self._settings.kind == "cosine":
            share *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / self._steps)))
        for group, highest in zip(self._optimizer.param_groups, self._highest, strict=True):
            group["lr"] = highest * share

    def after_epoch(self, loss: float) -> None:
        """Take note of an epoch's mean training loss."""
        if self._settings.kind == "plateau":
            self.plateau.step(loss)


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
