"""Points and masks as prompts: what the published prompt encoder takes beside boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from litemed.runtime.boxes import Boxes, scale_boxes
from litemed.runtime.engines.protocol import BOTTOM_RIGHT, NOT_A_POINT, TOP_LEFT, Engine, Float
from litemed.runtime.errors import InputError
from litemed.runtime.preprocess import Frame

MAX_POINTS = 256
"""Of one object. People click some tens at most; time and memory grow with them."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of the N objects of one image, checked by `parse`.

    Attributes:
        points: of each object float32 (P, 2), x y in pixels of the network's input, with corners of a box.
        kinds: of each object float32 (P,), what its points are; see `Engine.decode_points`.
        masks: of each object float32 (S, S), logits of an earlier prediction, or None.
    """

    points: list[Float]
    kinds: list[Float]
    masks: list[Float | None]

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.points)

    @classmethod
    def parse(
        cls,
        frame: Frame,
        boxes: npt.ArrayLike | None,
        points: Sequence[npt.ArrayLike] | None,
        masks: Sequence[npt.ArrayLike | None] | None,
    ) -> Prompts:
        """Check the prompts of an image; what is None no object has.

        Args:
            frame: how the image lies in the network's input.
            boxes: (N, 4), as `Boxes.parse` takes them.
            points: of each object a table (P, 3) of x y in pixels and 1 in the object or 0 outside of it; P
                may be 0 where there is a box. Coordinates are indices of pixels and may have fractions.
            masks: of each object `Prediction.logits` of an earlier answer, or None.

        Raises:
            InputError: a prompt is refused, their numbers differ, or an object has neither box nor point.
        """
        shape = (frame.height, frame.width)
        corners = None if boxes is None else scale_boxes(Boxes.parse(boxes, shape).xyxy, frame)
        for name, each in (("points", points), ("masks", masks)):
            if each is not None and not isinstance(each, (Sequence, np.ndarray)):
                raise InputError(f"{name}: is a {type(each).__name__}; give one of each object, in a list")
        tables = None if points is None else [_points(one, shape, i) for i, one in enumerate(points, 1)]
        kept = None if masks is None else [_mask(one, frame.size, i) for i, one in enumerate(masks, 1)]
        given = {"boxes": corners, "points": tables, "masks": kept}
        counts = {name: len(one) for name, one in given.items() if one is not None}
        if len(set(counts.values())) != 1 or (corners is None and tables is None):
            said = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
            raise InputError(f"prompts: {said}; give each object a box, a list of points or both")
        count = next(iter(counts.values()))
        if not count:
            raise InputError("prompts: there are none; give at least one object")
        scale = frame.size / max(shape)
        placed, kinds = [], []
        for i in range(count):
            table = np.empty((0, 3), np.float32) if tables is None else tables[i]
            if corners is not None:
                more, of_more = corners[i].reshape(2, 2), [TOP_LEFT, BOTTOM_RIGHT]
            elif len(table):
                more, of_more = np.zeros((1, 2), np.float32), [NOT_A_POINT]  # as published
            else:
                raise InputError(f"prompts: object {i + 1} has neither a box nor a point")
            placed.append(np.concatenate([table[:, :2] * scale, more]).astype(np.float32))
            kinds.append(np.concatenate([table[:, 2], of_more]).astype(np.float32))
        return cls(placed, kinds, [None] * count if kept is None else kept)

    def decode(self, engine: Engine, embedding: Float) -> tuple[Float, Float]:
        """Return logits (N, S, S) and predicted IoU (N,), float32, of all objects. Raises EngineError."""
        logits = np.empty((len(self), *[4 * embedding.shape[-1]] * 2), np.float32)
        iou = np.empty(len(self), np.float32)
        # Objects with equally many points are decoded together, for padding would change the answer; one
        # with a mask has an embedding of its own.
        alike: dict[tuple[int, int], list[int]] = {}
        for i, (points, mask) in enumerate(zip(self.points, self.masks, strict=True)):
            alike.setdefault((len(points), -1 if mask is None else i), []).append(i)
        for members in alike.values():
            mask = self.masks[members[0]]
            placed = embedding if mask is None else embedding + engine.encode_mask(mask)
            points, kinds = (np.stack([of[i] for i in members]) for of in (self.points, self.kinds))
            logits[members], iou[members] = engine.decode_points(placed, points, kinds)
        return logits, iou


def _points(table: npt.ArrayLike, shape: tuple[int, int], number: int) -> NDArray[np.float64]:
    """Return the points of an object, (P, 3)."""
    source = f"points of object {number}"
    try:
        found = np.asarray(table, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: no table of numbers; give rows of x, y and 1 or 0") from error
    if found.size == 0:
        return np.empty((0, 3))
    if found.ndim != 2 or found.shape[1] != 3:
        raise InputError(f"{source}: have shape {found.shape}; give rows of x, y and 1 or 0")
    if len(found) > MAX_POINTS:
        raise InputError(f"{source}: {len(found)}; the most is {MAX_POINTS}")
    inside = (found[:, :2] >= -0.5) & (found[:, :2] <= np.array(shape[::-1]) - 0.5)
    if not inside.all():  # which NaN is not either
        x, y = found[np.argmin(inside.all(axis=1)), :2]
        size = f"{shape[1]} x {shape[0]} pixels (width x height)"
        raise InputError(f"{source}: [{x:g}, {y:g}] is outside the image of {size}")
    if not np.isin(found[:, 2], (0, 1)).all():
        raise InputError(f"{source}: the third number is 1 for a point in the object, 0 for one outside")
    return found


def _mask(mask: npt.ArrayLike | None, size: int, number: int) -> Float | None:
    """Return the logits of an object's mask, (size, size)."""
    if mask is None:
        return None
    try:
        found = np.asarray(mask)
    except ValueError as error:
        raise InputError(f"mask of object {number}: is no array of numbers") from error
    if found.shape != (size, size) or found.dtype.kind != "f" or not np.abs(found).max() < 1e6:
        raise InputError(
            f"mask of object {number}: {found.dtype} of shape {found.shape}; give the logits of a "
            f"prediction, float32 ({size}, {size})"
        )
    return found.astype(np.float32)
