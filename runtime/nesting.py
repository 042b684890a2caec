"""Which of a case's boxes lie within others, and what becomes of the pixels that both claim.

Where one object lies within another (cup in disc, tumour in organ), the outer one's logits are about as large
as the inner one's, and argmax gives its pixels to the outer. So there are two rules of merging, of which
argmax is the paper's and `nested`, the default, is this:

The pixels of a box are those from x0 to x1 and from y0 to y1, in a volume on the slices from z0 to z1, all
ends included (as where masks end at their boxes), of the box clipped to the image as `Boxes` holds it; its
size is their number, (x1 - x0 + 1) (y1 - y0 + 1) (z1 - z0 + 1). Box i is nested in box j if at least 90 % of
i's pixels are also j's, and i's size is below 80 % of j's. Both are compared in whole numbers: exactly 90 %
is nested, exactly 80 % is not. So a box is nested neither in an equal one nor in itself, and never two in
each other. In a volume the boxes are compared as a whole, and what is nested is so on all of its slices.

1. All boxes are merged by argmax against a background of 0, as defined in `litemed.runtime.merge`: the
   highest value wins, and 0 beats the background. Among equal values one that is nested in none goes before a
   nested one, then the lower number among the former and the earlier turn (see 2) among the latter.
2. Then comes the turn of each nested box, from the largest to the smallest, of equally large ones the lower
   number first. It takes the pixels where its own value is above 0 and whose label so far is a box that it is
   nested in.

So the background is argmax's, and boxes of which none is nested in the other (siblings, or two that merely
overlap) are told apart by argmax, unless one that contains both has a higher value than either: then the one
whose turn is earlier takes the pixel. If no box is nested, the label map is that of argmax, bit for bit.

Values are the logits at the image's size; where masks end at their boxes, there are none outside. If the
boxes come in another order, their numbers change with it and the label map is otherwise the same, except at
pixels where boxes nested in none have the same value, or that two nested boxes of the same size claim: they
go to the lower number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Nesting:
    """Which boxes of a case are nested, and in which, as the module's docstring defines it.

    Attributes:
        ranks: int64 (N,), 0 for a box that is nested in none; 1, 2, ... for nested ones in the order of their
            turns.
    """

    ranks: NDArray[np.int64]
    _low: NDArray[np.int64]  # (2 or 3, N): x, y and z
    _past: NDArray[np.int64]
    _sizes: NDArray[np.int64]

    @classmethod
    def of(cls, xyxy: NDArray[np.int64], z: NDArray[np.int64] | None = None) -> Nesting:
        """Compare the boxes of a case.

        Args:
            xyxy: (N, 4), x0 y0 x1 y1 in pixels, both ends inclusive.
            z: (N, 2), first and last slice, both inclusive; None for an image.
        """
        ends = [xyxy[:, [0, 2]], xyxy[:, [1, 3]], *([] if z is None else [z])]
        low, last = np.ascontiguousarray(np.stack(ends).transpose(2, 0, 1))
        past, count = last + 1, len(xyxy)
        found = cls(np.zeros(count, np.int64), low, past, (past - low).prod(axis=0))
        nested = np.array([i for i in range(count) if found.containers(i).any()], np.int64)
        in_turn = nested[np.argsort(-found._sizes[nested], kind="stable")]
        found.ranks[in_turn] = np.arange(1, len(nested) + 1)
        return found

    def containers(self, box: int) -> NDArray[np.bool_]:
        """Return for every box, (N,), whether `box`, an index, is nested in it.

        Found when asked for: kept for all boxes they would be N x N.
        """
        common = np.minimum(self._past, self._past[:, [box]]) - np.maximum(self._low, self._low[:, [box]])
        shared = np.maximum(common, 0).prod(axis=0)
        size = self._sizes[box]
        # 10 times a volume that fits into memory is far from what int64 holds.
        return (10 * shared >= 9 * size) & (10 * size < 8 * self._sizes)

    def in_turn(self, boxes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return some boxes, indices, in an order to merge them in: those nested in none first, as given."""
        return boxes[np.argsort(self.ranks[boxes], kind="stable")]
