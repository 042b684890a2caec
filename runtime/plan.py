"""What is encoded and decoded of a case: known before the network begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.boxes import scale_boxes, shrink
from litemed.runtime.case import Case
from litemed.runtime.merge import label_dtype
from litemed.runtime.method import Method
from litemed.runtime.nesting import Nesting
from litemed.runtime.planes import planes_per_box
from litemed.runtime.preprocess import Frame
from litemed.runtime.resize import interpolate
from litemed.runtime.zoom import plan_tiles, small_boxes

LAST_PIXEL = np.array([0, 0, 0.5, 0.5])
"""What is added to boxes on tiles."""

TILE_SHARES = {"decoder": 0.5, "tile_decoder": 0.7}
"""The weight of a tile's logits in the mean with the whole slice's, by the decoder that gives them."""


@dataclass(frozen=True, eq=False)
class View:
    """A part of every slice that is encoded as an image of its own: all of it, or a tile.

    Attributes:
        rows: of the slice.
        columns: of the slice.
        frame: how it lies in the network's input.
        boxes: int64 (n,), indices of the boxes that are segmented on it.
    """

    rows: slice
    columns: slice
    frame: Frame
    boxes: NDArray[np.int64]

    @property
    def corner(self) -> list[int]:
        """What to take from a box's x0 y0 x1 y1 in pixels of the slice for those of the view."""
        return [self.columns.start, self.rows.start] * 2


@dataclass(frozen=True, eq=False)
class Plan:
    """A case slice by slice; an image is its own and only slice.

    Attributes:
        images: uint8 (D, H, W) or (D, H, W, 3).
        spacing: of slices, rows and columns in mm; None if not known.
        xyxy: int64 (N, 4), the boxes in pixels of a slice.
        z: int64 (N, 2), first and last slice of each box; with `propagate` of one that was drawn on one slice
            those of the volume.
        middle: int64 (N,), the slice on which propagation starts.
        follows: bool (N,), which boxes it follows until their objects end.
        whole: the whole slice, with the boxes that are segmented on it alone.
        tiles: of the others.
        plane_count: how many planes each box gets of either other direction, (N,).
        crops: int64 (N, 4), the boxes if masks end at them, else None.
        profile: whether prompts follow an ellipsoid's cross-section.
        nesting: which boxes lie in others; None where the method does not ask.
        refitted: bool (N,), which boxes may be looser than their objects: none that lies in another one, and
            in volumes only those on one slice or on all, for the profile fits the others to their slices.
        untiled: indices of the small boxes for which there was no tile left.
    """

    images: NDArray[np.uint8]
    spacing: tuple[float, ...] | None
    xyxy: NDArray[np.int64]
    z: NDArray[np.int64]
    middle: NDArray[np.int64]
    follows: NDArray[np.bool_]
    whole: View
    tiles: tuple[View, ...]
    plane_count: NDArray[np.int64]
    crops: NDArray[np.int64] | None
    profile: bool
    nesting: Nesting | None
    refitted: NDArray[np.bool_]
    untiled: NDArray[np.int64]

    @classmethod
    def of(cls, case: Case, method: Method, input_size: int) -> Plan:
        """Take a case apart.

        Args:
            case: image or volume with boxes.
            method: how it is segmented.
            input_size: pixels of the network's input on its longest side.
        """
        nesting, refitted = None, np.zeros(len(case.boxes.xyxy), np.bool_)
        if method.merge == "nested" or method.box_fit == "drawn":
            nesting = Nesting.of(case.boxes.xyxy, case.boxes.z)
        images = case.image if case.is_volume else case.image[np.newaxis]
        xyxy = case.boxes.xyxy
        z = np.zeros((len(xyxy), 2), np.int64) if case.boxes.z is None else case.boxes.z
        middle = (z[:, 1] - z[:, 0]) // 2 + z[:, 0]
        follows = np.zeros(len(xyxy), np.bool_)
        if method.propagate and case.boxes.on_slice is not None:
            follows = case.boxes.on_slice
            z = np.where(follows[:, np.newaxis], [0, len(images) - 1], z)
        height, width = images.shape[1:3]
        frame = Frame.of(height, width, input_size)
        tiles, untiled = [], np.empty(0, np.int64)
        if method.zoom == "auto":
            untiled = small_boxes(xyxy, height, width, input_size)
            for rows, columns, boxes in plan_tiles(xyxy, height, width, input_size, method.max_zoom_tiles):
                tile = Frame.of(rows.stop - rows.start, columns.stop - columns.start, input_size)
                tiles.append(View(rows, columns, tile, boxes))
        zoomed = np.concatenate([np.empty(0, np.int64), *(view.boxes for view in tiles)])
        rest = np.setdiff1d(np.arange(len(xyxy)), zoomed)
        if nesting is not None and method.box_fit == "drawn":
            refitted = (nesting.ranks == 0) & np.isin(z[:, 1] - z[:, 0] + 1, (1, len(images)))
        plane_count = np.zeros(len(xyxy), np.int64)
        if method.volume == "planes" and case.is_volume:
            plane_count[rest] = planes_per_box(xyxy[rest], z[rest], len(covered(*z.T)))
        return cls(
            images=images,
            spacing=case.spacing,
            xyxy=xyxy,
            z=z,
            middle=middle,
            follows=follows,
            whole=View(slice(0, height), slice(0, width), frame, rest),
            tiles=tuple(tiles),
            plane_count=plane_count,
            crops=xyxy if method.crop_masks else None,
            profile=method.volume in ("planes", "ellipsoid"),
            nesting=nesting,
            refitted=refitted,
            untiled=np.setdiff1d(untiled, zoomed),
        )

    @property
    def frame(self) -> Frame:
        """How a whole slice lies in the network's input."""
        return self.whole.frame

    @property
    def encodings(self) -> int:
        """How often the encoder will run."""
        in_tiles = sum(len(covered(*self.z[tile.boxes].T)) for tile in self.tiles)
        return len(covered(*self.z.T)) + in_tiles + 2 * int(self.plane_count.sum())

    @property
    def decodings(self) -> int:
        """How many boxes will be decoded.

        A box counts once for each of its slices, tiles and planes, and once more for each slice if it may be
        looser than its object.
        """
        slices = (self.z[:, 1] - self.z[:, 0] + 1) * (1 + self.refitted)
        in_tiles = sum(int((self.z[tile.boxes] @ [-1, 1] + 1).sum()) for tile in self.tiles)
        return int(slices.sum() + 2 * self.plane_count.sum()) + in_tiles

    def blank_labels(self) -> NDArray[np.unsignedinteger]:
        """Return a label map (D, H, W) of zeros that can hold all labels."""
        return np.zeros(self.images.shape[:3], label_dtype(len(self.xyxy)))

    def prompts(self, view: View, boxes: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        """Return some boxes, indices, on a slice in pixels of a view's network input, float32 (n, 4)."""
        xyxy: NDArray[np.int64] | NDArray[np.float64] = self.xyxy[boxes]
        if self.profile:
            first, last = self.z[boxes].T
            offset = (2 * position - first - last) / (last - first + 1)
            # Where a box ends with the volume, its object probably does not end there.
            offset = np.where(first == 0, np.maximum(offset, 0), offset)
            offset = np.where(last == len(self.images) - 1, np.minimum(offset, 0), offset)
            xyxy = shrink(xyxy, offset)
        if view is self.whole:
            return scale_boxes(xyxy, view.frame)
        # Of a small box the published truncation would be a large part, and so is its last pixel, in the
        # middle of which it ends here.
        return scale_boxes(xyxy - view.corner + LAST_PIXEL, view.frame, fractions=True)

    def on_whole(self, tile: View, prompts: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a tile's prompts (n, 4) in pixels of the whole slice's network input."""
        side = max(tile.frame.height, tile.frame.width)
        xyxy = prompts * (side / tile.frame.size) - LAST_PIXEL + tile.corner
        return scale_boxes(xyxy, self.frame, fractions=True)

    def average(
        self,
        tile: View,
        logits: NDArray[np.float32],
        whole: NDArray[np.float32],
        decoders: NDArray[np.str_],
    ) -> None:
        """Put into a tile's logits (n, S, S) their mean with those of the same boxes on the whole slice.

        `decoders` (n,) say of which the tile's are, see `TILE_SHARES`.
        """
        share = np.array([TILE_SHARES[name] for name in decoders], np.float32)[:, np.newaxis, np.newaxis]
        height, width = tile.frame.scaled_height, tile.frame.scaled_width
        at = []
        for start, side, scaled, of, of_scaled in (
            (tile.rows.start, tile.frame.height, height, self.frame.height, self.frame.scaled_height),
            (tile.columns.start, tile.frame.width, width, self.frame.width, self.frame.scaled_width),
        ):
            at.append((start + (np.arange(scaled) + 0.5) * side / scaled) * of_scaled / of - 0.5)
        whole = whole[:, : self.frame.scaled_height, : self.frame.scaled_width]
        logits[:, :height, :width] *= share
        whole = interpolate(interpolate(whole, at[0], axis=1), at[1], axis=2)
        logits[:, :height, :width] += (1 - share) * whole


def covered(first: Iterable[int], last: Iterable[int]) -> list[int]:
    """Return, ascending, the slices within at least one range; both ends are inclusive."""
    return sorted(
        {position for low, high in zip(first, last, strict=True) for position in range(low, high + 1)}
    )
