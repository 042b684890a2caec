"""Draw deterministic test cases of any size: textured blobs in a body, boxes round them.

They serve where the size and the number of objects of a case matter, not what it shows: timing and tests.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from litemed.runtime.files import atomic_write, make_folder
from litemed.runtime.inputs.npz import write_npz

# Centre x y and outline (P, 2) round it, in pixels; grey value.
_Object = tuple[NDArray[np.float64], NDArray[np.float64], float]


@dataclass(frozen=True)
class Phantom:
    """A drawn case with its ground truth.

    Attributes:
        image: uint8 (H, W, 3), or (D, H, W) for a volume.
        labels: uint16, the image's spatial shape; object i has label i, 0 is background.
        boxes: int64 (N, 4) x0 y0 x1 y1, or (N, 6) x0 y0 z0 x1 y1 z1; tight, in pixels of the image.
        spacing: of a volume in mm, z y x; None in 2D.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint16]
    boxes: NDArray[np.int64]
    spacing: tuple[float, float, float] | None = None

    def write(self, path: Path, *, truth: bool = False) -> None:
        """Write image and boxes, or the labels as `gts`, in the challenge's npz layout."""
        arrays: dict[str, NDArray[Any]] = {"imgs": self.image, "boxes": self.boxes}
        if truth:
            arrays = {"gts": self.labels}
        if self.spacing is not None:
            arrays["spacing"] = np.array(self.spacing)
        make_folder(path.parent)
        with atomic_write(path) as file:
            write_npz(file, arrays)


def draw_image(height: int, width: int, count: int, seed: int = 0) -> Phantom:
    """Draw a 2D colour image of `count` objects that do not touch; the same seed gives the same image."""
    rng = np.random.default_rng(seed)
    objects = _place(rng, height, width, count)
    tint = rng.uniform(0.75, 1.0, 3)
    grey, labels = _slice(objects, [1.0] * count, _texture(rng, height, width))
    image = np.clip(grey[..., None] * tint, 0, 255).astype(np.uint8)
    return Phantom(image, labels, boxes_of(labels, count))


def draw_volume(
    depth: int, height: int, width: int, count: int, seed: int = 0, coverage: float = 0.3
) -> Phantom:
    """Draw a volume of objects that do not touch; each spans the share `coverage` of the slices somewhere."""
    rng = np.random.default_rng(seed)
    objects = _place(rng, height, width, count)
    span = max(1, round(coverage * depth))
    first = rng.integers(0, depth - span + 1, count)
    image = np.empty((depth, height, width), np.uint8)
    labels = np.zeros((depth, height, width), np.uint16)
    texture = _texture(rng, height, width)
    for z in range(depth):
        offset = (z - first - (span - 1) / 2) / (span / 2)  # -1 to 1 within an object
        sections = np.sqrt(np.clip(1 - offset**6, 0, None)) * (np.abs(offset) < 1)  # blunt, as organs are
        shifted = np.roll(texture, (5 * z, 3 * z), (0, 1))
        grey, labels[z] = _slice(objects, sections.tolist(), shifted)
        image[z] = np.clip(grey, 0, 255)
    return Phantom(image, labels, boxes_of(labels, count), (3.0, 1.0, 1.0))


def _place(rng: np.random.Generator, height: int, width: int, count: int) -> list[_Object]:
    """Draw wobbly ellipses in cells of a grid that is as square as it can be."""
    columns = max(1, math.ceil(math.sqrt(count * width / height)))
    rows = math.ceil(count / columns)
    cell = np.array([width / columns, height / rows])
    angle = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    objects = []
    for index in np.sort(rng.permutation(rows * columns)[:count]):
        corner = np.array([index % columns, index // columns]) * cell
        radii = cell * rng.uniform(0.2, 0.34, 2)
        centre = corner + cell / 2 + rng.uniform(-1, 1, 2) * (cell * 0.44 - radii * 1.2).clip(0)
        amplitudes, phases = rng.uniform(0, 0.05, (4, 1)), rng.uniform(0, 2 * math.pi, (4, 1))
        wobble = 1 + (amplitudes * np.cos(np.arange(2, 6)[:, None] * angle + phases)).sum(axis=0)
        outline = (wobble * [np.cos(angle), np.sin(angle)]).T * radii
        objects.append((centre, outline, rng.uniform(135, 215)))
    return objects


def _texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Speckle of two grain sizes, zero mean, (height, width)."""
    fine = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 1)
    small = rng.normal(0, 1, (height // 8 + 2, width // 8 + 2)).astype(np.float32)
    coarse = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(9 * fine / max(float(fine.std()), 1e-6) + 9 * coarse, np.float32)


def _slice(
    objects: list[_Object], sections: list[float], texture: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Draw one slice: grey values (H, W) and labels, each object at a fraction of its radii."""
    height, width = texture.shape
    grey: NDArray[np.float32] = np.full((height, width), 18, np.float32)
    centre, axes = (width // 2, height // 2), (int(width * 0.49), int(height * 0.49))
    cv2.ellipse(grey, centre, axes, 0, 0, 360, 88.0, -1)
    labels = np.zeros((height, width), np.uint16)
    for label, ((middle, outline, level), section) in enumerate(zip(objects, sections, strict=True), start=1):
        if section > 0:
            corners = np.rint((middle + section * outline) * 16).astype(np.int32)  # sixteenths, for OpenCV
            cv2.fillPoly(grey, [corners], level, shift=4)
            cv2.fillPoly(labels, [corners], label, shift=4)
    soft = cv2.GaussianBlur(grey, (0, 0), max(0.8, min(height, width) / 400))
    return np.asarray(soft + texture, np.float32), labels


def boxes_of(labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return the tight boxes of labels 1 to count, x y (z) first corners then last."""
    boxes = []
    for label in range(1, count + 1):
        places = np.nonzero(labels == label)[::-1]  # x y (z)
        boxes.append([int(axis.min()) for axis in places] + [int(axis.max()) for axis in places])
    return np.array(boxes, np.int64)
