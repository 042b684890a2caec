"""Write challenge-layout test cases, boxes made from the labels, and their ground truth.

OUT/cases/2DBox_MODALITY_NAME.npz   imgs uint8 (H,W) or (H,W,3), boxes int64 (N,4) x0 y0 x1 y1
OUT/cases/3DBox_MODALITY_NAME.npz   imgs uint8 (D,H,W), boxes (N,6) x0 y0 z0 x1 y1 z1, spacing in mm
OUT/gts/ the same names             gts, the shape of imgs, label i = box i, spacing in 3D
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.boxes import Boxes
from litemed.runtime.files import atomic_write, make_folder, output_path, remove_leftovers
from litemed.runtime.npz import write_npz
from litemed.runtime.preprocess import INPUT_SIZE
from litemed.train.prepare.intensity import to_uint8
from litemed.train.prepare.labelled_pairs import read_pair
from litemed.train.prepare.objects import boxes_of, find_objects, keep, number
from litemed.train.prepare.settings import Settings
from litemed.train.prepare.sources import Pair


def case_name(pair: Pair, is_volume: bool) -> str:
    """Return the file name, without suffix, of a pair's test case: 2DBox_MODALITY_SOURCE_CASE."""
    case = pair.case if pair.case.startswith(pair.source) else f"{pair.source}_{pair.case}"
    return f"{'3D' if is_volume else '2D'}Box_{pair.modality}_{re.sub(r'[^A-Za-z0-9._-]', '_', case)}"


def write_case(pair: Pair, out: Path, settings: Settings) -> tuple[str, int]:
    """Write the test case of `pair` to OUT/cases and its ground truth to OUT/gts.

    Returns the file's name and the number of boxes; without an object of enough size nothing is written.
    Raises InputError where the pair cannot be used, OutputError where the files cannot be written.
    """
    found = read_pair(pair)
    is_volume = found.labels.ndim == 3
    objects = find_objects(found.labels, pair.kind, settings.components)
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
    if not len(objects):
        return f"{name}.npz", 0
    boxes = jitter_boxes(boxes_of(objects), objects.labels.shape, settings.jitter, f"0/{name}")
    # What the runtime would refuse must not be written.
    Boxes.parse(boxes, image.shape, str(pair.image))
    spacing = {} if found.spacing_zyx is None else {"spacing": np.array(found.spacing_zyx)}
    _write(out / "gts", name, {"gts": objects.labels, **spacing})
    _write(out / "cases", name, {"imgs": image, "boxes": boxes, **spacing})
    return f"{name}.npz", len(boxes)


def _write(folder: Path, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    make_folder(folder)
    path = output_path(folder, name, ".npz")
    remove_leftovers(path)
    with atomic_write(path) as stream:
        write_npz(stream, arrays)


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
