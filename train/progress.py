"""How far a run is, and how it says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from tqdm import tqdm

_REASONS_SHOWN = 20
"""Lines about slices that could not be used, in a run; beyond them they are only counted."""


@dataclass
class Progress:
    """Counters of a run; written to its state.

    epoch, step: what is done: whole epochs, and batches of the epoch under way. best: the highest score so
    far (`litemed.train.loop` says what is scored), in which epoch. totals: sums over this epoch's steps, see
    `litemed.train.loop.Trainer`; empty before the first step. history: one row for each epoch done, see
    `litemed.train.run_files`.
    """

    epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int | None = None
    totals: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def start_dsc(self) -> float | None:
        """The validation DSC of the weights that the run started from, if it was measured."""
        return self.history[0]["dsc"] if self.history and not self.history[0]["epoch"] else None


def summary(row: Mapping[str, Any], epochs: int, parts: Sequence[str], is_best: bool) -> str:
    """Return the line that is printed at the end of an epoch. parts: names of those of the loss."""
    dsc = f" DSC {row['dsc']:.4f}" if row.get("dsc") is not None else ""
    skipped = f" skipped {row['skipped']} slices" if row["skipped"] else ""
    losses = " ".join(f"{name} {row[name]:.4f}" for name in parts)
    return (
        f"epoch {row['epoch']}/{epochs} loss {row['loss']:.4f} ({losses}){dsc}{' best' if is_best else ''} "
        f"lr {row['lr']:.2g} {row['samples_per_second']:.1f} samples/s, "
        f"waited {row['wait_share']:.0%}{skipped}"
    )


class Reporter:
    """Prints what a run does: lines that stay, and bars on a terminal.

    stream: None prints nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._reasons_left = _REASONS_SHOWN

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if self._stream is not None:
            tqdm.write(text, file=self._stream)
            self._stream.flush()

    def skipped(self, reasons: Sequence[str]) -> None:
        """Warn of slices that could not be used, of the first of them in a run."""
        for reason in reasons[: self._reasons_left]:
            self.line(f"warning: skipped {reason}")
        self._reasons_left -= min(self._reasons_left, len(reasons))

    def bar(self, title: str, steps: int, done: int = 0) -> tqdm[Any]:
        """Return a bar of `steps`, of which some are done; it shows on a terminal only."""
        hidden = self._stream is None or not self._stream.isatty()
        return tqdm(desc=title, total=steps, initial=done, file=self._stream, disable=hidden, leave=False)
