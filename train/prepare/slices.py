"""From a pair of image and labels to training slices, or to a test case and its ground truth."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from litemed.runtime.boxes import Boxes
from litemed.runtime.files import atomic_write, make_folder, output_path, remove_leftovers
from litemed.runtime.inputs.intensity import to_uint8
from litemed.runtime.inputs.npz import write_npz
from litemed.runtime.inputs.scaling import WINDOWS, Window
from litemed.runtime.preprocess import INPUT_SIZE, Frame
from litemed.train.prepare.labelled_pairs import read_pair
from litemed.train.prepare.objects import Objects, boxes_of, keep, number, number_sharp
from litemed.train.prepare.sources import Pair


@dataclass(frozen=True)
class Settings:
    """How pairs become slices and objects, or test cases.

    min_volume_voxels: smaller objects of a volume are left out; MedSAM's published limit of 1000 would leave
    out whole tumours in PET and cropped volumes. min_area_pixels: the same of a slice, counted at longest
    side 256; MedSAM's published 100 is 25 so for 512 x 512, and thin lesions in OCT have 13.
    cases: make test cases. Only then: max_slices, to which volumes are cropped, those that hold most labelled
    voxels; max_boxes, of the largest objects; jitter or loose, the largest share of a box's width or height
    by which its edges move at random, either way or outwards, in z not at all; the same for the same name.
    """

    window: Window = WINDOWS["abdomen"]
    min_volume_voxels: int = 50
    min_area_pixels: int = 10
    cases: bool = False
    max_slices: int | None = None
    max_boxes: int | None = None
    jitter: float = 0.0
    loose: float = 0.0


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
    objects = number_sharp(found.labels, pair.label or pair.image)
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


def case_name(pair: Pair, is_volume: bool) -> str:
    """Return the file name, without suffix, of a pair's test case: 2DBox_MODALITY_SOURCE_CASE."""
    case = pair.case if pair.case.startswith(pair.source) else f"{pair.source}_{pair.case}"
    return f"{'3D' if is_volume else '2D'}Box_{pair.modality}_{re.sub(r'[^A-Za-z0-9._-]', '_', case)}"


def write_case(pair: Pair, out: Path, settings: Settings) -> tuple[str, dict[str, int]]:
    """Write the test case of `pair` to OUT/cases and its ground truth to OUT/gts.

    Returns the file's name and counts; without an object of enough size nothing is written.
    Raises InputError where the pair cannot be used, OutputError where the files cannot be written.
    """
    found = read_pair(pair)
    objects = number_sharp(found.labels, pair.label or pair.image)
    is_volume = found.labels.ndim == 3
    in_slice = settings.min_area_pixels * (max(found.labels.shape) / INPUT_SIZE) ** 2
    objects = keep(objects, objects.sizes >= (settings.min_volume_voxels if is_volume else in_slice))
    image = to_uint8(found.image, pair.modality, settings.window, pair.image)
    if is_volume and settings.max_slices is not None:
        per_slice = np.count_nonzero(objects.labels, axis=(1, 2))
        window = np.ones(min(settings.max_slices, len(per_slice)), np.int64)
        start = int(np.convolve(per_slice, window, mode="valid").argmax())
        part = slice(start, start + len(window))
        image, objects = image[part], number(objects.labels[part])
    if settings.max_boxes is not None:
        ranks = np.argsort(np.argsort(-objects.sizes, kind="stable"))
        objects = keep(objects, ranks < settings.max_boxes)
    name = case_name(pair, is_volume)
    counts = {"boxes": len(objects), "cases_without_object": int(not len(objects))}
    if not len(objects):
        return f"{name}.npz", counts
    share, outwards = settings.loose or settings.jitter, settings.loose > 0
    boxes = move_edges(boxes_of(objects), objects.labels.shape, share, f"0/{name}", outwards)
    # What the runtime would refuse must not be written.
    Boxes.parse(boxes, image.shape, str(pair.image))
    content: dict[str, dict[str, NDArray[Any]]] = {}
    content["gts"], content["cases"] = {"gts": objects.labels}, {"imgs": image, "boxes": boxes}
    spacing = {} if found.spacing_zyx is None else {"spacing": np.array(found.spacing_zyx)}
    for folder, arrays in content.items():
        make_folder(out / folder)
        path = output_path(out / folder, name, ".npz")
        remove_leftovers(path)
        with atomic_write(path) as stream:
            write_npz(stream, arrays | spacing)
    return f"{name}.npz", counts


def move_edges(
    boxes: NDArray[np.int64], shape: tuple[int, ...], share: float, seed: str, outwards: bool = False
) -> NDArray[np.int64]:
    """Return `boxes`, (N, 4) or (N, 6), with every edge in x and y moved by at most `share` of its side.

    shape: (H, W) or (D, H, W). outwards: by a uniform share each, rounded to pixels, as people draw boxes;
    otherwise either way. The result lies within [0, W] x [0, H] and keeps x1 > x0 and y1 > y0.
    """
    if share == 0:
        return boxes
    draw = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))

    def moves(reach: NDArray[Any], out: int) -> NDArray[Any]:
        if outwards:
            return out * np.rint(draw.uniform(0, reach)).astype(np.int64)
        whole = np.floor(reach).astype(np.int64)
        return draw.integers(-whole, whole, endpoint=True)

    result = boxes.copy()
    half = boxes.shape[1] // 2
    for axis, side in ((0, shape[-1]), (1, shape[-2])):
        reach = share * (boxes[:, axis + half] - boxes[:, axis])
        low = np.clip(boxes[:, axis] + moves(reach, -1), 0, side - 1)
        high = np.clip(boxes[:, axis + half] + moves(reach, 1), 1, side)
        low, high = np.minimum(low, high), np.maximum(low, high)
        result[:, axis], result[:, axis + half] = low, np.maximum(high, low + 1)
    return result
