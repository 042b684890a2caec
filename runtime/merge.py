"""From the logits of many boxes to one label map, without holding a full-size plane for each.

The label map is, bit for bit, the one of this definition (LiteMedSAM with LoRA, the paper's merge): crop the
padding off the logits, resize every plane to the original size (bilinear, half-pixel centres), append a plane
of zeros for the background, take the argmax, ties to the lower index. So a box at exactly 0 beats the
background and the lower box wins among equals.

Here a running maximum and its label are kept instead, and of a box only those blocks are computed that may
hold a value of 0 or more: elsewhere it cannot win. The maximum takes four bytes a pixel, so in a large image
boxes wait until all have come, and are merged band by band.

Boxes that lie within others may take from those, by the rule of `litemed.runtime.nesting`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.nesting import Nesting
from litemed.runtime.resize import Crop, LogitResizer, common, crop_of

BAND_PIXELS = 1 << 22
"""Pixels of a band: 16 MiB of float32. A label map that is not larger, 2048 x 2048, is one."""

WAITING_PARTS = 8
"""Boxes wait while their logits take an eighth of what the maximum would; with more, all of it is held."""


def label_dtype(count: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest unsigned dtype that holds the labels 0 to `count`, which is at most `MAX_BOXES`."""
    return np.dtype(np.uint8 if count <= np.iinfo(np.uint8).max else np.uint16)


@dataclass(frozen=True, eq=False)
class _Box:
    """A box to merge: its place in the turns of nested ones, its label and its logits (size, size)."""

    rank: int
    label: int
    resizer: LogitResizer
    logits: NDArray[np.float32]
    crop: Crop


@dataclass(frozen=True, eq=False)
class _Turn:
    """A box whose turn has come: whether all labels before it are lower, and the rows that it may win in."""

    box: _Box
    in_order: bool
    rows: slice


class RunningMerge:
    """Merges the boxes of one image or slice into a label map as they come, in chunks of any size.

    `labels` is written in place: (H, W) of an unsigned dtype that holds every label, all zero at the start.
    It is the label map once `finish` was called: of argmax without a `nesting`, else of the rule of
    `litemed.runtime.nesting` with that of the whole case. If boxes come from `several` views, nested ones of
    one before those of another that they yield to, they are held back until then.
    """

    def __init__(
        self, labels: NDArray[np.unsignedinteger], nesting: Nesting | None = None, several: bool = False
    ) -> None:
        self._labels = labels
        self._whole: Crop = slice(0, labels.shape[0]), slice(0, labels.shape[1])
        self._nesting = nesting
        self._held: list[_Box] | None = [] if several else None
        self._waiting: list[_Turn] = []
        self._best = _no_values(labels) if labels.size <= BAND_PIXELS else None
        self._highest = 0
        self._rank = 0

    def chunks(self, boxes: NDArray[np.int64], at_once: int) -> Iterator[NDArray[np.int64]]:
        """Yield `boxes`, indices (label - 1), a few at once, in an order in which they may be added."""
        if self._nesting is not None:
            boxes = self._nesting.in_turn(boxes)
        for start in range(0, len(boxes), at_once):
            yield boxes[start : start + at_once]

    def add(
        self,
        resizer: LogitResizer,
        logits: NDArray[np.float32],
        labels: NDArray[np.int64],
        crops: NDArray[np.int64] | None = None,
    ) -> None:
        """Merge some boxes: `logits` (n, size, size) float32, `labels` (n,) int64, each 1 or more.

        `resizer` places the logits in the label map. A label is the box's number in the whole case, so a
        slice may have any subset of the boxes, in any order but for nested ones, which come last and in their
        turns (see `chunks`) if there is one view only. `crops`, int64 (n, 4) as x0 y0 x1 y1 in pixels of the
        label map, both ends inclusive, are the boxes that the masks end at. Logits are finite.
        Raises ValueError if a box comes after its turn.
        """
        kept = [self._whole] * len(labels) if crops is None else [crop_of(box) for box in crops]
        for plane, label, crop in zip(logits, labels.tolist(), kept, strict=True):
            rank = 0 if self._nesting is None else int(self._nesting.ranks[label - 1])
            box = _Box(rank, label, resizer, plane, crop)
            if rank and self._held is not None:
                self._held.append(box)
            else:
                self._take(box)

    def _take(self, box: _Box) -> None:
        """Merge a box whose turn has come, or have it wait while those that do take little memory."""
        if box.rank < self._rank:
            raise ValueError(f"box {box.label} is merged after its turn")
        self._rank = box.rank
        rows = self._whole[0] if self._best is not None else box.resizer.winnable_rows(box.logits)
        self._waiting.append(_Turn(box, box.label > self._highest, rows))
        self._highest = max(self._highest, box.label)
        if self._best is None and WAITING_PARTS * len(self._waiting) * box.logits.size > self._labels.size:
            self._best = _no_values(self._labels)
        if self._best is not None:
            for turn in self._waiting:
                self._merge(turn, self._best, self._whole[0])
            self._waiting.clear()

    def _merge(self, turn: _Turn, best: NDArray[np.float32], band: slice) -> None:
        """Merge a box within the rows `band`, of which `best` is the maximum; a nested one by both steps.

        A pixel that a nested box wins by value is taken from whatever was there: by the rule nothing took it
        before, for the boxes whose turns were earlier are not smaller, so not nested in this one.
        """
        box = turn.box
        own = self._labels.dtype.type(box.label)
        yields = None
        if self._nesting is not None and box.rank:
            yields = np.concatenate([[False], self._nesting.containers(box.label - 1)])  # by label
        crop = common(box.crop[0], band), box.crop[1]
        for rows, columns, values in box.resizer.winnable_blocks(box.logits, crop):
            within = slice(rows.start - band.start, rows.stop - band.start)
            so_far, labels = best[within, columns], self._labels[rows, columns]
            wins = values > so_far
            if yields is None and turn.in_order:
                # Every label here is lower, so a maximum does for a masked write, 30 times faster.
                np.maximum(labels, wins * own, out=labels)
            else:
                wins |= (
                    (values == so_far) & (own < labels) if yields is None else (values > 0) & yields[labels]
                )
                np.copyto(labels, own, where=wins)
            np.maximum(so_far, values, out=so_far)

    def finish(self) -> None:
        """Merge what waits or was held back; what no box reaches with a value of 0 or more is background."""
        for box in sorted(self._held or (), key=lambda box: box.rank):
            self._take(box)
        height = max(1, BAND_PIXELS // self._labels.shape[1])
        for top in range(0, len(self._labels), height):
            band = slice(top, min(top + height, len(self._labels)))
            best = _no_values(self._labels[band]) if self._best is None else self._best[band]
            for turn in self._waiting:
                if max(turn.rows.start, band.start) < min(turn.rows.stop, band.stop):
                    self._merge(turn, best, band)
            self._labels[band][best < 0] = 0


def _no_values(labels: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
    # Not 0: the background loses to a box at exactly 0, which `finish` settles.
    return np.full(labels.shape, -np.inf, np.float32)
