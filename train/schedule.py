"""The learning rate over a run."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from litemed.train.config import COSINE, PLATEAU, Schedule


class LearningRate:
    """Sets the learning rate of an optimizer before each step and after each epoch.

    Args:
        optimizer: its learning rate at the start is the highest of the run.
        settings: see `litemed.train.config.Schedule`.
        steps: optimizer steps of the whole run.
    """

    def __init__(self, optimizer: Optimizer, settings: Schedule, steps: int) -> None:
        self._optimizer = optimizer
        self._settings = settings
        self._steps = steps
        self._highest = [group["lr"] for group in optimizer.param_groups]
        self._plateau = ReduceLROnPlateau(
            optimizer, mode="min", factor=settings.factor, patience=settings.patience_epochs
        )

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
