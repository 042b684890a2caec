"""How far a run is, what it reached, and how it says so."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

_ON_TERMINAL_S = 0.5
_IN_LOG_S = 30.0

_REASONS_SHOWN = 20
"""Lines about slices that could not be used, in a run; beyond them they are only counted."""


@dataclass
class Progress:
    """Counters of a run; written to its state.

    epoch, step: what is done: whole epochs, and batches of the epoch under way. best: the highest score so
    far (`litemed.train.loop` says what is scored), in which epoch. skipped: slices that could not be used, in
    this epoch. losses: this epoch's images, and sums over them of the total loss and of its parts; empty
    before the first step. seconds, waited_s: wall time of this epoch, and how much of it the step waited for
    the loader. history: one row for each epoch done, see `litemed.train.history`.
    """

    epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int | None = None
    skipped: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    waited_s: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_new(self) -> bool:
        """Whether nothing has been done yet."""
        return not (self.epoch or self.step or self.history)

    def next_epoch(self) -> None:
        """Count the epoch as done and clear what is counted within one."""
        self.epoch += 1
        self.step, self.seconds = 0, 0.0
        self.clear_counts()

    def clear_counts(self) -> None:
        """Clear what processes count for themselves and the first one keeps the sum of."""
        self.losses, self.skipped, self.waited_s = [], 0, 0.0


class Reporter:
    """Prints what a run does: a line that is overwritten on a terminal, now and then a line elsewhere.

    stream: None prints nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._live = stream is not None and stream.isatty()
        self._width = 0
        self._reasons_left = _REASONS_SHOWN
        self._next = time.monotonic() + (0 if self._live else _IN_LOG_S)

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if self._stream is not None:
            self._clear()
            print(text, file=self._stream, flush=True)

    def skipped(self, reasons: Sequence[str]) -> None:
        """Warn of slices that could not be used, of the first of them in a run."""
        for reason in reasons[: self._reasons_left]:
            self.line(f"warning: skipped {reason}")
        self._reasons_left -= min(self._reasons_left, len(reasons))

    def is_due(self) -> bool:
        """Whether it is time for `status`; asking costs nothing, computing what to say may."""
        return self._stream is not None and time.monotonic() >= self._next

    def status(self, text: str) -> None:
        """Say how far the run is."""
        if self._stream is None:
            return
        self._next = time.monotonic() + (_ON_TERMINAL_S if self._live else _IN_LOG_S)
        if self._live:
            self._clear()
            self._width = len(text)
            print(text, end="", file=self._stream, flush=True)
        else:
            print(text, file=self._stream, flush=True)

    def _clear(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=self._stream)
            self._width = 0
