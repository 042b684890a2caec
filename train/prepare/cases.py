"""Write challenge-layout test cases, boxes made from the labels, and their ground truth.

    OUT/cases/2DBox_MODALITY_NAME.npz   imgs uint8 (H,W) or (H,W,3), boxes int64 (N,4) x0 y0 x1 y1
    OUT/cases/3DBox_MODALITY_NAME.npz   imgs uint8 (D,H,W), boxes (N,6) x0 y0 z0 x1 y1 z1, spacing
    OUT/gts/ the same names             gts, the shape of imgs, label i = box i, spacing in 3D

`spacing` is mm between slices, rows and columns: the order of the axes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.boxes import Boxes
from litemed.runtime.files import atomic_write, make_folder, output_path, remove_leftovers
from litemed.runtime.npz import write_npz
from litemed.runtime.preprocess import INPUT_SIZE
from litemed.train.prepare.intensity import to_uint8
from litemed.train.prepare.objects import Objects, boxes_of, find_objects, keep, number
from litemed.train.prepare.readers import read_pair
from litemed.train.prepare.settings import CaseSettings
from litemed.train.prepare.sources import Pair


@dataclass(frozen=True)
class ChallengeCase:
    """A case in the challenge's layout; see the module for shapes and axis order."""

    name: str
    image: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    labels: NDArray[Any]
    spacing_zyx: tuple[float, float, float] | None


def case_name(pair: Pair, is_volume: bool) -> str:
    """Return the file name, without suffix, of a pair's test case: 2DBox_MODALITY_SOURCE_CASE."""
    case = pair.case if pair.case.startswith(pair.source) else f"{pair.source}_{pair.case}"
    return f"{'3D' if is_volume else '2D'}Box_{pair.modality}_{re.sub(r'[^A-Za-z0-9._-]', '_', case)}"


def make_case(pair: Pair, settings: CaseSettings) -> ChallengeCase | None:
    """Read `pair` and turn it into a test case; None where no object is large enough for a box.

    Raises InputError where the pair cannot be used.
    """
    found = read_pair(pair)
    objects = find_objects(found.labels, pair.kind, settings.components)
    if found.is_volume:
        minimum: float = settings.min_volume_voxels
    else:
        minimum = settings.min_area_pixels * (max(found.labels.shape) / INPUT_SIZE) ** 2
    objects = keep(objects, objects.sizes >= minimum)
    image = to_uint8(found.image, pair.modality, settings.window, pair.image)
    if found.is_volume and settings.max_slices is not None:
        part = _fullest_slices(objects.labels, settings.max_slices)
        image = np.ascontiguousarray(image[part])
        objects = number(np.ascontiguousarray(objects.labels[part]))
    objects = _largest(objects, settings.max_boxes)
    if not len(objects):
        return None
    name = case_name(pair, found.is_volume)
    boxes = jitter_boxes(boxes_of(objects), objects.labels.shape, settings.jitter, f"{settings.seed}/{name}")
    # What the runtime would refuse must not be written.
    Boxes.parse(boxes, image.shape, str(pair.image))
    return ChallengeCase(name, image, boxes, objects.labels, found.spacing_zyx)


def jitter_boxes(
    boxes: NDArray[np.int64], shape: tuple[int, ...], fraction: float, seed: str
) -> NDArray[np.int64]:
    """Return `boxes`, (N, 4) or (N, 6), with every x and y moved by at most `fraction` of its side.

    shape: (H, W) or (D, H, W). The result lies within [0, W] x [0, H] and keeps x1 > x0 and y1 > y0.
    """
    if fraction == 0:
        return boxes
    draw = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))
    result = boxes.copy()
    half = boxes.shape[1] // 2
    for axis, side in ((0, shape[-1]), (1, shape[-2])):
        reach = np.floor(fraction * (boxes[:, axis + half] - boxes[:, axis])).astype(np.int64)
        low = np.clip(boxes[:, axis] + draw.integers(-reach, reach, endpoint=True), 0, side - 1)
        high = np.clip(boxes[:, axis + half] + draw.integers(-reach, reach, endpoint=True), 1, side)
        low, high = np.minimum(low, high), np.maximum(low, high)
        result[:, axis], result[:, axis + half] = low, np.maximum(high, low + 1)
    return result


def _fullest_slices(labels: NDArray[Any], count: int) -> slice:
    per_slice = np.count_nonzero(labels, axis=(1, 2))
    if count >= len(per_slice):
        return slice(0, len(per_slice))
    total = np.convolve(per_slice, np.ones(count, np.int64), mode="valid")
    start = int(total.argmax())
    return slice(start, start + count)


def _largest(objects: Objects, count: int | None) -> Objects:
    if count is None or len(objects) <= count:
        return objects
    wanted = np.zeros(len(objects), np.bool_)
    wanted[np.argsort(-objects.sizes, kind="stable")[:count]] = True
    return keep(objects, wanted)


def write_case(case: ChallengeCase, out: Path) -> None:
    """Write `case` to OUT/cases and its ground truth to OUT/gts."""
    spacing: dict[str, NDArray[Any]] = (
        {} if case.spacing_zyx is None else {"spacing": np.array(case.spacing_zyx)}
    )
    files: dict[str, dict[str, NDArray[Any]]] = {
        "gts": {"gts": case.labels, **spacing},
        "cases": {"imgs": case.image, "boxes": case.boxes, **spacing},
    }
    for folder, arrays in files.items():
        make_folder(out / folder)
        path = output_path(out / folder, case.name, ".npz")
        remove_leftovers(path)
        with atomic_write(path) as stream:
            write_npz(stream, arrays)
