"""An exponential moving average of the weights over the steps of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(network: nn.Module, decay: float) -> AveragedModel | None:
    """Return an exponential moving average of a network's weights and statistics; None for a decay of 0."""
    if not decay:
        return None
    return AveragedModel(network, multi_avg_fn=_moving_average(decay), use_buffers=True)


def _moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Return what moves averages towards tensors; whole numbers, such as indices, are copied.

    PyTorch's own rounds those down once they are averaged.
    """

    @torch.no_grad()
    def move(averages: Sequence[Tensor], tensors: Sequence[Tensor], _: Tensor | int) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(tensors), 1 - decay)
        else:
            for average, tensor in zip(averages, tensors, strict=True):
                average.copy_(tensor)

    return move
