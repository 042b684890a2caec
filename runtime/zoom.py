"""Small boxes in large images: which crops of the image (tiles) to encode for them.

The network's input has 256 pixels on its longest side, so that an object of 40 pixels in an image of 1,000 is
left with 10. Such boxes are segmented on tiles as well: squares of the image that become an input of their
own, in which a box takes 16 to 32 pixels with half a side or more of context round it, save at the edge.
Boxes near each other share a tile; every box lies in one tile or in none.
"""

from __future__ import annotations

import collections
import heapq
import itertools

import numpy as np
from numpy.typing import NDArray

SMALL = 16
"""Boxes whose longest side is below this, in pixels of the network's input, are segmented on tiles."""

_SIDES = 8
"""A tile has at least so many sides of its boxes, and less than twice as many."""

_LEAST_TILE = 16


def small_boxes(xyxy: NDArray[np.int64], height: int, width: int, input_size: int) -> NDArray[np.int64]:
    """Return the indices of boxes (N, 4) that are small, in an image that has more to show of them."""
    if max(height, width) <= input_size:
        return np.empty(0, np.int64)
    sides = (xyxy[:, 2:] - xyxy[:, :2]).max(axis=1)
    return np.flatnonzero(sides * input_size < SMALL * max(height, width))


def plan_tiles(
    xyxy: NDArray[np.int64], height: int, width: int, input_size: int, most: int
) -> list[tuple[slice, slice, NDArray[np.int64]]]:
    """Return tiles as rows and columns of the image, each with the indices of its boxes.

    Boxes that are in no tile belong on the whole image: they are large enough there, the image has no more
    pixels than the network's input, or there are tiles enough without them.

    Args:
        xyxy: (N, 4), x0 y0 x1 y1 in pixels of the image.
        height: of the image, in pixels.
        width: of the image, in pixels.
        input_size: longest side of the network's input.
        most: how many tiles there may be: those with the most boxes.
    """
    small = small_boxes(xyxy, height, width, input_size)
    if not len(small) or most < 1:
        return []
    sides = (xyxy[:, 2:] - xyxy[:, :2]).max(axis=1)
    # A power of two, so that boxes of about one size share a grid of tiles.
    tile_sides = np.maximum(2 ** np.ceil(np.log2(_SIDES * sides[small])).astype(np.int64), _LEAST_TILE)
    return _cover(xyxy, small, tile_sides, height, width, most)


def _cover(
    xyxy: NDArray[np.int64],
    small: NDArray[np.int64],
    tile_sides: NDArray[np.int64],
    height: int,
    width: int,
    most: int,
) -> list[tuple[slice, slice, NDArray[np.int64]]]:
    """Choose tiles, the one with the most boxes first, until every box has one or there are `most`."""
    boxes_in: dict[tuple[int, int, int], set[int]] = collections.defaultdict(set)
    tiles_of: dict[int, list[tuple[int, int, int]]] = {}
    for box, side in zip(small.tolist(), tile_sides.tolist(), strict=True):
        x0, y0, x1, y1 = xyxy[box].tolist()
        corners = itertools.product(_origins(y0, y1, side, height), _origins(x0, x1, side, width))
        tiles_of[box] = [(side, top, left) for top, left in corners]
        for tile in tiles_of[box]:
            boxes_in[tile].add(box)
    # Negated, so that the tile with the most boxes comes first, of these the largest, and so on.
    waiting = [(-len(boxes), -side, -top, -left) for (side, top, left), boxes in boxes_in.items()]
    heapq.heapify(waiting)
    chosen: list[tuple[slice, slice, NDArray[np.int64]]] = []
    while waiting and len(chosen) < most:
        count, side, top, left = (-part for part in heapq.heappop(waiting))
        boxes = sorted(boxes_in[side, top, left])
        if len(boxes) < count:  # some have a tile by now
            if boxes:
                heapq.heappush(waiting, (-len(boxes), -side, -top, -left))
            continue
        for box in boxes:
            for other in tiles_of[box]:
                boxes_in[other].discard(box)
        rows, columns = slice(top, min(top + side, height)), slice(left, min(left + side, width))
        chosen.append((rows, columns, np.array(boxes, np.int64)))
    return chosen


def _origins(low: int, high: int, side: int, length: int) -> list[int]:
    """Return where a tile of a box may begin on an axis: at every half tile, and at the end."""
    if side >= length:
        return [0]
    context, step = (high - low + 1) // 2, side // 2
    first, last = max(low - context, 0), min(high + context, length)
    origins = {min(step * i, length - side) for i in range(max(0, (last - side) // step), first // step + 1)}
    return sorted(origin for origin in origins if origin <= first and last <= origin + side)
