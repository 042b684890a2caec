"""From a pair of image and labels to the slices that the network is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from litemed.runtime.preprocess import INPUT_SIZE, Frame
from litemed.train.prepare.intensity import to_uint8
from litemed.train.prepare.objects import Objects, find_objects, keep, number
from litemed.train.prepare.readers import Labelled, read_pair
from litemed.train.prepare.settings import Settings
from litemed.train.prepare.sources import Pair


@dataclass(frozen=True)
class TrainingSlice:
    """One slice at longest side 256.

    z: its number in the volume as read, 0 in 2D. image: uint8 (h, w) or (h, w, 3) RGB.
    objects: labels (h, w), the objects on this slice numbered from 1.
    """

    z: int
    image: NDArray[np.uint8]
    objects: Objects


@dataclass(frozen=True)
class Tally:
    """What became of slices and objects; tallies add up.

    An object counts once on every slice that shows it; `volume_objects_too_small` counts it once.
    """

    slices: int = 0
    objects: int = 0
    volume_objects_too_small: int = 0
    slice_objects_too_small: int = 0
    slices_without_object: int = 0
    cases_without_object: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            **{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)}
        )


def resize_image(image: NDArray[np.uint8], size: int = INPUT_SIZE) -> NDArray[np.uint8]:
    """Return an image, (H, W) or (H, W, 3), at longest side `size`, as the runtime's preprocess does it.

    Preprocess leaves the result as it is, so that training sees what inference will see.
    """
    frame = Frame.of(image.shape[0], image.shape[1], size)
    resized = cv2.resize(image, (frame.scaled_width, frame.scaled_height), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)


def resize_labels(labels: NDArray[Any], size: int = INPUT_SIZE) -> NDArray[Any]:
    """Return a label map, (H, W), at longest side `size`: each pixel takes the label under its centre.

    Centres are those of the area interpolation, (i + 0.5) * H / h - 0.5; cv2's own nearest neighbour
    takes the corner instead, which shifts labels by up to half a pixel of the larger image.
    """
    frame = Frame.of(labels.shape[0], labels.shape[1], size)
    rows = (2 * np.arange(frame.scaled_height) + 1) * frame.height // (2 * frame.scaled_height)
    columns = (2 * np.arange(frame.scaled_width) + 1) * frame.width // (2 * frame.scaled_width)
    return labels[np.ix_(rows, columns)]


def make_slices(pair: Pair, settings: Settings) -> tuple[list[TrainingSlice], Tally]:
    """Return the slices of `pair` that show an object, in order of z, and what was left out.

    Raises InputError where the pair cannot be read.
    """
    found = read_pair(pair)
    objects = find_objects(found.labels, pair.kind, settings.components)
    small_in_volume = 0
    if found.is_volume:
        large = objects.sizes >= settings.min_volume_voxels
        small_in_volume = int(np.count_nonzero(~large))
        objects = keep(objects, large)
    image = to_uint8(found.image, pair.modality, settings.window, pair.image)
    slices: list[TrainingSlice] = []
    without, small_in_slice = 0, 0
    for z, (plane, labels) in enumerate(_planes(found, image, objects.labels)):
        before = len(number(labels))
        shown = _large_enough(resize_labels(labels), settings.min_area_pixels) if before else None
        small_in_slice += before - (len(shown) if shown else 0)
        if shown:
            slices.append(TrainingSlice(z, resize_image(plane), shown))
        else:
            without += 1
    return slices, Tally(
        slices=len(slices),
        objects=sum(len(part.objects) for part in slices),
        volume_objects_too_small=small_in_volume,
        slice_objects_too_small=small_in_slice,
        slices_without_object=without,
        cases_without_object=int(not slices),
    )


def _large_enough(labels: NDArray[Any], minimum: int) -> Objects:
    objects = number(labels)
    return keep(objects, objects.sizes >= minimum)


def _planes(
    found: Labelled, image: NDArray[np.uint8], labels: NDArray[Any]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[Any]]]:
    if found.is_volume:
        yield from zip(image, labels, strict=True)
    else:
        yield image, labels
