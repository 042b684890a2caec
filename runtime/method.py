"""How cases are segmented: every choice that decides the labels, checked once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Self

from litemed.runtime.errors import UsageError

MERGES = ("nested", "argmax")
VOLUMES = ("planes", "ellipsoid", "box")
ZOOMS = ("auto", "off")
BOX_FITS = ("drawn", "tight")


@dataclass(frozen=True)
class Method:
    """How cases are segmented. What is None takes its default, the first of its values.

    Attributes:
        merge: who gets a pixel that several boxes claim, see `litemed.runtime.nesting`: "nested" or "argmax",
            the paper's.
        volume: how a 3D box prompts its slices. "ellipsoid": with the box shrunk like the cross-section of an
            ellipsoid; "planes": the same, and where it helps planes of the two other directions, see
            `litemed.runtime.planes`; "box": with the box itself on all slices, the paper's.
        zoom: "auto": small boxes of large images are segmented on tiles, see `litemed.runtime.zoom`; "off".
        max_zoom_tiles: how many tiles a case may have.
        box_fit: "drawn": boxes may be looser than their objects, see `litemed.runtime.refit`; "tight": they
            are taken as they are, as in the paper, and as ever where a bundle has no decoder for loose boxes.
        propagate: go the published baseline's way instead, see `litemed.runtime.propagate`; `merge`,
            `volume`, `zoom` and `box_fit` do not go with it and are None then.
        crop_masks: whether a box's mask ends at the box (both ends inclusive, in volumes x and y). Source:
            `crop_mask` of YOLACT (Bolya et al., ICCV 2019).

    Raises:
        UsageError: a value is unknown, or was given beside `propagate`.
    """

    merge: str | None = None
    volume: str | None = None
    zoom: str | None = None
    box_fit: str | None = None
    max_zoom_tiles: int = 64
    propagate: bool = False
    crop_masks: bool = False

    @classmethod
    def of_paper(cls) -> Self:
        """Return the paper's: boxes as they are, on whole slices, merged by argmax."""
        return cls(merge="argmax", volume="box", zoom="off", box_fit="tight")

    def with_decoders(self, decoders: Collection[str]) -> Self:
        """Return the same, but that boxes are tight where there is no decoder for loose ones."""
        loose = "loose_decoder" in decoders
        return self if loose or self.box_fit != "drawn" else replace(self, box_fit="tight")

    def __post_init__(self) -> None:
        """Check the values and fill in the defaults."""
        for name in ("propagate", "crop_masks"):
            if not isinstance(given := getattr(self, name), bool):
                raise UsageError(f"{name}: {given!r}; give True or False")
        for name, values in (("merge", MERGES), ("volume", VOLUMES), ("zoom", ZOOMS), ("box_fit", BOX_FITS)):
            asked = getattr(self, name)
            if asked is not None and asked not in values:
                raise UsageError(f"{name}: no {asked!r}; choose {', '.join(values[:-1])} or {values[-1]}")
            if asked is not None and self.propagate:
                option = "boxes" if name == "box_fit" else name
                raise UsageError(f"{option} {asked} does not go with propagate: leave out one of them")
            if asked is None and not self.propagate:
                object.__setattr__(self, name, values[0])
        most = self.max_zoom_tiles
        if not isinstance(most, Integral) or isinstance(most, bool) or most < 0:
            raise UsageError(f"max_zoom_tiles: {most!r}; give a whole number, 0 or more")
        if self.zoom != "auto":  # it changes nothing, so that it makes no result out of date
            object.__setattr__(self, "max_zoom_tiles", type(self).max_zoom_tiles)
