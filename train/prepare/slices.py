"""From a pair of image and labels to the slices that the network is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from litemed.runtime.preprocess import INPUT_SIZE, Frame
from litemed.train.prepare.intensity import to_uint8
from litemed.train.prepare.labelled_pairs import read_pair
from litemed.train.prepare.objects import Objects, find_objects, keep, number
from litemed.train.prepare.settings import Settings
from litemed.train.prepare.sources import Pair


@dataclass(frozen=True)
class TrainingSlice:
    """One slice at longest side 256. z: its number in the volume as read, 0 in 2D; objects: those on it."""

    z: int
    image: NDArray[np.uint8]
    objects: Objects


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


def make_slices(pair: Pair, settings: Settings) -> tuple[list[TrainingSlice], dict[str, int]]:
    """Return the slices of `pair` that show an object, in order of z, and counts of what was left out.

    An object counts on every slice that shows it, or is too small to; one too small for a volume counts once.
    Raises InputError where the pair cannot be read.
    """
    found = read_pair(pair)
    objects = find_objects(found.labels, pair.kind, settings.components)
    all_objects = len(objects)
    if objects.labels.ndim == 3:
        objects = keep(objects, objects.sizes >= settings.min_volume_voxels)
    image, labels = to_uint8(found.image, pair.modality, settings.window, pair.image), objects.labels
    if labels.ndim == 2:
        image, labels = image[None], labels[None]
    slices: list[TrainingSlice] = []
    too_small = 0
    for z, (plane, plane_labels) in enumerate(zip(image, labels, strict=True)):
        shown = number(resize_labels(plane_labels))
        shown = keep(shown, shown.sizes >= settings.min_area_pixels)
        too_small += len(number(plane_labels)) - len(shown)
        if len(shown):
            slices.append(TrainingSlice(z, resize_image(plane), shown))
    return slices, {
        "slices": len(slices),
        "objects": sum(len(part.objects) for part in slices),
        "volume_objects_too_small": all_objects - len(objects),
        "slice_objects_too_small": too_small,
        "slices_without_object": len(image) - len(slices),
        "cases_without_object": int(not slices),
    }
